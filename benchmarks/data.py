"""Speed of the data path, beside the plain loop of the library measured in the same run.

    python benchmarks/data.py                                  # ../shared/data/mp_20_biternary/train.csv.gz
    python benchmarks/data.py --csv my.csv --json data.json

Compared are a CSV of P1 CIFs to a finished cache file (checks and canonical form included) in one process,
the same in several, and the loop `Structure.from_str(cif, fmt="cif").get_reduced_structure()`. Wall clock
and CPU seconds are both given: on a busy machine only the second ones compare. Bars: 10x the loop in one
process; cache of 10,000 crystals loaded and first batch served within 0.2 s.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from latentite.data.build import build_split
from latentite.data.dataset import read_dataset
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.data.sampler import BatchPlan, epoch_batches

DEFAULT_CSV = Path(__file__).resolve().parents[2] / "shared/data/mp_20_biternary/train.csv.gz"


def seconds_of(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call (CPU of this process only)."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def library_loop(texts: list[str]) -> None:
    """What everybody writes first."""
    from pymatgen.core import Structure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in texts:
            Structure.from_str(text, fmt="cif").get_reduced_structure()


def read_texts(path: Path, count: int) -> list[str]:
    """The CIFs of evenly spaced rows."""
    csv.field_size_limit(2**30)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="", encoding="utf-8") as handle:
        texts = [row["cif"] for row in csv.DictReader(handle)]
    return texts[:: max(1, len(texts) // count)][:count]


def build(path: Path, options: BuildOptions, workers: int, folder: Path) -> tuple[float, float, Path, int]:
    """Wall and CPU seconds of a build into an empty cache, the file and the number of crystals."""
    results = []
    wall, cpu = seconds_of(
        lambda: results.append(
            build_split(path, options=options, cache_dir=folder, workers=workers, progress=False)
        )
    )
    assert results[0].path is not None
    return wall, cpu, results[0].path, len(results[0].dataset)


def matrix_rate() -> float:
    """GFLOP/s of a 2560 x 512 x 2048 product in fp32, best of some."""
    a, b = torch.randn(2560, 512), torch.randn(512, 2048)
    best = min(seconds_of(lambda: a @ b)[0] for _ in range(20))
    return 2 * 2560 * 512 * 2048 / best / 1e9


def serve_first_batch(path: Path) -> None:
    """What stands between a finished cache and the first training step."""
    crystals = read_dataset(path).crystals
    batches = epoch_batches(crystals.num_atoms, BatchPlan(batch_size=256))
    crystals.select(batches[0])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=DEFAULT_CSV)
    parser.add_argument("--max-atoms", type=int, default=None)
    parser.add_argument("--library-rows", type=int, default=400, help="rows for the plain loop")
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="further numbers of processes")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    if not args.csv.is_file():
        parser.error(f"--csv must be a file, got {args.csv}")
    return args


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All rates and times; caches go into the folder."""
    options = BuildOptions(limits=Limits(max_atoms=args.max_atoms))

    texts = read_texts(args.csv, args.library_rows)
    library_loop(texts[:5])  # imports
    library_wall, library_cpu = seconds_of(lambda: library_loop(texts))
    numbers: dict[str, float] = {
        "matrix_gflops": matrix_rate(),
        "library_crystals_per_s": len(texts) / library_wall,
        "library_crystals_per_cpu_s": len(texts) / library_cpu,
    }
    wall, cpu, path, count = build(args.csv, options, 1, folder / "1")
    numbers |= {
        "crystals": count,
        "build_1_crystals_per_s": count / wall,
        "build_1_crystals_per_cpu_s": count / cpu,
        "times_library": count / wall / (len(texts) / library_wall),
        "times_library_cpu": count / cpu / (len(texts) / library_cpu),
    }
    for workers in args.workers:
        parallel, _, _, _ = build(args.csv, options, workers, folder / str(workers))
        numbers[f"build_{workers}_crystals_per_s"] = count / parallel
        numbers[f"build_{workers}_speed_up"] = wall / parallel
    loads = [seconds_of(lambda: read_dataset(path))[0] for _ in range(5)]
    serves = [seconds_of(lambda: serve_first_batch(path)) for _ in range(5)]
    numbers |= {
        "cache_load_s": sorted(loads)[2],
        "first_batch_s": sorted(wall for wall, _ in serves)[2],
        "first_batch_cpu_s": sorted(cpu for _, cpu in serves)[2],
    }
    return numbers


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="latentite-benchmark-") as folder:
        numbers = measure(args, Path(folder))
    for name, value in numbers.items():
        print(f"{name:32} {value:,.4g}" if value < 100 else f"{name:32} {value:,.0f}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
