"""Pieces of an HTML page as text: the page around them, tables, numbers, figures. No script, no network.

Cells of tables are escaped, unless they are `Html` already.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from latentite.draw.charts import INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#22272e;max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .6rem}p{margin:.4rem 0}
table{border-collapse:collapse;width:100%}td,th{padding:.28rem .6rem;border-bottom:1px solid #e3e6ea;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{position:relative;height:.8rem;background:#eef0f3;border-radius:3px;width:16rem}
.bar i{position:absolute;top:0;bottom:0;left:0;background:#2f6f9f;border-radius:3px}
.bar b{position:absolute;top:.3rem;height:.2rem;background:#22272e;opacity:.55}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts figure{margin:0;flex:1 1 440px}.charts figure.wide{flex-basis:100%}
figcaption{font-weight:600;font-size:.9rem}svg,img{max-width:100%;height:auto}.small{color:#5b6470;font-size:.87rem}
code{font-size:.85em;overflow-wrap:anywhere}
"""


class Html(str):
    """Text that is HTML already, so that `html_table` takes it as it stands."""

    __slots__ = ()


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        parts: of the body, HTML each.
    """
    lines = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        *parts,
        "</body></html>",
    ]
    return "\n".join(lines)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_labels: int = 1) -> str:
    """A table.

    Args:
        head: of the columns; none for no line of heads.
        rows: cells.
        num_labels: columns at the left that hold text; the others hold numbers, which stand at the right.
    """
    lines = [f"<tr>{''.join(f'<th>{_cell(cell)}</th>' for cell in head)}</tr>"] if head else []
    for row in rows:
        labels = "".join(f"<td>{_cell(cell)}</td>" for cell in row[:num_labels])
        numbers = "".join(f"<td class='n'>{_cell(cell)}</td>" for cell in row[num_labels:])
        lines.append(f"<tr>{labels}{numbers}</tr>")
    return f"<table>{''.join(lines)}</table>"


def number_text(value: float | None, form: str = ".4g", unit: str = "") -> str:
    """A number with its unit, or a dash where there is none."""
    return "–" if value is None else f"{value:{form}} {unit}".strip()


def _cell(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def svg_text(figure: Figure) -> str:
    """A figure as SVG for a page; the same figure gives the same bytes."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # No date, and names of parts that do not come from chance.
    with mpl.rc_context({"svg.hashsalt": "latentite"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def share_axes(unit: str, *, width: float = 4.6, height: float = 2.5) -> tuple[Figure, Axes]:
    """A figure with axes for shares."""
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(width, height, None)
    axes = figure.subplots()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(unit, fontsize=8, color=INK)
    return figure, axes
