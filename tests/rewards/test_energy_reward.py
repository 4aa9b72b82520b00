"""Stability as a reward: where its table comes from, and that a run without one does not begin."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.energy.table import FORMATION_ENERGY, find_table, read_rows
from latentite.rewards.combine import RewardConfig, Rewards, RewardWorkers
from latentite.rewards.energy import EnergyAboveHull

LEVEL = "Lennard-Jones, uncorrected"
LJ = {
    "potential": "ase.calculators.lj:LennardJones",
    "sigma": 2.5,
    "epsilon": 0.2,
    "rc": 6.0,
    "potential_theory": LEVEL,
    "theory": LEVEL,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `mine` of fcc mixtures of Ne and Ar, whose formation energies are what the calculator says."""
    from ase.calculators.lj import LennardJones
    from pymatgen.io.ase import AseAtomsAdaptor

    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LATENTITE_DATA_DIR", raising=False)
    read_rows.cache_clear()
    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        sites = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        crystal = Structure(Lattice.cubic(3.9 + 0.01 * k), rng.choice(["Ne", "Ar"], 4), sites)
        atoms = AseAtomsAdaptor.get_atoms(crystal)
        atoms.calc = LennardJones(sigma=2.5, epsilon=0.2, rc=6.0)
        rows.append([f"m-{k}", atoms.get_potential_energy() / 4, 0.0, crystal.to(fmt="cif")])
    inside = tmp_path / "data" / "mine"
    inside.mkdir(parents=True)
    for split, part in (("train", rows[:8]), ("val", rows[8:10]), ("test", rows[10:])):
        with (inside / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["material_id", FORMATION_ENERGY, "e_above_hull", "cif"], *part])
    return tmp_path / "data"


def test_the_table_is_taken_from_the_folder_of_the_run(folder: Path) -> None:
    """`data.data_dir` is the folder of the splits, or one that holds a folder of the data set's name."""
    for given in (folder, folder / "mine"):
        reward = EnergyAboveHull(table="mine", data_dir=str(given), **LJ)
        crystals = read_rows(find_table("mine", data_dir=given))
        values = reward(crystals.to_structures(), crystals)
        energies = crystals.properties[FORMATION_ENERGY].tolist()
        formulas = [structure.composition.reduced_formula for structure in crystals.to_structures()]
        best = {f: min(e for e, g in zip(energies, formulas, strict=True) if g == f) for f in formulas}
        wanted = [best[f] - e for e, f in zip(energies, formulas, strict=True)]
        alone = [k for k, formula in enumerate(formulas) if formula in ("Ne", "Ar")]
        assert alone, "elements are their own hull"
        assert [float(values[k]) for k in alone] == pytest.approx([wanted[k] for k in alone], abs=1e-3)
        assert values.isfinite().all()
        assert float(values.min()) < 0.0


def reward_config(**arguments: object) -> RewardConfig:
    spec = {"_target_": "latentite.rewards.energy.EnergyAboveHull", **LJ, **arguments}
    return from_plain(RewardConfig, {"components": {"energy": spec}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "mine"}, "reward energy cannot be made ready: .*mine"),
        ({"table": "mine", "theory": None}, "reward energy cannot be made ready: .*theory"),
        ({"table": "mine", "potential": "no.such:Calculator"}, "reward energy cannot be made ready: .*no"),
    ],
)
def test_a_run_whose_reward_lacks_something_does_not_begin(
    folder: Path, arguments: dict[str, object], message: str
) -> None:
    where = {} if "theory" not in arguments and "potential" not in arguments else {"data_dir": str(folder)}
    config = reward_config(**arguments, **where)
    some = CrystalBatch.from_structures([Structure(Lattice.cubic(4.0), ["Ar"], [[0, 0, 0]])])
    with pytest.raises(ValueError, match=message):
        Rewards.build(config).set_reference(some)
    if not where:
        workers = RewardWorkers(config, 1)
        try:
            with pytest.raises(ValueError, match=message):
                workers.set_reference(some)
        finally:
            workers.close()
