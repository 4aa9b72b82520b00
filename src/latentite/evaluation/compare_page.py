"""A comparison as one HTML page: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from latentite.evaluation.compare import ColumnPair, Comparison, NumberPair, RatePair
from latentite.evaluation.markup import STYLE
from latentite.metrics.rates import Rate


def make_page(comparison: Comparison) -> str:
    """The whole page as text."""
    names = [escape(name) for name in comparison.names]
    columns = [f"A: {names[0]}", f"B: {names[1]}"]
    counts = "; ".join(
        f"<b>{letter}</b> {escape(folder)}: {count['in']:,} in = {count['scored']:,} scored + "
        f"{count['failed']:,} failed"
        for letter, folder, count in zip("AB", comparison.folders, comparison.counts, strict=True)
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{names[0]} and {names[1]}</title><style>{STYLE}</style></head><body>",
        f"<h1>{names[0]} and {names[1]}</h1><p>{counts}.</p>",
        *(f"<p><b>{escape(line)}</b></p>" for line in warnings(comparison)),
        "<h2>Rates</h2>",
        _table(["", *columns, "B - A", "95 %"], [_rate_row(pair) for pair in comparison.rates]),
        "<p class='small'>In bold: the 95 % interval of the difference (Newcombe's hybrid score interval) excludes 0. "
        "It takes the two sets for independent samples; of twenty rates that do not differ, one is expected to "
        "be bold.</p>",
        "<h2>Sets as a whole</h2>",
        _table(["", *columns], [_number_row(pair) for pair in comparison.numbers]),
        "<h2>Medians</h2>",
        _table(["", *columns, "p (Mann-Whitney)"], [_column_row(pair) for pair in comparison.columns]),
        "</body></html>",
    ]
    return "\n".join(parts)


def warnings(comparison: Comparison) -> list[str]:
    """What stands in the way of reading the numbers as a comparison."""
    settings = [
        f"Not comparable: {name} is {first!r} and {second!r}."
        for name, (first, second) in comparison.differing.items()
    ]
    versions = [
        f"Other versions of {name}: {first} and {second}."
        for name, (first, second) in comparison.versions.items()
    ]
    return settings + versions


def share(rate: Rate | None) -> str:
    """A rate as people read it, short enough for a table."""
    if rate is None or rate.denominator == 0:
        return "–"
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def change(pair: RatePair) -> tuple[str, str]:
    """Difference and interval of a pair in percentage points."""
    found = pair.difference
    if found is None or found.value != found.value:
        return "–", "–"
    return f"{100 * found.value:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _rate_row(pair: RatePair) -> list[str]:
    found, interval = change(pair)
    if pair.difference is not None and pair.difference.is_clear:
        found = f"<b>{found}</b>"
    return [escape(pair.label or pair.name), share(pair.first), share(pair.second), found, interval]


def _number_row(pair: NumberPair) -> list[str]:
    values = ["–" if value is None else f"{value:.4g}" for value in (pair.first, pair.second)]
    return [escape(pair.name.replace(".", ", ").replace("_", " ")), *values]


def _column_row(pair: ColumnPair) -> list[str]:
    return [escape(pair.name), *(f"{median:.4g}" for median in pair.medians), f"{pair.p_value:.2g}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for label, *cells in rows:
        lines.append(f"<tr><td>{label}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
