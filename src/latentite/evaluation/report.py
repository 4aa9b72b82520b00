"""The folder that an evaluation leaves.

Its files:

    evaluation.json  what is evaluated and how, and whether it is finished (`recording`)
    structures.csv   one row per structure, every metric; an empty cell is a metric that gave nothing
    failed.csv       source, row, id, step and reason of every failure
    summary.json     every rate with numerator, denominator and interval; settings, hashes, versions
    report.html      one page for people, self-contained (`page.py`)
    relaxed.extxyz   with `relax`: geometry, energy, forces, stress and steps of each structure

Results themselves are in the store (`store.py`); `evaluation.json` makes sure that they are used for the same question
when an evaluation goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentite.base.files import parse_json, replacing, write_json
from latentite.base.tables import write_csv
from latentite.evaluation.page import make_page
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import Evaluation, summary


def write_report(result: Evaluation, out_dir: str | Path, *, seed: int = 0) -> None:
    """Write the folder that the module's docstring describes; an older report there is replaced.

    Args:
        result: what was found.
        out_dir: the folder; made when missing.
        seed: draws the structures of the gallery.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(result.table)
    rows = zip(*result.table.values(), strict=True)
    write_csv(folder / "structures.csv", columns, rows)
    failures = ([item.source, item.row, item.id, item.step, item.reason] for item in result.failures)
    write_csv(folder / "failed.csv", ["source", "row", "id", "step", "reason"], failures)
    for section in result.sections:
        for name, write in section.files.items():
            write(folder / name)
    content = summary(result)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(make_page(result, content, seed=seed), encoding="utf-8")
    write_json(folder / "summary.json", content)


RECORD = "evaluation.json"
FORMAT = 1


def new_record(crystals: Crystals, reference: Crystals | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an evaluation that begins.

    Args:
        crystals: what is evaluated.
        reference: what it is held against.
        settings: every option that the report depends on, as plain values by the name that users type.
    """
    return {
        "format": FORMAT,
        "settings": dict(settings),
        "source": _identity(crystals),
        "reference": None if reference is None else _identity(reference),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None where there is none.

    Raises:
        ValueError: for a file that is no such record.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} must be the record of an evaluation (format {FORMAT}), got something else; "
            "evaluate without --resume"
        )
    return content


@contextmanager
def recording(folder: Path, record: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Keeps the record of a folder while the evaluation in it runs: running, then finished or interrupted.

    Raises:
        ValueError: when `resume` is asked for and the folder holds another evaluation, naming what differs.
    """
    if resume and (old := read_record(folder)) is not None:
        _refuse_others(folder, old, record)
    path = folder / RECORD
    write_json(path, {"status": "running", **record})
    status = "interrupted"
    try:
        yield
        status = "finished"
    finally:
        write_json(path, {"status": status, **record})


def _identity(crystals: Crystals) -> dict[str, Any]:
    return {"name": crystals.name, "content_hash": crystals.content_hash, "num_in": crystals.num_in}


def _refuse_others(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(json.loads(json.dumps(new)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--resume needs what the evaluation in {folder} began with: {name} was {before.get(name)!r}, "
                f"got {now.get(name)!r}; give the same, or another --out"
            )


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, by the names that users know; a source may be called otherwise when its content is the
    same."""
    values = dict(record["settings"])
    for side in ("source", "reference"):
        found = record[side] or {}
        values[f"{side} (content)"] = found.get("content_hash")
        values[f"{side} (number of rows)"] = found.get("num_in")
    return values
