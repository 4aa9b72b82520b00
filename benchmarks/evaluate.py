"""How long an evaluation takes, and the rewards of a rollout: perturbed real crystals against a real training set.

    python benchmarks/evaluate.py --data ../shared/data/mp_20_biternary --count 10000 --workers 2
    python benchmarks/evaluate.py --count 0            # the rewards alone
    python benchmarks/evaluate.py --rollout 0          # the evaluation alone

The structures are rows of all splits, strained, shaken, in other cells; every fifth is taken twice. One JSON line for
each evaluation, with nothing kept and then with the reference in the cache: seconds of validity, SMACT, uniqueness and
novelty together (reading, geometry, composition, matching), and apart from it those of the other sections (space
groups, charges, features). One line for the rewards of `experiment=mp_20_biternary/rl_dng` without the energy:
seconds to take the training set, and of each component on a rollout, in one process. Seconds are wall time; `cpu_s` is
processor time, workers included, which says more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.rows import Row, read
from latentite.evaluation.run import evaluate
from latentite.rewards.combine import RewardConfig, Rewards
from match import disguised

SECTIONS = {
    "validity_smact_unique_novel": ("read", "geometry", "composition", "match"),
    "space_groups": ("space groups",),
    "charges": ("charges",),
    "features": ("features",),
}
"""Steps of an evaluation by what they are for; those of the reference are added to them."""
REWARDS = ("creativity", "structure_diversity", "composition_diversity")
"""Of `configs/experiment/mp_20_biternary/rl_dng.yaml`, all but the energy."""
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "reward"


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def rows_of(tables: Sequence[Path]) -> list[CrystalArrays]:
    """Every row of some tables."""
    rows = [row for table in tables for row in read(table) if isinstance(row, Row)]
    return [CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice) for row in rows]


def samples(data: Path, count: int, *, seed: int) -> CrystalBatch:
    """Perturbed rows of all splits, in a random order."""
    generator = np.random.default_rng(seed)
    rows = rows_of(sorted(data.glob("*.csv.gz")))
    chosen = generator.permutation(len(rows))[np.arange(count) * 4 // 5 % len(rows)]
    return CrystalBatch.from_arrays([disguised(rows[i], generator, noise=0.05, strain=0.01) for i in chosen])


def evaluation(name: str, crystals: CrystalBatch, data: Path, workers: int) -> dict[str, Any]:
    """Seconds of one evaluation without report."""
    start, cpu = time.perf_counter(), cpu_seconds()
    result = evaluate(crystals, reference=data, reference_split="train", workers=workers)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    steps = result.seconds
    return {
        "run": name,
        "structures": len(crystals),
        "references": 0 if result.reference is None else len(result.reference),
        **{
            f"{section}_s": round(sum(steps.get(k, 0) + steps.get(f"reference: {k}", 0) for k in keys), 1)
            for section, keys in SECTIONS.items()
        },
        "all_s": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "steps": steps,
        "rates": {rate: str(result.rates[rate]) for rate in ("valid", "unique", "novel")},
    }


def rewards(data: Path, count: int, *, seed: int) -> dict[str, Any]:
    """Seconds of the rewards of one rollout, after the training set was shown to them."""
    specs = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) for name in REWARDS]
    built = Rewards.build(
        RewardConfig(components={name: spec[name] for name, spec in zip(REWARDS, specs, strict=True)})
    )
    reference = CrystalBatch.from_arrays(rows_of([data / "train.csv.gz"]))
    crystals = samples(data, count, seed=seed)
    start, cpu = time.perf_counter(), cpu_seconds()
    built.set_reference(reference)
    shown, shown_cpu = time.perf_counter() - start, cpu_seconds() - cpu
    start, cpu = time.perf_counter(), cpu_seconds()
    table = built(crystals)
    return {
        "run": "rewards of a rollout",
        "structures": count,
        "references": len(reference),
        "rollout_s": round(time.perf_counter() - start, 2),
        "rollout_cpu_s": round(cpu_seconds() - cpu, 2),
        "components_s": {name: round(seconds, 2) for name, seconds in table.seconds.items()},
        "training_set_s": round(shown, 1),
        "training_set_cpu_s": round(shown_cpu, 1),
        "failed": table.num_failed,
    }


def main() -> None:
    """Print one JSON line per run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mp_20_biternary"))
    parser.add_argument("--count", type=int, default=10_000, help="structures of an evaluation; 0 for none")
    parser.add_argument("--rollout", type=int, default=320, help="structures of a rollout; 0 for none")
    parser.add_argument("--workers", type=int, default=2, help="of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.rollout:
        print(json.dumps(rewards(args.data, args.rollout, seed=args.seed)), flush=True)
    if not args.count:
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LATENTITE_CACHE_DIR"] = cache
        for seed, name in enumerate(("empty cache", "reference in the cache"), start=args.seed):
            crystals = samples(args.data, args.count, seed=seed)
            print(json.dumps(evaluation(name, crystals, args.data, args.workers)), flush=True)


if __name__ == "__main__":
    main()
