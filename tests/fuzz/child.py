"""The process that reads: takes the folders of cases on its input, gives findings as lines of JSON.

It lives for many cases, because imports take seconds, and dies with the case that hangs or crashes it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fuzz.case import Case
from fuzz.guard import Guard, limit_memory, listing
from fuzz.oracles import judge

SECONDS = 20.0
"""Of processor time that one case may take."""


def main(root: Path) -> None:
    """Reads cases under `root` until its input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for name in ("cache", "tmp", "home", "work"):
        (root / name).mkdir(exist_ok=True)
    tempfile.tempdir = str(root / "tmp")
    os.environ.update(
        LATENTITE_CACHE_DIR=str(root / "cache"),
        TMPDIR=str(root / "tmp"),
        HOME=str(root / "home"),
        HF_HUB_OFFLINE="1",
    )
    os.chdir(root / "work")
    logging.basicConfig(handlers=[logging.NullHandler()])
    _warm_up(root)
    guard = Guard()
    limit_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.enable(file=sys.stderr, all_threads=False)
    faulthandler.register(signal.SIGPROF, file=sys.stderr, all_threads=False, chain=True)
    answers.write('"ready"\n')
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(one(Path(line.strip()), root, guard)) + "\n")
        answers.flush()


def one(folder: Path, root: Path, guard: Guard) -> dict[str, object]:
    """Findings and counts of one case."""
    case = Case.from_json((folder / "case.json").read_text(encoding="utf-8"))
    out = root / "out"
    for name in (out, root / "cache"):
        shutil.rmtree(name, ignore_errors=True)
    before = listing(folder)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    allowed = [out, root / "cache", root / "tmp"]
    with guard.watching(allowed, folder / "outside") as events:
        findings, counts = judge(case, folder / "files", out)
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    findings += [f"guard: {event}" for event in events[:3]]
    if listing(folder) != before:
        findings.append("guard: the source, or what lies beside it, was changed")
    for name in ("tmp", "work", "home"):
        if left := sorted(listing(root / name)):
            findings.append(f"guard: left {left[0]} in {name}")
            shutil.rmtree(root / name)
            (root / name).mkdir()
            os.chdir(root / "work")
    return {"findings": findings, "counts": counts}


def _warm_up(root: Path) -> None:
    """Reads one good crystal and imports what is imported late, outside of all limits."""
    import random

    import ase.db
    import ase.io
    import h5py
    import pyarrow.parquet
    import safetensors.torch

    from fuzz import checkpoint_cases, cif_cases, oracles
    from fuzz.checkpoint_oracle import judge_checkpoint

    del ase, h5py, pyarrow, safetensors
    for index in range(8):
        case = cif_cases.make(index, random.Random(index))
        case.write(root / "warm", root)
        oracles.judge_crystals(case, root / "warm" / case.source, root / "out")
    shutil.rmtree(root / "warm")
    for use in ("predictor pair", "ldm", "foreign vae"):
        case = checkpoint_cases.make(0, random.Random(0))
        case.files |= checkpoint_cases.bases()[use]
        case.write(root / "warm", root)
        for command in ("predict", "sample", "export", "reconstruct"):
            case.arguments = [command]
            name = next(iter(checkpoint_cases.bases()[use]))
            judge_checkpoint(case, root / "warm" / name, root / "out")
            shutil.rmtree(root / "out", ignore_errors=True)
        shutil.rmtree(root / "warm")
    for name in ("tmp", "work", "home"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    os.chdir(root / "work")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
