"""Several fidelities as one data set: no material in two splits, no row lost, labels where they belong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from known_crystals import rock_salt
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset
from latentite.data.fidelities import FidelityConfig, FidelityPart, SplitBy, join_fidelities, material_key
from latentite.training.data_loading import load_data
from latentite.training.settings import DataConfig

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def part(given_ids: dict[str, list[str]], value: float = 0.0, name: str = "energy") -> FidelityPart:
    """One-atom crystals with these ids; the label is `value` everywhere."""
    splits = {}
    for split, ids in given_ids.items():
        arrays = [CrystalArrays(np.array([3 + len(i) % 5]), np.zeros((1, 3)), 3.0 * np.eye(3)) for i in ids]
        crystals = CrystalBatch.from_arrays(arrays).with_properties({name: torch.full((len(ids),), value)})
        splits[split] = CrystalDataset(crystals=crystals, ids=tuple(ids), content_hash="x")
    return FidelityPart(splits=splits)


IDS = st.lists(st.sampled_from([f"mp-{k}" for k in range(30)]), max_size=25)
PARTS = st.one_of(
    st.fixed_dictionaries({"whole": IDS.filter(bool)}),
    st.fixed_dictionaries({"train": IDS.filter(bool)}, optional={"val": IDS, "test": IDS}),
)


@given(st.lists(PARTS, min_size=1, max_size=4), st.integers(0, 5))
def test_no_material_is_in_two_splits_and_no_row_is_lost(given_parts: list[dict], seed: int) -> None:
    parts = {f"f{k}": part(ids) for k, ids in enumerate(given_parts)}
    joint = join_fidelities(parts, fractions=SHARES, seed=seed)
    keys = {split: {material_key(i) for i in dataset.ids} for split, dataset in joint.splits.items()}
    for one in keys:
        for other in keys:
            assert one == other or not keys[one] & keys[other]
    wanted = sorted((k, i) for k, ids in enumerate(given_parts) for found in ids.values() for i in found)
    found = sorted(
        (int(f), i)
        for dataset in joint.splits.values()
        for f, i in zip(dataset.crystals.properties["fidelity"].tolist(), dataset.ids, strict=True)
    )
    assert found == wanted
    for counts in joint.counts.values():
        assert counts.num_in == counts.num_rejected + sum(counts.rows.values())


@given(PARTS, PARTS, st.integers(0, 3))
def test_a_split_that_a_source_has_given_is_kept_or_made_safer(first: dict, second: dict, seed: int) -> None:
    rank = {"train": 0, "val": 1, "test": 2}
    joint = join_fidelities({"a": part(first), "b": part(second)}, fractions=SHARES, seed=seed)
    placed = {i: split for split, dataset in joint.splits.items() for i in dataset.ids}
    for source in (first, second):
        for split, ids in source.items():
            assert all(split == "whole" or rank[placed[i]] >= rank[split] for i in ids)
    # No safer than the safest that was given.
    for i, split in placed.items():
        asked = [s for source in (first, second) for s, ids in source.items() if i in ids and s != "whole"]
        assert not asked or split == max(asked, key=rank.__getitem__)


def test_a_conflict_goes_to_the_test_split_and_is_counted() -> None:
    parts = {
        "PBE": part({"train": ["mp-1", "mp-2", "mp-3"], "test": ["mp-4"]}),
        "HSE": part({"train": ["mp-4", "mp-1"], "val": ["mp-2"]}),
    }
    joint = join_fidelities(parts, fractions=SHARES)
    ids = {split: dataset.ids for split, dataset in joint.splits.items()}
    assert ids == {"train": ("mp-1", "mp-3", "mp-1"), "val": ("mp-2", "mp-2"), "test": ("mp-4", "mp-4")}
    assert joint.counts["PBE"].moved == {"train -> val": 1}
    assert joint.counts["HSE"].moved == {"train -> test": 1}
    told = "4 rows in, 0 rejected, train 2, val 1, test 1, 1 moved train -> val"
    assert str(joint.counts["PBE"]) == told


def test_the_draw_of_a_material_depends_on_nothing_else() -> None:
    many = [f"mp-{k}" for k in range(4000)]
    alone = join_fidelities({"PBE": part({"whole": many})}, fractions=SHARES, seed=3)
    placed = {i: split for split, dataset in alone.splits.items() for i in dataset.ids}
    more = {"PBE": part({"whole": [*reversed(many), "mp-new"]}), "HSE": part({"whole": many[::7]})}
    for split, dataset in join_fidelities(more, fractions=SHARES, seed=3).splits.items():
        assert all(placed.get(i, split) == split for i in dataset.ids)
    shares = {split: len(dataset) / 4000 for split, dataset in alone.splits.items()}
    assert shares == pytest.approx(SHARES, abs=0.03)  # four standard deviations
    other = join_fidelities({"PBE": part({"whole": many})}, fractions=SHARES, seed=4)
    assert other.splits["test"].ids != alone.splits["test"].ids


def test_a_repeat_of_an_id_follows_the_first() -> None:
    many = [f"mp-{k}" for k in range(60)]
    joint = join_fidelities({"PBE": part({"whole": many + [f"{i}#2" for i in many]})}, fractions=SHARES)
    for dataset in joint.splits.values():
        assert {i for i in dataset.ids if "#" in i} == {f"{i}#2" for i in dataset.ids if "#" not in i}


def test_a_label_that_a_fidelity_lacks_is_missing_there_and_counted() -> None:
    parts = {
        "PBE": part({"train": ["mp-1", "mp-2"]}, 1.0, "energy"),
        "HSE": part({"train": ["mp-1"]}, 2.0, "band_gap"),
    }
    train = join_fidelities(parts, fractions=SHARES, properties=["energy", "band_gap"]).splits["train"]
    labels = train.crystals.properties
    assert labels["fidelity"].tolist() == [0.0, 0.0, 1.0]
    assert labels["energy"].isnan().tolist() == [False, False, True]
    assert labels["band_gap"].isnan().tolist() == [True, True, False]
    counts = join_fidelities(parts, fractions=SHARES).counts
    assert counts["PBE"].without_label == {"band_gap": 2}
    assert counts["HSE"].without_label == {"energy": 1}


def test_row_numbers_are_no_ids_but_numbers_of_a_database_are() -> None:
    rows = part({"whole": ["0", "1", "3"]})
    named = part({"whole": ["4754", "1215706", "299"]})
    with pytest.raises(ValueError, match="fidelity b must have a column 'material_id'"):
        join_fidelities({"a": named, "b": rows}, fractions=SHARES)
    assert join_fidelities({"a": named, "b": named}, fractions=SHARES)
    by_formula = join_fidelities({"a": named, "b": rows}, fractions=SHARES, split_by=SplitBy.FORMULA)
    elements = [set(d.crystals.atomic_numbers.tolist()) for d in by_formula.splits.values()]
    assert sum(map(len, elements)) == len(set.union(*elements))


def test_properties_that_no_fidelity_has_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'bulk_modulus'; there are energy"):
        join_fidelities({"PBE": part({"whole": ["mp-1"]})}, fractions=SHARES, properties=["bulk_modulus"])


def write_table(path: Path, rows: list[tuple[str, float, float]], column: str) -> None:
    """CSV of rocksalts: id, lattice constant, label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["material_id", "cif", column])
        for identifier, size, label in rows:
            writer.writerow([identifier, rock_salt("Na", "Cl", size).to(fmt="cif"), label])


