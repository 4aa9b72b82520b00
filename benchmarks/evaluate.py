"""How long an evaluation takes: many perturbed real crystals against a real training set, nothing kept from before.

    python benchmarks/evaluate.py --data ../shared/data/mp_20_biternary --count 10000 --workers 2

The structures are rows of all splits, strained, shaken, in other cells; every fifth is taken twice. Prints one JSON
line: seconds of every step, and their sum for validity, SMACT, uniqueness and novelty (reading, geometry, composition,
matching), first with an empty cache, then again with the reference in it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from latentite.crystal import CrystalBatch
from latentite.data.table import Row, read
from latentite.evaluation.run import Evaluation, evaluate
from match import disguised

COUNTED = ("read", "geometry", "composition", "reference: geometry", "reference: composition", "match")
"""Steps of validity, SMACT, uniqueness and novelty; the others are symmetry and what is drawn of features."""


def samples(data: Path, count: int, *, seed: int) -> CrystalBatch:
    """Perturbed rows of all splits, in a random order."""
    generator = np.random.default_rng(seed)
    rows = [row for table in sorted(data.glob("*.csv.gz")) for row in read(table) if isinstance(row, Row)]
    chosen = generator.permutation(len(rows))[np.arange(count) * 4 // 5 % len(rows)]
    return CrystalBatch.from_arrays(
        [
            disguised(
                (rows[i].atomic_numbers, rows[i].frac_coords, rows[i].lattice),
                generator,
                noise=0.05,
                strain=0.01,
            )
            for i in chosen
        ]
    )


def timed(source: CrystalBatch, data: Path, workers: int) -> tuple[float, Evaluation]:
    """Seconds of one evaluation without report."""
    start = time.perf_counter()
    result = evaluate(source, reference=data, reference_split="train", workers=workers)
    return time.perf_counter() - start, result


def main() -> None:
    """Print one JSON line per run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mp_20_biternary"))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = samples(args.data, args.count, seed=args.seed)
    again = samples(args.data, args.count, seed=args.seed + 1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LATENTITE_CACHE_DIR"] = cache
        for name, crystals in (("empty cache", source), ("reference in the cache", again)):
            seconds, result = timed(crystals, args.data, args.workers)
            line = {
                "run": name,
                "structures": len(crystals),
                "references": 0 if result.reference is None else len(result.reference),
                "seconds": round(seconds, 1),
                "validity_smact_unique_novel_s": round(sum(result.seconds.get(k, 0) for k in COUNTED), 1),
                "steps": result.seconds,
                "rates": {name: str(result.rates[name]) for name in ("valid", "unique", "novel")},
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
