"""Speed of CHGNet: energies and relaxations per second, batched against ASE's FIRE one by one in the same run.

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
from latentite.energy.relax import relax
from latentite.energy.relaxation import RelaxSettings, RelaxStatus

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=DEFAULT_CSV)
    parser.add_argument("--count", type=int, default=32, help="single points")
    parser.add_argument("--relax", type=int, default=4, help="relaxations")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    crystals = read_crystals(arguments.csv, arguments.count, 0.1, seed=0)
    batched, one_by_one = CHGNetPotential(), CHGNetPotential(max_atoms=1)
    batched.compute(crystals.select(torch.arange(1)))  # warm
    numbers: dict[str, float] = {}
    numbers["single points/s, batched"] = len(crystals) / cpu_seconds(lambda: batched.compute(crystals))
    numbers["single points/s, one by one"] = len(crystals) / cpu_seconds(lambda: one_by_one.compute(crystals))

    chosen = crystals.select(torch.arange(min(arguments.relax, len(crystals))))
    settings = RelaxSettings(fmax=arguments.fmax, max_steps=arguments.max_steps)
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
    for name, value in numbers.items():
        print(f"{name:42s} {value:10.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
