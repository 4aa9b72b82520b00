"""What came out, held against what went in. Each function gives findings, one line each; none is what is wanted."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuzz.case import ANY, Arrays, Case, Entry
from fuzz.same_crystal import difference, unlike

LONGEST_MESSAGE = 3000
_INTERNAL = re.compile(
    r"Traceback|object has no attribute|NoneType|not subscriptable|unhashable|out of range|unexpected keyword"
    r"|takes \d+ positional|not enough values to unpack|too many values to unpack"
)
"""Words of Python, not of a sentence for a user."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a command did."""

    code: int | None
    """Exit code, None where an exception came out."""
    error: str
    """Text on stderr, or the exception."""
    place: str = ""
    """File and line that raised the exception."""


def run_command(arguments: list[str]) -> Outcome:
    """`latentite ARGUMENTS` in this process."""
    from latentite.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except SystemExit as end:
        return Outcome(code=-1, error=f"SystemExit({end.code}): {err.getvalue()[-300:]}")
    except BaseException as error:  # noqa: BLE001  whatever comes out is the finding
        return Outcome(code=None, error=f"{type(error).__name__}: {error}", place=place_of(error))
    return Outcome(code=code, error=err.getvalue())


def place_of(error: BaseException) -> str:
    """The last line of ours that the exception passed, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/latentite/" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:])]
    return " <- ".join(dict.fromkeys(places))


def problems_of_words(outcome: Outcome) -> list[str]:
    """An exception, a strange exit code, or an error that is not one sentence for a user."""
    if outcome.code is None:
        return [f"traceback: {outcome.error:.300} ({outcome.place})"]
    if outcome.code not in (0, 1, 2):
        return [f"exit code: {outcome.code}: {outcome.error:.300}"]
    if outcome.code == 0:
        return []
    lines = outcome.error.strip().split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or len(errors[0]) > LONGEST_MESSAGE:
        return [f"message: must be one sentence, got {outcome.error:.300}"]
    if words := _INTERNAL.search(errors[0]):
        return [f"message: speaks Python ({words[0]}): {errors[0]:.300}"]
    return []


def judge_crystals(case: Case, source: Path, out: Path) -> tuple[list[str], dict[str, int]]:
    """Builds a data set of a case, as a user does."""
    shares = ["--train-fraction", "1", "--val-fraction", "0", "--test-fraction", "0"]
    whole = ["--max-atoms", "0", "--workers", "1"]
    more = [argument.format(folder=source.parent) for argument in case.arguments]
    outcome = run_command(["data", "build", str(source), "--out", str(out), *whole, *shares, *more])
    findings = problems_of_words(outcome)
    rejected = _rejected(out / "rejected.csv")
    crystals, labels = _accepted(out / "train.safetensors")
    counts = {"accepted": len(crystals), "rejected": len(rejected), "refused": int(outcome.code == 2)}
    findings += [
        f"message: speaks Python in a reason: {reason:.200}"
        for reason in rejected
        if _INTERNAL.search(reason)
    ][:1]
    if outcome.code == 0:
        findings += _counts(case, out, len(crystals), len(rejected))
    elif crystals:
        findings.append("counts: a refused source left a data set")
    elif rejected and case.rows is not None and len(rejected) != case.rows:
        findings.append(f"counts: {case.rows} rows went in, {len(rejected)} were rejected")
    for name, crystal in crystals.items():
        findings += _misread(case, name, crystal)
    return findings + _mislabelled(case, labels), counts


def _counts(case: Case, out: Path, accepted: int, rejected: int) -> list[str]:
    content = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    told = content["num_in"], content["num_accepted"], content["num_rejected"]
    if told != (accepted + rejected, accepted, rejected):
        return [
            f"counts: dataset.json tells {told}, the files hold {accepted} accepted and {rejected} rejected"
        ]
    if case.rows is not None and told[0] != case.rows:
        return [f"counts: {case.rows} rows went in, {told[0]} were counted"]
    return []


def _misread(case: Case, name: str, crystal: Arrays) -> list[str]:
    if name in case.refused or ANY in case.refused:
        return [f"misread: {name} was taken as {_shown(crystal)}, but nothing there is right"]
    if case.shares is not None and (wrong := unlike(crystal, case.shares, case.volume)):
        return [f"misread: {name} is {_shown(crystal)}, but the file itself says otherwise: {wrong}"]
    right = case.crystals.get(name, case.crystals.get(ANY))
    if right is None:
        return []
    wrong = difference(crystal, right)
    return [] if wrong is None else [f"misread: {name} is {_shown(crystal)}: {wrong}"]


def _mislabelled(case: Case, labels: dict[str, dict[str, float | None]]) -> list[str]:
    if case.labels is None:
        return []
    findings = []
    for name, values in labels.items():
        column = "label" if "label" in values else "target"  # of CGCNN's table without a header
        right, found = case.labels.get(name), values.get(column)
        if column in values and name in case.labels and not _equal(found, right):
            findings.append(f"mislabelled: {name} has {found} instead of {right}")
    return findings[:1]


def _equal(found: float | None, right: float | None) -> bool:
    if found is None or right is None:
        return found is None and right is None
    return abs(found - right) <= 1e-5 * max(1.0, abs(right))


def _shown(crystal: Arrays) -> str:
    from pymatgen.core import Composition

    numbers, _, lattice = crystal
    kinds, counts = np.unique(numbers, return_counts=True)
    from pymatgen.core import Element

    formula = Composition({Element.from_Z(int(z)): int(n) for z, n in zip(kinds, counts, strict=True)})
    return (
        f"{formula.formula.replace(' ', '')}, {abs(np.linalg.det(lattice)) / len(numbers):.2f} Å^3 per atom"
    )


def _rejected(path: Path) -> list[str]:
    if not path.is_file():
        return []
    csv.field_size_limit(2**30)
    with path.open(encoding="utf-8", newline="") as file:
        return [row["reason"] or "" for row in csv.DictReader(file)]


def _accepted(path: Path) -> tuple[dict[str, Arrays], dict[str, dict[str, float | None]]]:
    """Crystals and labels by id, from the file that training reads."""
    from latentite.data.dataset import read_dataset

    if not path.is_file():
        return {}, {}
    dataset = read_dataset(path)
    batch = dataset.crystals
    ends = np.cumsum(batch.num_atoms.numpy())
    crystals, labels = {}, {}
    for row, name in enumerate(dataset.ids):
        atoms = slice(int(ends[row] - batch.num_atoms[row]), int(ends[row]))
        crystals[name] = (
            batch.atomic_numbers[atoms].numpy(),
            batch.frac_coords[atoms].double().numpy(),
            batch.lattice[row].double().numpy(),
        )
        values = {key: float(column[row]) for key, column in batch.properties.items()}
        labels[name] = {key: None if value != value else value for key, value in values.items()}
    return crystals, labels


def judge(case: Case, folder: Path, out: Path) -> tuple[list[str], dict[str, int]]:
    """Findings, and counts for the statistics."""
    source = folder / case.source
    if case.entry is Entry.CRYSTALS:
        return judge_crystals(case, source, out)
    from fuzz.checkpoint_oracle import judge_checkpoint

    return judge_checkpoint(case, source, out)
