"""A set with planted faults is reported exactly: copies, known crystals, overlaps, unreadable files.

24 crystals in the structures and cell lengths of the textbooks; 20 copies of them (rotated, translated, permuted,
in supercells, and all at once); 10 copies of crystals of the reference in other cells; 5 crystals with two atoms
on nearly one site; 3 files that are none. Among them are pairs of one formula and different structure, which are
no copies.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from latentite import cli

FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
OCTAHEDRAL, TETRAHEDRAL = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice(a * FCC), [cation, anion], [[0, 0, 0], OCTAHEDRAL])


def zinc_blende(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice(a * FCC), [cation, anion], [[0, 0, 0], TETRAHEDRAL])


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [cation, anion], [[0, 0, 0], OCTAHEDRAL])


def fluorite(cation: str, anion: str, a: float) -> Structure:
    sites = [[0, 0, 0], TETRAHEDRAL, [0.75, 0.75, 0.75]]
    return Structure(Lattice(a * FCC), [cation, anion, anion], sites)


def perovskite(first: str, second: str, anion: str, a: float) -> Structure:
    sites = [OCTAHEDRAL, [0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]
    return Structure(Lattice.cubic(a), [first, second, *[anion] * 3], sites)


def rutile(cation: str, anion: str, a: float, c: float) -> Structure:
    u = 0.305
    anions = [[u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    return Structure(Lattice.tetragonal(a, c), [cation] * 2 + [anion] * 4, [[0, 0, 0], OCTAHEDRAL, *anions])


NEW = [
    *(rock_salt("Li", "F", 4.03), rock_salt("Li", "Cl", 5.13), rock_salt("Na", "Br", 5.97)),
    *(rock_salt("K", "F", 5.34), rock_salt("K", "Cl", 6.29), rock_salt("Rb", "F", 5.65)),
    *(rock_salt("Mg", "O", 4.21), rock_salt("Ca", "O", 4.81), rock_salt("Rb", "Cl", 6.58)),
    *(
        caesium_chloride("Cs", "Br", 4.29),
        caesium_chloride("K", "F", 3.2),
    ),  # KF is there as rock salt as well
    *(zinc_blende("Zn", "S", 5.41), zinc_blende("Cd", "Te", 6.48), zinc_blende("Mg", "O", 4.6)),  # so is MgO
    *(fluorite("Ca", "F", 5.46), fluorite("Ba", "F", 6.20), fluorite("Zr", "O", 5.07)),
    *(perovskite("Sr", "Ti", "O", 3.905), perovskite("Ba", "Ti", "O", 4.0), perovskite("K", "Mg", "F", 3.99)),
    *(rutile("Sn", "O", 4.74, 3.19), rutile("Mg", "F", 4.62, 3.05)),
    *(
        rutile("Ti", "O", 4.59, 2.96),
        rock_salt("Na", "F", 4.63),
    ),  # the reference has both in other structures
]
KNOWN = [
    *(rock_salt("Sr", "O", 5.16), rock_salt("Ba", "O", 5.54), rock_salt("Na", "I", 6.47)),
    *(rock_salt("K", "Br", 6.60), fluorite("Sr", "F", 5.80), fluorite("Ce", "O", 5.41)),
    *(perovskite("Ca", "Ti", "O", 3.84), perovskite("K", "Mn", "F", 4.19), zinc_blende("Cd", "S", 5.82)),
    rutile("Ge", "O", 4.40, 2.86),
    *(
        zinc_blende("Na", "F", 5.0),
        fluorite("Ti", "O", 4.9),
    ),  # polymorphs: nothing among the samples matches them
]
SUPERCELLS = [np.diag([2, 1, 1]), [[1, 1, 0], [0, 2, 1], [0, 0, 1]], [[0, 1, 1], [1, 0, 1], [1, 1, 0]]]


def copy_of(structure: Structure, number: int, kind: str) -> Structure:
    """The same crystal, written otherwise."""
    generator = np.random.default_rng(number)
    copy = structure.copy()
    if kind in ("supercell", "all"):
        copy.make_supercell(SUPERCELLS[number % 3])
    lattice, species, coords = copy.lattice.matrix, copy.species, copy.frac_coords
    if kind in ("rotated", "all"):
        lattice = lattice @ Rotation.random(rng=generator).as_matrix()
    if kind in ("translated", "all"):
        coords = coords + generator.random(3)
    order = generator.permutation(len(species)) if kind in ("permuted", "all") else np.arange(len(species))
    return Structure(Lattice(lattice), [species[i] for i in order], coords[order])


KINDS = ("rotated", "translated", "permuted", "supercell", "all")
COPIES = [copy_of(NEW[i], i, KINDS[i % 5]) for i in range(20)]
KNOWN_COPIES = [copy_of(KNOWN[i], i, "all") for i in range(10)]
OVERLAPS = [
    Structure(one.lattice, one.species, [[0, 0, 0], [0.03, 0.01, 0.0]])
    for one in (rock_salt("Cs", "F", 6.0), rock_salt("Rb", "Br", 6.9), rock_salt("Rb", "I", 7.3))
] + [
    Structure(
        Lattice.cubic(4.2), ["Cs", "Cs", "I", "I"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0.5, 0.06, 0]]
    ),
    Structure(Lattice.cubic(3.9), ["Be", "O"], [[0, 0, 0], [0, 0, 0.99]]),  # across the border of the cell
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated by the command, from CIFs and POSCARs (which keep the orientation) in one folder."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "samples").mkdir()
    sets = {"a_new": NEW, "b_copy": COPIES, "c_known": KNOWN_COPIES, "d_overlap": OVERLAPS}
    for name, structures in sets.items():
        for number, structure in enumerate(structures):
            is_poscar = name == "b_copy" and number % 5 in (0, 4)
            ending, form = (".vasp", "poscar") if is_poscar else (".cif", "cif")
            (folder / "samples" / f"{name}_{number:02d}{ending}").write_text(structure.to(fmt=form))
    (folder / "samples" / "e_cut.cif").write_text(NEW[0].to(fmt="cif")[:300])
    (folder / "samples" / "e_empty.cif").write_text("")
    (folder / "samples" / "e_html.cif").write_text("<!doctype html><title>404</title>")
    (folder / "known").mkdir()
    for number, structure in enumerate(KNOWN):
        (folder / "known" / f"{number:02d}.cif").write_text(structure.to(fmt="cif"))
    options = ["--reference", str(folder / "known"), "--out", str(folder / "report"), "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:  # the page takes most of the time, and has tests of its own
        patch.setattr("latentite.evaluation.report.make_page", lambda result, summary, seed: "page")
        code = cli.main(["evaluate", str(folder / "samples"), *options])
    assert code == 0
    return folder / "report"


@pytest.fixture(scope="module")
def rows(report: Path) -> dict[str, dict[str, str]]:
    """Of `structures.csv`, by id."""
    with (report / "structures.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_every_copy_is_a_duplicate_of_its_original_and_nothing_else_is(
    rows: dict[str, dict[str, str]],
) -> None:
    found = {name: row["duplicate_of_strict"] for name, row in rows.items() if row["unique"] == "no"}
    assert found == {f"b_copy_{i:02d}": f"a_new_{i:02d}" for i in range(20)}
    assert all(row["unique"] == "yes" for name, row in rows.items() if name not in found)


def test_every_known_crystal_names_its_reference_and_polymorphs_are_new(
    rows: dict[str, dict[str, str]],
) -> None:
    found = {name: row["matched_reference_strict"] for name, row in rows.items() if row["novel"] == "no"}
    assert found == {f"c_known_{i:02d}": f"{i:02d}" for i in range(10)}
    old = {name for name, row in rows.items() if row["new_formula"] == "no"}
    assert old == {*found, "a_new_22", "a_new_23"}


def test_overlaps_are_the_only_invalid_structures(rows: dict[str, dict[str, str]]) -> None:
    invalid = {name for name, row in rows.items() if row["structure_valid"] == "no"}
    assert invalid == {f"d_overlap_{i:02d}" for i in range(5)}
    assert all(float(rows[name]["min_distance"]) < 0.5 for name in invalid)
    assert float(rows["d_overlap_04"]["min_distance"]) == pytest.approx(0.039, rel=1e-4)


def test_unreadable_files_are_failures_with_reasons(report: Path) -> None:
    with (report / "failed.csv").open(newline="", encoding="utf-8") as file:
        failed = list(csv.DictReader(file))
    assert [(row["id"], row["source"]) for row in failed if row["step"] == "read"] == [
        (name, f"{name}.cif") for name in ("e_cut", "e_empty", "e_html")
    ]
    assert failed[1]["reason"] == "an empty file"
    assert "HTML page" in failed[2]["reason"]


def test_the_summary_counts_what_was_planted(report: Path) -> None:
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert (summary["num_in"], summary["num_scored"], summary["num_failed"]) == (62, 59, 3)
    # Atoms nearer to each other than the tolerance of the symmetry are no orbits: no Wyckoff letters, and counted.
    assert summary["failures_by_step"] == {"read": 3, "wyckoff": 1}
    counts = {name: (rate["numerator"], rate["denominator"]) for name, rate in summary["rates"].items()}
    assert counts["readable"] == (59, 62)
    assert counts["min_distance_ok"] == counts["structure_valid"] == counts["valid"] == (54, 59)
    assert counts["composition_valid"] == (59, 59)
    assert counts["unique"] == (39, 59)
    assert counts["novel"] == (49, 59)
    assert counts["new_formula"] == (47, 59)
    assert counts["valid_unique_novel"] == (24, 62)


def test_copies_have_what_does_not_depend_on_how_a_crystal_is_written(
    rows: dict[str, dict[str, str]],
) -> None:
    for i in range(20):
        first, copy = rows[f"a_new_{i:02d}"], rows[f"b_copy_{i:02d}"]
        for name in ("formula", "space_group_0.1", "smact_icsd24", "hhi_production"):
            assert copy[name] == first[name]
        for name in ("volume_per_atom", "density", "min_distance"):
            assert float(copy[name]) == pytest.approx(float(first[name]), rel=1e-4)
