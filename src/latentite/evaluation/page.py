"""The report as one HTML page: no script, no network, every picture inside the file."""

from __future__ import annotations

import base64
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from latentite.crystal import CrystalBatch
from latentite.draw.cells import draw_crystals, pretty
from latentite.evaluation.distribution_section import draw_charts
from latentite.evaluation.markup import STYLE
from latentite.evaluation.result import Evaluation
from latentite.evaluation.table import Table
from latentite.metrics.rates import Rate

NUM_PICTURES = 24

_WIDE = ("Space groups", "Elements")


_BEST = (
    ("valid, unique and novel", ("valid", "unique", "novel")),
    ("valid and unique", ("valid", "unique")),
    ("of a valid structure", ("structure_valid",)),
)
"""What the gallery shows: the first of these that any structure is."""


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
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>Evaluation of {escape(crystals.name)}</title><style>{STYLE}</style></head><body>",
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
    parts += [_failures(result), _provenance(summary), "</body></html>"]
    return "\n".join(parts)


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
            f"<tr><td>{escape(label)}</td><td><div class='bar'>{bar}</div></td><td class='n'>{share}</td>"
            f"<td class='n'>{rate.numerator:,} of {rate.denominator:,}</td>"
            f"<td class='n small'>{100 * low:.1f} to {100 * high:.1f} %</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


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
    words, able = next(((words, found) for words, found in chosen if found), ("", []))
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
    rows = [
        f"<tr><td>{escape(step)}</td><td>{escape(reason)}</td><td class='n'>{count:,}</td></tr>"
        for (step, reason), count in kinds.most_common(20)
    ]
    head = "<tr><th>step</th><th>reason</th><th>structures</th></tr>"
    return f"<h2>Failures</h2><table>{head}{''.join(rows)}</table><p class='small'>Each stands in failed.csv.</p>"


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
