"""`PYTHONPATH=tests python -m fuzz`: many inputs, and a folder of those that were read wrongly."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from fuzz.formats import FORMATS, cases
from fuzz.parent import judged, keep


def main() -> int:
    """Run; gives the exit code: 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=1000, help="inputs of all formats together [%(default)s]"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="index of the first of each format [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("findings"), help="folder of findings [%(default)s]")
    parser.add_argument(
        "--format", action="append", choices=sorted(FORMATS), help="only this one; repeatable [all]"
    )
    parser.add_argument("--case", help="one alone, such as cif-123, with everything that is known of it")
    arguments = parser.parse_args()
    if arguments.case:
        name, _, index = arguments.case.rpartition("-")
        chosen = cases(1, seed=arguments.seed, formats=[name], first=int(index))
    else:
        chosen = cases(arguments.count, seed=arguments.seed, formats=arguments.format, first=arguments.first)
    found: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    start = time.monotonic()
    for result in judged(chosen):
        tried[result.case.format] += 1
        counts.setdefault(result.case.format, Counter()).update(result.counts)
        if result.findings:
            place = keep(result, arguments.out)
            found[result.case.format] += 1
            print(f"{place.name} ({result.case.kind}): {result.findings[0]}", flush=True)
    minutes = (time.monotonic() - start) / 60.0
    for name, number in sorted(tried.items()):
        told = ", ".join(f"{count} {what}" for what, count in sorted(counts[name].items()))
        print(f"{name}: {number} inputs, {found[name]} findings; {told}")
    print(f"{tried.total()} inputs, {found.total()} findings, {minutes:.1f} minutes, seed {arguments.seed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
