"""Verdicts of `latentite.match` against plain `StructureMatcher.fit`, and how fast both are.

python benchmarks/match.py verdicts [--data ../shared/data] [--count 1500]
python benchmarks/match.py scale [--data ../shared/data] [--crystals 10000] [--references 45000] [--workers 2]
python benchmarks/match.py stress [--crystals 10000] [--kinds 60] [--workers 2]
python benchmarks/match.py workers [--crystals 4000] [--kinds 60]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import astuple
from pathlib import Path

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import derive_rows
from latentite.data.readers.rows import Row, read
from latentite.evaluation.store import ResultStore, namespace, structure_hash
from latentite.match.compare import Comparable, Comparer
from latentite.match.reduced import LOOSE, STRICT, reduce_crystals, reduction_settings, structure_of
from latentite.match.search import Matches, find_matches

SETTINGS = (STRICT, LOOSE)
NAMES = frozenset(one.name for one in SETTINGS)


def real_rows(data: Path) -> list[CrystalArrays]:
    """Every row of every table in the folders of real data."""
    rows = [item for table in sorted(data.glob("*/*.csv.gz")) for item in read(table)]
    return [
        CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice)
        for row in rows
        if isinstance(row, Row)
    ]


def formulas(crystals: list[CrystalArrays]) -> list[str]:
    """Reduced formulas."""
    return [str(row["composition"]) for row in derive_rows(("composition",), crystals)]


def disguised(
    crystal: CrystalArrays, generator: np.random.Generator, *, noise: float, strain: float
) -> CrystalArrays:
    """In another cell, sometimes a supercell, from another origin, in another order; strained and moved (Å)."""
    numbers, coords, lattice = astuple(crystal)
    shear = np.eye(3)
    shear[0, 1], shear[2, 0] = generator.integers(-1, 2, size=2)
    coords, lattice = coords @ np.linalg.inv(shear), shear @ lattice
    if generator.random() < 0.2:
        double = np.diag((2.0, 1.0, 1.0))
        coords = np.concatenate((coords, coords + np.eye(3)[0])) @ np.linalg.inv(double)
        numbers, lattice = np.tile(numbers, 2), double @ lattice
    lattice = lattice @ (np.eye(3) + strain * generator.uniform(-1.0, 1.0, size=(3, 3)))
    coords = (
        coords + generator.random(3) + noise * generator.normal(size=coords.shape) @ np.linalg.inv(lattice)
    )
    order = generator.permutation(len(numbers))
    return CrystalArrays(numbers[order], coords[order], lattice)


def pairs_of(
    crystals: list[CrystalArrays], count: int, generator: np.random.Generator
) -> list[tuple[CrystalArrays, CrystalArrays]]:
    """Every pair of real rows of one formula, and `count` rows with disguised copies of all degrees."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, formula in enumerate(formulas(crystals)):
        groups[formula].append(place)
    pairs = [
        (crystals[a], crystals[b])
        for places in groups.values()
        for i, a in enumerate(places)
        for b in places[i + 1 :]
    ]
    for place in generator.permutation(len(crystals))[:count]:
        noise, strain = generator.choice((0.0, 0.02, 0.1, 0.3, 0.6)), generator.choice((0.0, 0.03, 0.1, 0.2))
        pairs.append(
            (crystals[place], disguised(crystals[place], generator, noise=float(noise), strain=float(strain)))
        )
    return pairs


def verdicts(arguments: argparse.Namespace) -> dict[str, object]:
    """Disagreements and speeds on real, perturbed and re-celled pairs, in one process.

    Plain `fit` keeps its last reduced cells, so that the second setting of a pair does not pay for them either.
    """
    pairs = pairs_of(real_rows(arguments.data), arguments.count, np.random.default_rng(0))
    comparer = Comparer(SETTINGS)
    start = time.process_time()
    reduced = reduce_crystals([one for pair in pairs for one in pair], workers=1)
    made = [None if isinstance(one, str) else Comparable(one) for one in reduced]
    after_reduction = time.process_time()
    ours = [
        set(comparer.matching(first, second, NAMES)) if first and second else set()
        for first, second in zip(made[::2], made[1::2], strict=True)
    ]
    after_comparison = time.process_time()
    structures = [(structure_of(first), structure_of(second)) for first, second in pairs]
    matchers = {one.name: one.build() for one in SETTINGS}
    before_plain = time.process_time()
    plain = [
        {name for name, matcher in matchers.items() if matcher.fit(first, second)}
        for first, second in structures
    ]
    plain_seconds = time.process_time() - before_plain
    return {
        "pairs": len(pairs),
        "matched": {name: sum(name in one for one in plain) for name in sorted(NAMES)},
        "disagreements": sum(a != b for a, b in zip(ours, plain, strict=True)),
        "matcher_asked": comparer.asked,
        "pairs_per_cpu_s_both_settings": {
            "plain": round(len(pairs) / plain_seconds, 1),
            "ours": round(len(pairs) / (after_comparison - start), 1),
            "ours_cells_reduced_before": round(len(pairs) / (after_comparison - after_reduction), 1),
        },
    }


