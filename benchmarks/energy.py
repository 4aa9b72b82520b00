"""Speed of CHGNet: single points and relaxations per second, batched against ASE one by one in the same run.

    python benchmarks/energy.py                     # 32 single points, 4 relaxations of ../shared/data rows
    python benchmarks/energy.py --csv my.csv --count 200 --relax 20 --json energy.json

One thread. Rates are per CPU second of this process, which a busy machine disturbs least; both sides relax to the
same force (and ours to the same bound on the stress besides). Needs the extra `energy`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from latentite.crystal import CrystalBatch
from latentite.energy.chgnet import CHGNetPotential
from latentite.energy.relax import RelaxStatus, relax
from latentite.energy.settings import RelaxSettings

DEFAULT_CSV = Path(__file__).resolve().parents[2] / "shared/data/mp_20_biternary/test.csv.gz"


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def read_crystals(path: Path, count: int, rattle: float, seed: int) -> CrystalBatch:
    """Evenly spaced rows, atoms displaced by normal numbers (Å) and cells strained by 2 %."""
    from pymatgen.core import Structure

    texts = pd.read_csv(path, usecols=["cif"])["cif"].tolist()
    rng = np.random.default_rng(seed)
    structures = []
    for text in texts[:: max(1, len(texts) // count)][:count]:
        structure = Structure.from_str(text, fmt="cif")
        structure.lattice = structure.lattice.matrix @ (np.eye(3) + rng.normal(0, 0.02, (3, 3)))
        structures.append(
            Structure(
                structure.lattice,
                structure.species,
                structure.cart_coords + rng.normal(0, rattle, (len(structure), 3)),
                coords_are_cartesian=True,
            )
        )
    return CrystalBatch.from_structures(structures)


def ase_relaxation(crystals: CrystalBatch, fmax: float, max_steps: int) -> list[tuple[float, int]]:
    """Energy (eV per cell) and steps of each crystal, by CHGNet's own calculator and ASE."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(use_device="cpu")
    results = []
    for atoms in crystals.to_atoms():
        atoms.calc = calculator
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        optimizer.run(fmax=fmax, steps=max_steps)
        results.append((atoms.get_potential_energy(), optimizer.nsteps))
    return results


def single_points(batched: CHGNetPotential, crystals: CrystalBatch) -> dict[str, float]:
    """Single points per CPU second: batched and one by one, with and without derivatives, and by ASE one by one.

    ASE asks CHGNet's own calculator for the energy, which computes forces, stress and magnetic moments with it;
    `chgnet, energy alone` is `CHGNet.predict_structure` with the energy as its only task.
    """
    from chgnet.model.model import CHGNet

    one_by_one = CHGNetPotential(max_atoms=1)
    with contextlib.redirect_stdout(io.StringIO()):
        own = CHGNet.load(use_device="cpu", verbose=False)
    structures = crystals.to_structures()
    ways: dict[str, Callable[[], object]] = {
        "batched": lambda: batched.compute(crystals),
        "one by one": lambda: one_by_one.compute(crystals),
        "energy alone, batched": lambda: batched.compute_energy(crystals),
        "energy alone, one by one": lambda: one_by_one.compute_energy(crystals),
        "ASE one by one": lambda: ase_energies(crystals),
        "chgnet, energy alone, one by one": lambda: [
            own.predict_structure(structure, task="e") for structure in structures
        ],
    }
    batched.compute(crystals.select(torch.arange(1)))  # warm
    return {f"single points/s, {name}": len(crystals) / cpu_seconds(run) for name, run in ways.items()}


def ase_energies(crystals: CrystalBatch) -> list[float]:
    """eV per cell, by CHGNet's own calculator and ASE."""
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(use_device="cpu")
    energies = []
    for atoms in crystals.to_atoms():
        atoms.calc = calculator
        energies.append(float(atoms.get_potential_energy()))
    return energies


def relaxations(
    batched: CHGNetPotential, crystals: CrystalBatch, arguments: argparse.Namespace
) -> dict[str, float]:
    """Relaxations per CPU second, batched and by ASE one by one."""
    chosen = crystals.select(torch.arange(min(arguments.relax, len(crystals))))
    settings = RelaxSettings(fmax=arguments.fmax, max_steps=arguments.max_steps)
    numbers: dict[str, float] = {}
    start = time.process_time()
    relaxed = relax(batched, chosen, settings)
    numbers["relaxations/s, batched"] = len(chosen) / (time.process_time() - start)
    start = time.process_time()
    by_ase = ase_relaxation(chosen, arguments.fmax, arguments.max_steps)
    numbers["relaxations/s, ASE one by one"] = len(chosen) / (time.process_time() - start)
    numbers["mean steps, batched"] = float(relaxed.steps.double().mean())
    numbers["mean steps, ASE"] = float(np.mean([steps for _, steps in by_ase]))
    energies = np.array([energy for energy, _ in by_ase])
    gap = (relaxed.energy.numpy() - energies) / chosen.num_atoms.numpy()
    numbers["largest difference of energies, eV/atom"] = float(np.abs(gap).max())
    numbers["converged, batched"] = sum(status is RelaxStatus.CONVERGED for status in relaxed.status)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=DEFAULT_CSV)
    parser.add_argument("--count", type=int, default=32, help="single points")
    parser.add_argument("--relax", type=int, default=4, help="relaxations; 0 for none")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    crystals = read_crystals(arguments.csv, arguments.count, 0.1, seed=0)
    batched = CHGNetPotential()
    numbers = single_points(batched, crystals)

    if arguments.relax:
        numbers |= relaxations(batched, crystals, arguments)
    for name, value in numbers.items():
        print(f"{name:50s} {value:10.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
