"""The embedded data set: many distinct, sensible crystals, which ship with the package and can be made again."""

from __future__ import annotations

import csv
import gzip
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from latentite.data.canonical import canonicalize_many
from latentite.data.properties import derive_rows
from latentite.data.readers.cif import parse_p1
from latentite.data.sources import resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from make_prototypes import SPLITS, make_tables, predict_scales
from prototype_library import load_elements, load_prototypes

Rows = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def folder() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LATENTITE_DATA_DIR", raising=False)
        return resolve("prototypes")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    result = {}
    for split in SPLITS:
        with gzip.open(folder / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as handle:
            result[split] = list(csv.DictReader(handle))
    return result


@pytest.fixture(scope="module")
def crystals(rows: Rows) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    parsed = [parse_p1(row["cif"]) for split in rows.values() for row in split]
    assert None not in parsed  # every CIF takes the fast path
    return [crystal for crystal in parsed if crystal is not None]


def test_there_are_enough_crystals_and_every_name_is_unique(rows: Rows, crystals: list) -> None:
    everything = [row for split in rows.values() for row in split]
    assert len(everything) >= 5000
    assert len({row["material_id"] for row in everything}) == len(everything)
    sizes = np.array([len(crystal.atomic_numbers) for crystal in crystals])
    assert sizes.max() <= 20
    assert len(np.unique(sizes)) >= 15
    assert len({number for crystal in crystals for number in crystal.atomic_numbers.tolist()}) >= 70


def test_splits_have_their_shares_and_no_formula_in_common(rows: Rows) -> None:
    total = sum(len(split) for split in rows.values())
    for name, fraction in SPLITS.items():
        assert len(rows[name]) / total == pytest.approx(fraction, abs=0.02)
    formulas = [{row["pretty_formula"] for row in split} for split in rows.values()]
    assert sum(len(names) for names in formulas) == len(set.union(*formulas))


def test_no_two_crystals_are_the_same(rows: Rows, crystals: list) -> None:
    """Equal formulas come from different prototypes; their canonical forms differ."""
    ids = [row["material_id"] for split in rows.values() for row in split]
    seen: dict[tuple, list[tuple[np.ndarray, str]]] = {}
    for (numbers, coords, lattice), name in zip(map(astuple, canonicalize_many(crystals)), ids, strict=True):
        numbers_key = tuple(numbers.tolist())
        features = np.concatenate([coords.ravel(), (lattice / len(numbers) ** (1 / 3)).ravel() / 5.0])
        for other, other_name in seen.setdefault(numbers_key, []):
            assert np.abs(features - other).max() > 1e-3, (name, other_name)
        seen[numbers_key].append((features, name))


def test_labels_are_those_of_the_crystals(rows: Rows, crystals: list) -> None:
    labels = [row for split in rows.values() for row in split][::7]
    names = ["density", "volume_per_atom", "electronegativity_difference", "num_elements"]
    for row, derived in zip(labels, derive_rows(names, crystals[::7]), strict=True):
        for name in names:
            assert float(row[name]) == pytest.approx(derived[name], rel=1e-5, abs=1e-5)
    groups = derive_rows(["space_group"], crystals[::40], symprec=0.01)
    written = [row for split in rows.values() for row in split][::40]
    agree = [
        float(row["space_group"]) == group["space_group"] for row, group in zip(written, groups, strict=True)
    ]
    assert np.mean(agree) > 0.97


def test_atoms_keep_their_distance_and_volumes_are_those_of_solids(rows: Rows, crystals: list) -> None:
    from pymatgen.core import Element, Lattice, Structure

    density = np.array([float(row["density"]) for split in rows.values() for row in split])
    volume = np.array([float(row["volume_per_atom"]) for split in rows.values() for row in split])
    assert density.max() < 23.0
    assert volume.min() > 5.0
    assert volume.max() < 70.0
    for numbers, coords, lattice in map(astuple, crystals[::60]):
        structure = Structure(Lattice(lattice), numbers.tolist(), coords)
        for index, number in enumerate(numbers.tolist()):
            for other in structure.get_neighbors(structure[index], 3.0):
                radii = (Element.from_Z(number).atomic_radius or 1.2) + (other.specie.atomic_radius or 1.2)
                assert other.nn_distance > 0.5 * radii


def test_most_ionic_compounds_are_charge_balanced(rows: Rows) -> None:
    """pymatgen finds neutral oxidation states for most of the halides and oxides."""
    from pymatgen.core import Composition

    formulas = [Composition(row["pretty_formula"]) for row in rows["val"]]
    ionic = [c for c in formulas if {e.symbol for e in c} & {"O", "F", "Cl"} and len(c) > 1][:150]
    balanced = [bool(composition.oxi_state_guesses()) for composition in ionic]
    assert np.mean(balanced) > 0.9


def test_predicted_volumes_are_close_to_the_known_ones() -> None:
    """The scale predicted for a prototype's own elements: half of them within 10 % of the measured volume."""
    elements = load_elements()
    factors = []
    for prototype in load_prototypes():
        if all(element in elements.mass for element in prototype.elements):
            factors.append(predict_scales(prototype, np.array([prototype.elements]), elements)[0][0] ** 3)
    assert len(factors) > 200
    assert abs(np.median(factors) - 1.0) < 0.05
    assert np.mean(np.abs(np.log(factors)) < 0.105) > 0.5


def test_the_embedded_data_set_ships_with_the_package_in_less_than_3_mb(folder: Path) -> None:
    """It was made on first use, which cost every new user 20 seconds."""
    import latentite

    assert folder.is_relative_to(Path(latentite.__file__).parent)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"README.md", "train.csv.gz", "val.csv.gz", "test.csv.gz"}
    assert sum(files.values()) < 3 << 20


@pytest.mark.slow
def test_the_tool_makes_the_rows_of_the_embedded_data_set_again(folder: Path) -> None:
    for split, text in make_tables().items():
        assert gzip.decompress((folder / f"{split}.csv.gz").read_bytes()).decode() == text


def test_prototypes_are_varied(rows: Rows) -> None:
    counts = Counter(row["prototype"] for split in rows.values() for row in split)
    assert len(counts) > 200
    assert max(counts.values()) < 0.03 * sum(counts.values())
