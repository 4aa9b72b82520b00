"""The hull against pymatgen's `PhaseDiagram`, and what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.hull import (
    Hull,
    hull_from_crystals,
    hull_from_json,
)
from latentite.energy.potential import TheoryLevel
from latentite.formulas import Composition, compositions, parse_formula, plain_formula

PBE = TheoryLevel(functional="PBE(+U)", is_corrected=True)
ELEMENTS = (3, 8, 26, 15)


def random_phases(seed: int, count: int, num_elements: int) -> list[tuple[Composition, float]]:
    """Compounds and elements with random formation energies; several of one composition, some above the hull."""
    rng = np.random.default_rng(seed)
    phases = []
    for _ in range(count):
        amounts = rng.integers(0, 4, num_elements)
        amounts[rng.integers(num_elements)] += 1
        composition = tuple(sorted((ELEMENTS[k], int(n)) for k, n in enumerate(amounts) if n))
        if len(composition) > 1:
            phases.append((composition, float(rng.normal(-1.0, 0.8))))
    return phases + [(((number, 1),), 0.0) for number in ELEMENTS[:num_elements]]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_elements=st.integers(2, 4))
def test_it_is_the_phase_diagram_of_pymatgen(seed: int, num_elements: int) -> None:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition as PymatgenComposition

    phases = random_phases(seed, 25, num_elements)
    diagram = PhaseDiagram(
        [PDEntry(PymatgenComposition(plain_formula(c)), e * sum(n for _, n in c)) for c, e in phases]
    )
    hull = Hull(phases)
    for composition, _ in random_phases(seed + 1, 12, num_elements):
        query = hull.query(composition)
        if query.num_competing == 0 and len(composition) > 1:
            assert query.energy is None  # pymatgen would say 0, the mixture of the elements
            continue
        name = PymatgenComposition(plain_formula(composition))
        assert query.energy == pytest.approx(diagram.get_hull_energy_per_atom(name), abs=1e-9)
        total = sum(share for _, share in query.decomposition)
        assert total == pytest.approx(1.0, abs=1e-9)
        # A crystal far above and one far below the hull.
        for energy in (2.0, -9.0):
            entry = PDEntry(name, energy * name.num_atoms)
            expected = diagram.get_decomp_and_e_above_hull(entry, allow_negative=True, check_stable=False)[1]
            (above,), _ = hull.energy_above_hull([composition], [energy])
            assert above == pytest.approx(expected, abs=1e-9)


def test_a_crystal_below_the_hull_is_negative_and_one_above_positive() -> None:
    hull = Hull([(parse_formula("Li2O"), -2.0)])
    above, competing = hull.energy_above_hull(
        [parse_formula("LiO"), parse_formula("Li2O"), parse_formula("Li4O2")], [-1.0, -2.25, -1.5]
    )
    # LiO = 3/4 Li2O + 1/4 O, at -1.5 eV/atom.
    assert above == pytest.approx([0.5, -0.25, 0.5])
    assert competing == [1, 1, 1]


def test_a_system_without_references_is_unknown() -> None:
    hull = Hull([(parse_formula("Li2O"), -2.0), (parse_formula("FeP"), -0.5)])
    names = ["LiFe", "LiNa", "LiFeO2", "Li", "He"]
    above, competing = hull.energy_above_hull([parse_formula(name) for name in names], [-1.0] * 5)
    assert [value is None for value in above] == [True, True, False, False, True]
    assert above[3] == -1.0
    assert competing == [0, 0, 1, 0, 0]
    assert hull.energy_above_hull([parse_formula("Li2O")], [np.nan])[0] == [None]


def test_rows_enter_at_the_height_of_the_hull() -> None:
    sodium_chloride = CrystalArrays(
        np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), 3.5 * np.eye(3)
    )
    properties = {
        "formation_energy_per_atom": torch.tensor([-1.0, -1.5, torch.nan, -1.75]),
        "e_above_hull": torch.tensor([1.0, torch.nan, 0.0, 0.0]),
    }
    crystals = CrystalBatch.from_arrays([sodium_chloride] * 4).with_properties(properties)
    assert hull_from_crystals(crystals.select(torch.tensor([0]))).phases[(11, 1), (17, 1)] == -2.0
    renamed = {"energy_above_hull" if name == "e_above_hull" else name: v for name, v in properties.items()}
    ours = hull_from_crystals(crystals.with_properties(renamed))  # the name in our own data sets
    assert ours.phases == hull_from_crystals(crystals).phases
    assert hull_from_crystals(crystals.select(torch.tensor([1, 2, 3]))).phases[(11, 1), (17, 1)] == -1.75
    with pytest.raises(ValueError, match="needs the property 'formation_energy_per_atom', got none"):
        hull_from_crystals(crystals.with_properties({}))


def test_entries_give_formation_energies(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"

    def hull_of(*rows: tuple[dict[str, int], float]) -> Hull:
        path.write_text(json.dumps([{"composition": amounts, "energy": energy} for amounts, energy in rows]))
        return hull_from_json(path)

    entries = [({"Li": 4}, -8.0), ({"Li": 1}, -1.5), ({"O": 2}, -10.0)]
    hull = hull_of(*entries, ({"Li": 2, "O": 1}, -15.0))
    assert hull.query(parse_formula("Li2O")).energy == pytest.approx((-15.0 + 4.0 + 5.0) / 3)
    with pytest.raises(ValueError, match="got none of Fe"):
        hull_of(*entries, ({"Fe": 1, "O": 1}, -15.0))


def test_json_of_a_phase_diagram_or_of_entries_gives_the_same_hull(tmp_path: Path) -> None:
    from monty.json import MontyEncoder
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.entries.computed_entries import CompositionEnergyAdjustment, ComputedEntry

    oxide = CompositionEnergyAdjustment(-0.5, 1, name="O")
    entries = [
        ComputedEntry("Li4", -8.0),
        PDEntry("O2", -10.0),
        ComputedEntry("Li2O", -15.0, energy_adjustments=[oxide]),
    ]
    path = tmp_path / "diagram.json"
    for content in (PhaseDiagram(entries).as_dict(), [entry.as_dict() for entry in entries]):
        path.write_text(json.dumps(content, cls=MontyEncoder))
        hull = hull_from_json(path, theory=PBE)
        # Li2O with its correction: (-15.5 + 4 + 5) / 3.
        assert hull.query(parse_formula("Li2O")).energy == pytest.approx(-6.5 / 3)
        assert hull.theory == PBE
    hull.write(path)
    assert hull_from_json(path).phases == hull.phases


def test_json_that_is_no_hull_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(FileNotFoundError, match=r"some\.json"):
        hull_from_json(path)
    for content, words in (
        ("no", r"some\.json must be a hull as JSON"),
        ('{"a": 1}', r"some\.json must hold a hull"),
        (
            '[{"composition": {"Li": 1}, "energy": -1}, {"composition": {"Xx": 1}, "energy": 1}]',
            "entry 1 must",
        ),
        ('[{"composition": {"Li": 1, "O": 1}, "energy": -1}]', r"some\.json: .* got none of Li, O"),
        (
            '[{"composition": {"Li": 1}, "energy": -1}, {"composition": {"Li": -2}, "energy": 1}]',
            "entry 1 must",
        ),
        ("[]", r"some\.json must hold a hull"),
        ('{"latentite.hull": 1}', r"some\.json must be a hull of format 2"),
        ('{"latentite.hull": 2}', r"some\.json is damaged"),
        ('{"latentite.hull": 2, "theory": ["PBE"], "phases": [], "sha256": ""}', r"some\.json is damaged"),
        ('{"latentite.hull": 2, "theory": null, "phases": [3], "sha256": ""}', r"some\.json is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            hull_from_json(path)
    Hull([(parse_formula("LiO"), -1.0)], theory=PBE).write(path)
    with pytest.raises(ValueError, match="not of r2SCAN"):
        hull_from_json(path, theory=TheoryLevel(functional="r2SCAN", is_corrected=False))


def test_a_hull_comes_back_from_its_file_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    theory = TheoryLevel(functional="PBE(+U)", is_corrected=True)
    hull = Hull(random_phases(0, 30, 4), theory=theory)
    path = tmp_path / "hull.json"
    hull.write(path)
    again = Hull.read(path)
    assert again.phases == hull.phases
    assert (again.sha256, again.theory) == (hull.sha256, theory)
    assert Hull(random_phases(1, 30, 4)).sha256 != hull.sha256
    path.write_text(path.read_text().replace('"PBE', '"PBF').replace("-0.", "-1.", 1))
    with pytest.raises(ValueError, match="has changed"):
        Hull.read(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must be a hull"):
        Hull.read(path)


def test_compositions_of_a_batch() -> None:
    cell = 9.0 * np.eye(3)
    rng = np.random.default_rng(0)
    batch = CrystalBatch.from_arrays(
        [CrystalArrays(np.array(n), rng.random((len(n), 3)), cell) for n in ([8, 8, 26, 26], [3], [8, 3, 3])]
    )
    assert compositions(batch) == [((8, 1), (26, 1)), ((3, 1),), ((3, 2), (8, 1))]


def test_what_is_no_formula_is_refused() -> None:
    with pytest.raises(ValueError, match="such as LiFePO4"):
        parse_formula("Xx2")


def test_the_hash_of_a_hull_covers_its_level_of_theory(tmp_path: Path) -> None:
    """Another functional in the file went unnoticed, and two hulls of equal numbers and other theories were one."""
    phases = random_phases(0, 30, 4)
    theories = [PBE, TheoryLevel(functional="PBE(+U)", is_corrected=False), None]
    theories += [
        TheoryLevel(functional="r2SCAN", is_corrected=True),
        TheoryLevel(functional="r2SCAN", is_corrected=None),
    ]
    hashes = {Hull(phases, theory=theory).sha256 for theory in theories}
    assert len(hashes) == len(theories)
    path = tmp_path / "hull.json"
    Hull(phases, theory=PBE).write(path)
    for before, after in (("PBE(+U)", "r2SCAN"), ("true", "false"), ("true", "null")):
        Hull(phases, theory=PBE).write(path)
        path.write_text(path.read_text().replace(before, after, 1))
        with pytest.raises(ValueError, match="has changed since it was written"):
            Hull.read(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "theory": None}))
    with pytest.raises(ValueError, match="has changed since it was written"):
        hull_from_json(path, theory=PBE)