def test_files_of_two_fidelities_become_one_data_set(tmp_path: Path) -> None:
    for split, numbers in {"train": range(8), "test": range(8, 11)}.items():
        rows = [(f"mp-{k}", 5.0 + 0.1 * k, -1.0 * k) for k in numbers]
        write_table(tmp_path / "pbe" / f"{split}.csv", rows, "energy")
    rows = [(f"mp-{k}", 5.0 + 0.1 * k, 10.0 * k) for k in (0, 1, 9)]
    write_table(tmp_path / "chgnet.csv", [*rows, ("mp-bad", 0.3, 0.0)], "chgnet_energy")
    config = DataConfig(
        cache_dir=tmp_path / "cache",
        workers=1,
        properties=["energy"],
        split_fractions={"train": 1.0},
        fidelities={
            "PBE": FidelityConfig(path=tmp_path / "pbe"),
            "CHGNet": FidelityConfig(path=tmp_path / "chgnet.csv", columns={"energy": "chgnet_energy"}),
        },
    )
    data = load_data(config)
    train, test = data.splits["train"], data.splits["test"]
    assert train.ids == (*(f"mp-{k}" for k in range(8)), "mp-0", "mp-1")
    assert train.crystals.properties["energy"].tolist() == [-1.0 * k for k in range(8)] + [0.0, 10.0]
    assert test.ids == ("mp-8", "mp-9", "mp-10", "mp-9")
    assert test.crystals.properties["energy"].tolist() == [-8.0, -9.0, -10.0, 90.0]
    assert data.counts["CHGNet"].num_in == 4
    assert data.counts["CHGNet"].num_rejected == 1
    assert load_data(config).splits["train"].content_hash == train.content_hash
