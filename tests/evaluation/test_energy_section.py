"""An evaluation with a potential and a hull that is known exactly: ASE's EMT, which knows Cu, Au, Ni, Pd and others.

The hull's table has copper, gold and Cu3Au at their EMT minima, with formation energies against EMT's own elements; so
what relaxes into one of these must come out at 0 eV/atom above the hull.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure
from scipy.optimize import minimize_scalar
from scipy.stats import wasserstein_distance

import latentite
from latentite import cli
from latentite.energy.potential import TheoryLevel
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.energy.table import read_rows
from latentite.evaluation.options import PROTOCOLS, EnergyOptions

SITES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
EMT_THEORY = TheoryLevel(functional="EMT", is_corrected=False)
OPTIONS = [
    *("--relax", "ase.calculators.emt:EMT", "--fmax", "0.01", "--workers", "1"),
    *("--potential-theory", "EMT, uncorrected", "--hull-theory", "EMT, uncorrected"),
]


def energy(species: str, a: float) -> float:
    """eV/atom of four atoms on fcc sites in a cubic cell, by EMT."""
    symbols = {"Cu": "Cu4", "Au": "Au4", "Cu3Au": "AuCu3"}.get(species, species)
    atoms = Atoms(symbols, scaled_positions=SITES, cell=np.eye(3) * a, pbc=True)
    atoms.calc = EMT()
    return float(atoms.get_potential_energy()) / 4


def fcc(elements: list[str], a: float, rattle: float = 0.0) -> Structure:
    moved = SITES + np.random.default_rng(0).normal(0, rattle / a, SITES.shape)
    return Structure(Lattice.cubic(a), elements, moved)


@pytest.fixture(scope="module")
def minima() -> dict[str, tuple[float, float]]:
    """Cell length (Å) and energy (eV/atom) at the minimum."""
    found = {}
    for name in ("Cu", "Au", "Cu3Au"):
        best = minimize_scalar(lambda a, n=name: energy(n, a), bounds=(3.4, 4.4), method="bounded")
        found[name] = (float(best.x), float(best.fun))
    return found


@pytest.fixture(scope="module")
def hull(minima: dict[str, tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each phase at its minimum and at nine other volumes, at the energy that it has there."""
    path = tmp_path_factory.mktemp("hull") / "phases.csv"
    copper, gold = minima["Cu"][1], minima["Au"][1]
    references = {"Cu": copper, "Au": gold, "Cu3Au": 0.75 * copper + 0.25 * gold}
    species = {"Cu": ["Cu"] * 4, "Au": ["Au"] * 4, "Cu3Au": ["Au", "Cu", "Cu", "Cu"]}
    rows = []
    for name, (a, lowest) in minima.items():
        for k in range(10):
            length = a * (1 + 0.005 * k)
            height = energy(name, length) - lowest
            row = [f"{name}-{k}", energy(name, length) - references[name], height]
            rows.append([*row, fcc(species[name], length).to(fmt="cif")])
    with path.open("w", newline="") as file:
        header = ["material_id", "formation_energy_per_atom", "e_above_hull", "cif"]
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def samples(minima: dict[str, tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    a = {name: length for name, (length, _) in minima.items()}
    structures = {
        "a_copper": fcc(["Cu"] * 4, 1.03 * a["Cu"], 0.05),
        "b_cu3au": fcc(["Au", "Cu", "Cu", "Cu"], 0.97 * a["Cu3Au"], 0.05),
        "c_nickel": fcc(["Ni"] * 4, 3.5, 0.02),
        "d_palladium": fcc(["Pd", "Pd", "Cu", "Cu"], 3.8, 0.02),
        "e_iron": fcc(["Fe"] * 4, 3.6),  # EMT has no iron
        "f_overlap": Structure(Lattice.cubic(3.6), ["Cu", "Cu"], [[0, 0, 0], [0.02, 0, 0]]),
    }
    for name, structure in structures.items():
        (folder / f"{name}.cif").write_text(structure.to(fmt="cif"))
    (folder / "g_empty.cif").write_text("")
    return folder


@pytest.fixture(scope="module")
def report(samples: Path, hull: Path) -> Path:
    out = samples.parent / "energy_report"
    read_rows.cache_clear()
    reference = ["--reference", str(hull), "--reference-split", "all", "--hull", str(hull)]
    assert cli.main(["evaluate", str(samples), "--out", str(out), *OPTIONS, *reference]) == 0
    return out


@pytest.fixture(scope="module")
def rows(report: Path) -> dict[str, dict[str, str]]:
    with (report / "structures.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def summary(report: Path) -> dict:
    return dict(json.loads((report / "summary.json").read_text(encoding="utf-8")))


def test_what_relaxes_into_a_phase_of_the_hull_is_at_zero(
    rows: dict[str, dict[str, str]], minima: dict[str, tuple[float, float]]
) -> None:
    for name, phase in (("a_copper", "Cu"), ("b_cu3au", "Cu3Au")):
        row = rows[name]
        assert row["energy_status"] == "converged"
        assert float(row["relaxed_energy"]) == pytest.approx(minima[phase][1], abs=1e-3)
        assert float(row["relaxed_energy_above_hull"]) == pytest.approx(0.0, abs=2e-3)
        raised = float(row["energy_above_hull"]) - float(row["relaxed_energy_above_hull"])
        assert raised == pytest.approx(float(row["energy"]) - float(row["relaxed_energy"]), abs=1e-5)
        assert raised > 0.005
        assert row["relaxed_metastable"] == "yes"
        assert row["relaxed_novel"] == "no"  # the reference is the hull's table


def test_elements_that_the_hull_does_not_know_are_named_and_counted(
    rows: dict[str, dict[str, str]], summary: dict
) -> None:
    energies = summary["energies"]
    assert energies["unknown_elements"] == {"Ni": 1, "Pd": 1, "Fe": 1}  # iron also lacks an energy
    assert {"Ni", "Cu-Pd"} <= set(energies["unknown_systems"])
    for name in ("c_nickel", "d_palladium"):
        assert rows[name]["energy_status"] == "converged"
        assert rows[name]["relaxed_energy"] != ""
        assert rows[name]["energy_above_hull"] == rows[name]["relaxed_stable"] == ""


def test_in_is_scored_and_failed_and_every_gap_has_a_reason(report: Path, summary: dict) -> None:
    assert (summary["num_in"], summary["num_scored"], summary["num_failed"]) == (7, 6, 1)
    assert sum(summary["energies"]["status"].values()) == 6
    assert summary["energies"]["status"]["converged"] == 4
    with (report / "failed.csv").open(newline="", encoding="utf-8") as file:
        failed = {(row["id"], row["step"]): row["reason"] for row in csv.DictReader(file)}
    assert all(failed.values())
    assert {("e_iron", "energy"), ("f_overlap", "energy"), ("g_empty", "read")} <= failed.keys()
    assert ("c_nickel", "energy_above_hull") in failed
    assert "closer than" in failed["f_overlap", "energy"]


def test_rates_of_stability_leave_out_what_is_unknown_and_sun_does_not(summary: dict) -> None:
    rates = {name: (rate["numerator"], rate["denominator"]) for name, rate in summary["rates"].items()}
    assert rates["relax_converged"] == (4, 6)
    assert rates["relaxed_metastable"] == (2, 2)
    assert rates["metastable"][1] == 2
    assert rates["relaxed_msun"] == (0, 7)  # metastable ones are known
    assert rates["relaxed_unique"] == (4, 4)
    assert rates["relaxed_novel"] == (2, 4)


def test_relaxed_structures_are_what_ase_reads(report: Path, rows: dict[str, dict[str, str]]) -> None:
    from ase.io import read

    frames = read(report / "relaxed.extxyz", index=":")
    assert [frame.info["id"] for frame in frames] == list(rows)
    copper = frames[0]
    assert copper.get_potential_energy() / 4 == pytest.approx(
        float(rows["a_copper"]["relaxed_energy"]), abs=1e-5
    )
    copper.calc = EMT()
    assert np.abs(copper.get_forces()).max() < 0.02


def test_a_table_with_each_element_once_has_no_residual_and_the_summary_no_nan(
    samples: Path, hull: Path, tmp_path: Path
) -> None:
    lines = list(csv.reader(hull.read_text().splitlines(keepends=True)))
    with (tmp_path / "elements.csv").open("w", newline="") as file:
        csv.writer(file).writerows([lines[0], *(line for line in lines if line[0] in ("Cu-0", "Au-0"))])
    arguments = ["--out", str(tmp_path / "out"), *OPTIONS, "--hull", str(tmp_path / "elements.csv")]
    assert cli.main(["evaluate", str(samples / "a_copper.cif"), *arguments]) == 0
    text = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in summary.json"))
    assert found["energies"]["hull"]["element_references"]["left_out_residual"] is None


def test_resuming_gives_the_same_table(report: Path, samples: Path, hull: Path) -> None:
    before = (report / "structures.csv").read_bytes()
    (report / "structures.csv").unlink()
    reference = ["--reference", str(hull), "--reference-split", "all", "--hull", str(hull)]
    arguments = ["evaluate", str(samples), "--out", str(report), *OPTIONS, *reference, "--resume"]
    assert cli.main(arguments) == 0
    assert (report / "structures.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--relax", "chgnett"], "or package.module:Class of an ASE calculator, got 'chgnett'"),
        (["--hull", "mp_20"], "--hull must be given together with --relax"),
        (
            ["--relax-steps", "5", "--allow-mixed-theory"],
            "--allow-mixed-theory, --relax-steps must be given together",
        ),
        (["--relax", "ase.calculators.emt:EMT", "--hull", "nowhere.csv"], "nowhere.csv"),
        (
            ["--relax", "ase.calculators.emt:EMT", "--potential-theory", "PBE"],
            "a level of theory is written as",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code = cli.main(["evaluate", str(samples), "--out", str(tmp_path / "out"), *options])
    errors = capsys.readouterr().err.strip()
    assert (code, "\n" in errors) == (2, False)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_levels_of_theory_that_do_not_fit_are_refused_unless_allowed(
    samples: Path, hull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_rows.cache_clear()
    mixed = ["evaluate", str(samples), "--out", str(tmp_path / "out"), "--hull", str(hull)]
    mixed += ["--relax", "ase.calculators.emt:EMT", "--relax-cell", "none", "--workers", "1"]
    assert cli.main(mixed) == 2
    assert "theory" in capsys.readouterr().err
    assert cli.main([*mixed, "--allow-mixed-theory"]) == 0


def test_energies_are_held_against_the_labels_of_the_reference(
    summary: dict, rows: dict[str, dict[str, str]], hull: Path
) -> None:
    with hull.open(newline="") as file:
        labels = list(csv.DictReader(file))
    pairs = {
        "formation_energy": "formation_energy_per_atom",
        "relaxed_formation_energy": "formation_energy_per_atom",
        "energy_above_hull": "e_above_hull",
        "relaxed_energy_above_hull": "e_above_hull",
    }
    found = summary["energies"]["wasserstein_eV_per_atom"]
    assert found.keys() == pairs.keys()
    for column, label in pairs.items():
        ours = [float(row[column]) for row in rows.values() if row[column]]
        theirs = [float(row[label]) for row in labels]
        assert found[column] == pytest.approx(wasserstein_distance(ours, theirs), abs=1e-5)


def test_the_report_says_how_many_phases_the_hull_lacks(samples: Path, hull: Path, tmp_path: Path) -> None:
    """Fewer phases make everything look stable, and the reader of a report must know."""
    lines = list(csv.reader(hull.read_text().splitlines(keepends=True)))
    lines.append([f"copy-{lines[-1][0]}", "#N/A", *lines[-1][2:]])
    with (tmp_path / "gaps.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    arguments = ["--out", str(tmp_path / "out"), *OPTIONS, "--hull", str(tmp_path / "gaps.csv")]
    assert cli.main(["evaluate", str(samples), *arguments]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["energies"]["hull"]["missing_phases"]
    assert found == {"num_rows": len(lines) - 1, "without_energy": 1, "unreadable": 0}
    assert (
        f"1 of {len(lines) - 1} phases of this table are missing"
        in (tmp_path / "out" / "report.html").read_text()
    )


def test_a_reference_with_an_energy_that_is_no_number_is_refused_and_not_passed_over(
    samples: Path, hull: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a reference was silently no hull, and nothing was called stable."""
    lines = list(csv.reader(hull.read_text().splitlines(keepends=True)))
    lines[1][1] = "0.0 eV"
    with (tmp_path / "units.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    for option in ("--hull", "--reference"):
        read_rows.cache_clear()
        arguments = ["--out", str(tmp_path / "out"), *OPTIONS, option, str(tmp_path / "units.csv")]
        assert cli.main(["evaluate", str(samples), *arguments]) != 0
        assert "formation_energy_per_atom must be numbers (eV/atom), got '0.0 eV' in row 0 of units.csv" in (
            capsys.readouterr().err
        )


def test_the_threshold_of_a_protocol_is_the_number_that_it_says(
    samples: Path, hull: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any threshold above 0 gave the column of 0.1 eV/atom: `stable_below` was taken for a yes."""
    known = Structure(Lattice.cubic(5.0), ["Pd"], [[0, 0, 0]])  # so that everything is novel

    def counted(threshold: float) -> tuple[list[bool | None], list[float | None]]:
        protocol = replace(PROTOCOLS["default"], name="mine", judges_relaxed=False, stable_below=threshold)
        monkeypatch.setitem(PROTOCOLS, "mine", protocol)
        theory = {"theory": EMT_THEORY, "hull_theory": EMT_THEORY}
        options = EnergyOptions(
            potential="ase.calculators.emt:EMT",
            settings=RelaxSettings(cell=RelaxCell.NONE),
            hull=(hull,),
            **theory,
        )
        result = latentite.evaluate(samples, reference=[known], protocol="mine", relax=options, workers=1)
        return result.table["protocol_sun"], result.table["energy_above_hull"]

    _, heights = counted(0.0)
    known_heights = sorted(height for height in heights if height is not None)
    assert len(known_heights) >= 2
    between = [-1.0, sum(known_heights[:2]) / 2, known_heights[-1] + 0.01]
    for number, threshold in enumerate(between):
        verdicts, _ = counted(threshold)
        expected = [None if height is None else height <= threshold for height in heights]
        assert verdicts == expected
        assert sum(verdict is True for verdict in verdicts) == (0, 1, len(known_heights))[number]


def test_the_thresholds_of_a_protocol_stand_in_the_summary(summary: dict) -> None:
    protocol = summary["protocol"]
    assert (protocol["stable_below"], protocol["judges_relaxed"], protocol["msun"]) == (0.0, True, None)
