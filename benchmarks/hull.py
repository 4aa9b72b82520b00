"""How well a potential and a hull of tables know the energies above hull of real rows that they have not seen.

    python benchmarks/hull.py                          # 600 rows of ../shared/data/mpts_52, CHGNet
    python benchmarks/hull.py --potential 7net-0 --count 800 --json hull.json

Held out are random rows of `--held-out` (val and test of mpts_52: materials found later than those of its train
split); every other row of all tables makes the hull and, a sample of them, the element references, rows with the id
of a held-out one excepted. Single points on the geometry of the table. Reported are the mean absolute error of the
energy above hull against the table's column, the area under the ROC curve of "more than 0.1 eV/atom above", and how
many rows the hull covers: with a hull of the other rows (a new material, as a generator makes them: missing phases
make things look stable), and with a hull of all rows (what is left is the error of the potential); each also with
the table's own energies in place of the potential's (what is left is the error of the hull). Energies in eV/atom.
Needs the extra of the potential.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits
from latentite.data.readers.rows import Row, read
from latentite.energy.hull import Hull, hull_from_crystals
from latentite.energy.parallel import RelaxHow, double_batch, relax_many
from latentite.energy.references import fit_references
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.energy.table import FORMATION_ENERGY, MATERIALS_PROJECT, matching_terms, spread_sample
from latentite.formulas import compositions

DATA = Path(__file__).resolve().parents[2] / "shared/data"
HEIGHT = "energy_above_hull"
THRESHOLD = 0.1
"""eV/atom."""


def read_all(folders: list[Path]) -> dict[str, list[Row]]:
    """Rows with both energies by file."""
    rows: dict[str, list[Row]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.csv*")):
            items = read(path, limits=Limits(max_atoms=None))
            rows[f"{folder.name}/{path.name.split('.')[0]}"] = [
                item
                for item in items
                if isinstance(item, Row)
                and None not in (item.properties[FORMATION_ENERGY], item.properties[HEIGHT])
            ]
    return rows


def batch(rows: list[Row]) -> CrystalBatch:
    """Crystals with their energies."""
    properties = {
        name: torch.tensor([float(row.properties[name]) for row in rows], dtype=torch.float64)
        for name in (FORMATION_ENERGY, HEIGHT)
    }
    arrays = [CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice) for row in rows]
    return double_batch(arrays).with_properties(properties)


def area_under_curve(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a positive row scores above a negative one, ties half (Mann-Whitney); NaN without both."""
    ranks = rankdata(score)
    positive = int(is_positive.sum())
    negative = len(score) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    return float((ranks[is_positive].sum() - positive * (positive + 1) / 2) / (positive * negative))


def errors(
    hull: Hull, rows: CrystalBatch, formation: torch.Tensor, least: int, name: str
) -> dict[str, float | str]:
    """Numbers of the rows for which at least so many compounds compete.

    Args:
        hull: what competes.
        rows: with the truth.
        formation: eV/atom, of the potential.
        least: competing compounds.
        name: of the hull.
    """
    keys = compositions(rows)
    truth = rows.properties[HEIGHT].numpy()

    def above(energies: torch.Tensor) -> np.ndarray:
        values, _ = hull.energy_above_hull(keys, energies.tolist())
        return np.array([np.nan if value is None else value for value in values])

    predicted, by_table = above(formation), above(rows.properties[FORMATION_ENERGY])
    competing = np.array([hull.query(key).num_competing for key in keys])
    chosen = np.isfinite(predicted) & (competing >= least)
    error = predicted[chosen] - truth[chosen]
    is_high = truth[chosen] > THRESHOLD
    what = f"hull of {name}, {least}+ competing"
    return {
        f"{what}: rows": int(chosen.sum()),
        f"{what}: above {THRESHOLD:g} in truth": int(is_high.sum()),
        f"{what}: MAE": float(np.abs(error).mean()),
        f"{what}: median absolute error": float(np.median(np.abs(error))),
        f"{what}: mean error": float(error.mean()),
        f"{what}: AUROC(> {THRESHOLD:g})": area_under_curve(predicted[chosen], is_high),
        f"{what}: MAE with the table's own energies": float(np.abs(by_table[chosen] - truth[chosen]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tables", nargs="+", default=["mpts_52", "mp_20_biternary"])
    parser.add_argument("--held-out", nargs="+", default=["mpts_52/val", "mpts_52/test"])
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--count", type=int, default=600, help="held-out rows")
    parser.add_argument("--fit", type=int, default=1500, help="rows of the element references")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    tables = read_all([arguments.data / name for name in arguments.tables])
    candidates = [row for name in arguments.held_out for row in tables[name]]
    order = np.random.default_rng(arguments.seed).permutation(len(candidates))[: arguments.count]
    held_out = [candidates[k] for k in order]
    ids = {row.id for row in held_out}
    others = [row for rows in tables.values() for row in rows if row.id not in ids]
    known, unseen = batch(others), batch(held_out)

    how = RelaxHow(
        potential=arguments.potential, settings=RelaxSettings(cell=RelaxCell.NONE, energy_only=True)
    )
    theory = how.load().card.theory
    levels = {"theory": theory, "table_theory": MATERIALS_PROJECT}
    sample = known.select(spread_sample(known, arguments.fit, seed=arguments.seed))
    start = time.perf_counter()
    fitted = relax_many(sample.to_arrays(), how, workers=arguments.workers)
    seconds = time.perf_counter() - start
    terms = matching_terms(theory, MATERIALS_PROJECT)
    references = fit_references(
        sample, fitted.energy, sample.properties[FORMATION_ENERGY], terms=terms, **levels
    )
    result = relax_many(unseen.to_arrays(), how, workers=arguments.workers)
    formation, _ = references.formation_energy(unseen, result.energy)
    residual = formation - unseen.properties[FORMATION_ENERGY]
    numbers: dict[str, float | str] = {
        "potential": f"{how.load().card.name} {how.load().card.version}",
        "held-out rows": len(unseen),
        "of them judged by the potential": int(result.is_judged.sum()),
        "rows of the fit": references.num_rows,
        "single points/s": len(sample) / seconds,
        "residual of the fit, eV/atom": references.mean_absolute_residual,
        "residual left out, eV/atom": references.left_out_residual,
        "formation energy, MAE, eV/atom": float(residual.abs().nanmean()),
    }
    for name, crystals in (("others", known), ("all rows", CrystalBatch.concatenate([known, unseen]))):
        hull = hull_from_crystals(crystals, theory=MATERIALS_PROJECT)
        numbers[f"phases, hull of {name}"] = len(hull)
        for least in (0, 5):
            numbers |= errors(hull, unseen, formation, least, name)
    for name, value in numbers.items():
        print(f"{name:64s} {value if isinstance(value, (str, int)) else format(value, '10.4f')}")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