def scale(arguments: argparse.Namespace) -> dict[str, object]:
    """Many crystals against many references: a first run, which reduces the references, and one with them kept."""
    generator = np.random.default_rng(1)
    rows = real_rows(arguments.data)
    references = [
        rows[place] if i < len(rows) else disguised(rows[place], generator, noise=0.3, strain=0.05)
        for i, place in enumerate(np.resize(np.arange(len(rows)), arguments.references))
    ]
    crystals = [
        disguised(rows[place], generator, noise=float(generator.choice((0.02, 0.1, 0.5))), strain=0.02)
        for place in generator.integers(len(rows), size=arguments.crystals)
    ]
    hashes = [structure_hash(one) for one in references]
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore.open(namespace("reduced", 1, reduction_settings()), folder)
        for name in ("first_run", "references_kept"):
            start = time.perf_counter()
            found = find_matches(
                crystals,
                references,
                settings=SETTINGS,
                workers=arguments.workers,
                reference_hashes=hashes,
                store=store,
            )
            seconds[name] = round(time.perf_counter() - start, 1)
    return {"crystals": len(crystals), "references": len(references), "seconds": seconds, **_counts(found)}


def stress(arguments: argparse.Namespace) -> dict[str, object]:
    """Many structures of one formula: real rows of one stoichiometry, all given the same elements."""
    generator = np.random.default_rng(2)
    kinds = _one_formula(real_rows(arguments.data))[: arguments.kinds]
    crystals = [
        disguised(kinds[place], generator, noise=0.05, strain=0.02)
        for place in generator.integers(len(kinds), size=arguments.crystals)
    ]
    progress: list[tuple[float, int, int]] = []
    start = time.perf_counter()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if not progress or done >= progress[-1][1] + len(crystals) // 10 or done == len(crystals):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            progress.append((round(time.perf_counter() - start, 1), done, peak))

    found = find_matches(crystals, settings=SETTINGS, workers=arguments.workers, advance=advance)
    return {
        "crystals": len(crystals),
        "kinds": len(kinds),
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_done_peak_mib": progress,
        "workers_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        **_counts(found),
    }


def workers(arguments: argparse.Namespace) -> dict[str, object]:
    """The same search with one and with two processes.

    Pairs are those of one formula, of which many need no comparison once a match is found. Other work on the machine
    disturbs processor seconds least: two processes cost about as many of them as one, where nothing is wasted.
    """
    generator = np.random.default_rng(3)
    rows = real_rows(arguments.data)
    crystals = [
        disguised(rows[place], generator, noise=0.05, strain=0.02)
        for place in generator.integers(len(rows), size=arguments.crystals)
    ]
    own, known = Counter(formulas(crystals)), Counter(formulas(rows))
    pairs = sum(count * (known[formula] + (count - 1) / 2) for formula, count in own.items())
    found = []
    lines: dict[str, object] = {"crystals": len(crystals), "references": len(rows), "pairs": int(pairs)}
    for count in (1, 2):
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        found.append(find_matches(crystals, rows, settings=SETTINGS, workers=count))
        seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
        lines[f"workers_{count}"] = {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "pairs_per_second": round(pairs / seconds, 1),
            "pairs_per_cpu_second": round(pairs / cpu, 1),
            "cores_used": round(cpu / seconds, 2),
        }
    return {**lines, "equal": found[0] == found[1], **_counts(found[0])}


def _one_formula(rows: list[CrystalArrays]) -> list[CrystalArrays]:
    """All rows with two thirds of one element and one third of another, as TiO2."""
    found = []
    for numbers, coords, lattice in map(astuple, rows):
        elements, counts = np.unique(numbers, return_counts=True)
        if len(elements) == 2 and counts.max() == 2 * counts.min():
            found.append(
                CrystalArrays(np.where(numbers == elements[counts.argmax()], 8, 22), coords, lattice)
            )
    return found


def _counts(found: Matches) -> dict[str, object]:
    columns = {name: [one for one in column if one is not None] for name, column in found.verdicts.items()}
    return {
        "distinct": {
            name: sum(one.duplicate_of is None for one in column) for name, column in columns.items()
        },
        "known": {name: sum(one.reference is not None for one in column) for name, column in columns.items()},
        "failed": len(found.failures),
    }


BENCHMARKS = {"verdicts": verdicts, "scale": scale, "stress": stress, "workers": workers}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(BENCHMARKS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--crystals", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=45_000)
    parser.add_argument("--kinds", type=int, default=60)
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(BENCHMARKS[arguments.what](arguments)))


if __name__ == "__main__":
    main()
