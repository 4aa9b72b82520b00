"""Figures as files: always off screen (Agg), written atomically, in one style.

`cells.py` draws crystals on them, `charts.py` and `curves.py` numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentite.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, EDGE = "#22272e", "#5b6470"
"""Colours of text and of thin lines."""


def new_figure(width: float, height: float, heading: str | None) -> Figure:
    """A figure with a canvas of its own: no window system, no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width, height + (0.4 if heading else 0.0)), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    if heading:
        figure.suptitle(heading, fontsize=12, color=INK, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int) -> Path:
    """Write a figure as PNG; gives its path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    return Path(path)
