"""The folder that an evaluation leaves.

Its files:

    evaluation.json  what is evaluated and how, and whether it is finished (`recording`)
    structures.csv   one row per structure, every metric; an empty cell is a metric that gave nothing
    failed.csv       source, row, id, step and reason of every failure
    summary.json     every rate with numerator, denominator and interval; settings, hashes, versions
    report.html      one page for people, self-contained: no script, no network, every picture inside the file
    relaxed.extxyz   with `relax`: geometry, energy, forces, stress and steps of each structure

Results themselves are in the store (`store.py`); `evaluation.json` makes sure that they are used for the same question
when an evaluation goes on.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from latentite.base.files import parse_json, replacing, write_csv, write_json
from latentite.crystal import CrystalBatch
from latentite.draw.cells import draw_crystals, pretty
from latentite.evaluation.distribution_section import draw_charts
from latentite.evaluation.markup import Html, document, html_table
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import Evaluation, Table, summary
from latentite.metrics.rates import Rate

RECORD = "evaluation.json"
FORMAT = 1

NUM_PICTURES = 24

_WIDE = ("Space groups", "Elements")
"""Titles of charts that take the whole width begin so."""
_BEST = (
    ("valid, unique and novel", ("valid", "unique", "novel")),
    ("valid and unique", ("valid", "unique")),
    ("of a valid structure", ("structure_valid",)),
)
"""Choices of the gallery: it shows the first of these that any structure is."""


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
    """Settings and contents that must agree, by the names that users know.

    A source may be called otherwise when its content is the same.
    """
    values = dict(record["settings"])
    for side in ("source", "reference"):
        identity = record[side] or {}
        values[f"{side} (content)"] = identity.get("content_hash")
        values[f"{side} (number of rows)"] = identity.get("num_in")
    return values


def make_page(result: Evaluation, summary: Mapping[str, Any], *, seed: int = 0) -> str:
    """The whole page as text.

    Args:
        result: what was found.
        summary: the content of `summary.json`.
        seed: draws the structures of the gallery.
    """
    crystals, protocol = result.crystals, result.protocol
    against = f", held against {escape(result.reference.name)}" if result.reference is not None else ""
    counts = f"{crystals.num_in:,} in = {len(crystals):,} scored + {len(crystals.rejections):,} failed"
    parts = [
        f"<h1>{escape(crystals.name)}</h1><p>{counts}{against}.</p>",
        f"<p class='small'>Protocol <b>{protocol.name}</b>: {escape(protocol.note)}. Relaxation: {result.relax}. "
        "Numbers of different protocols cannot be compared.</p>",
        "<h2>Rates</h2>",
        _rates(result.rates, result.labels),
        "<p class='small'>Bars: the share; dark line: its 95 % interval (Wilson). A denominator below the number "
        "of scored structures leaves out those for which the metric gave nothing.</p>",
        *(section.page() for section in result.sections),
    ]
    if len(crystals):
        parts += ["<h2>Generated against reference</h2>", _charts(result), "<h2>Structures</h2>"]
        parts.append(_gallery(result, seed))
    parts += [_failures(result), _provenance(summary)]
    return document(f"Evaluation of {crystals.name}", parts)


def _rates(rates: Mapping[str, Rate], labels: Mapping[str, str]) -> str:
    rows = []
    for name, label in labels.items():
        rate = rates[name]
        low, high = rate.interval
        share = f"{100 * rate.value:.1f} %" if rate.denominator else "–"
        width = 100 * rate.value if rate.denominator else 0.0
        bar = f"<i style='width:{width:.2f}%'></i>"
        bar += f"<b style='left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%'></b>"
        rows.append(
            [
                *(label, Html(f"<div class='bar'>{bar}</div>"), share),
                f"{rate.numerator:,} of {rate.denominator:,}",
                Html(f"<span class='small'>{100 * low:.1f} to {100 * high:.1f} %</span>"),
            ]
        )
    return html_table([], rows, num_labels=2)


def _charts(result: Evaluation) -> str:
    figures = []
    for title, svg in draw_charts(result.measured, result.reference_measured).items():
        kind = " class='wide'" if title.startswith(_WIDE) else ""
        figures.append(f"<figure{kind}><figcaption>{escape(title)}</figcaption>{svg}</figure>")
    return f"<div class='charts'>{''.join(figures)}</div>"


def _gallery(result: Evaluation, seed: int) -> str:
    """Pictures of the best there are: valid, unique and novel ones if any, drawn at random among them."""
    table = result.table
    chosen = (
        (words, [p for p in range(len(result.crystals)) if all(table[name][p] is True for name in columns)])
        for words, columns in _BEST
        if all(name in table for name in columns)
    )
    words, able = next(((words, members) for words, members in chosen if members), ("", []))
    if not able:
        return "<p>No structure is valid, so none is drawn.</p>"
    positions, how = _lowest(table, able) or _drawn(able, seed)
    batch = CrystalBatch.from_arrays([result.crystals.arrays[p] for p in positions])
    titles = [_title(table, p) for p in positions]
    with tempfile.TemporaryDirectory(prefix="latentite-report-") as folder:
        path = draw_crystals(batch, Path(folder) / "gallery.png", titles=titles, columns=6, dpi=110)
        picture = base64.b64encode(path.read_bytes()).decode()
    ids = ", ".join(escape(result.crystals.ids[p]) for p in positions)
    return (
        f"<p>{len(positions)} of {len(able):,} that are {words}, {how}; formula and space group number at 0.1 "
        f"Å.</p><img alt='unit cells' src='data:image/png;base64,{picture}'>"
        f"<p class='small'>{ids}</p>"
    )


def _lowest(table: Table, able: Sequence[int]) -> tuple[list[int], str] | None:
    """Those of the lowest known energy above hull, if any is known."""
    for name, words in (("relaxed_energy_above_hull", "relaxed "), ("energy_above_hull", "")):
        heights = table.get(name, [None] * len(table["id"]))
        known = [(float(height), p) for p in able if isinstance(height := heights[p], int | float)]
        if known:
            best = [p for _, p in sorted(known)[:NUM_PICTURES]]
            return best, f"those of the lowest {words}energy above hull, with that in meV/atom"
    return None


def _drawn(able: Sequence[int], seed: int) -> tuple[list[int], str]:
    generator = np.random.default_rng(seed)
    positions = [able[i] for i in np.sort(generator.permutation(len(able))[:NUM_PICTURES])]
    return positions, f"drawn with seed {seed}"


def _title(table: Table, position: int) -> str:
    words = [pretty(str(table["formula"][position])), str(table["space_group_0.1"][position] or "")]
    for name in ("relaxed_energy_above_hull", "energy_above_hull"):
        height = table[name][position] if name in table else None
        if isinstance(height, float):
            words.append(f"{1000 * height:.0f}")
            break
    return "  ".join(words)


def _kind(reason: str) -> str:
    """A reason without its numbers and what follows a colon, so that equal ones are counted together."""
    return re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "…", reason.split(":")[0])


def _failures(result: Evaluation) -> str:
    if not result.failures:
        return "<h2>Failures</h2><p>None.</p>"
    kinds = Counter((item.step, _kind(item.reason)) for item in result.failures)
    rows = [[step, reason, f"{count:,}"] for (step, reason), count in kinds.most_common(20)]
    listed = html_table(["step", "reason", "structures"], rows, num_labels=2)
    return f"<h2>Failures</h2>{listed}<p class='small'>Each stands in failed.csv.</p>"


def _provenance(summary: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    matchers = "; ".join(
        f"{name} {m['ltol']:g}/{m['stol']:g}/{m['angle_tol']:g}°" for name, m in summary["matchers"].items()
    )
    lines = [
        f"Versions: {versions}.",
        f"StructureMatcher: {matchers}; here {summary['protocol']['matcher']}.",
    ]
    lines.append(f"Content of the source: <code>{summary['source_content_hash']}</code>")
    if summary["reference"]:
        lines.append(
            f"Reference: {escape(summary['reference']['name'])}, {summary['reference']['num_structures']:,} "
            f"structures, <code>{summary['reference']['content_hash']}</code>"
        )
    return f"<h2>Where it comes from</h2><p class='small'>{'<br>'.join(lines)}</p>"
