"""Tables as CSV: the one writer of whole files, and lines for files that grow."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from latentite.base.files import replacing


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes a table, atomically; its cells are those of `cell`."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(map(cell, row) for row in chain([header], rows))


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows for a file that grows: numbers with all their digits, lines that end in a newline only."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def cell(value: object) -> str:
    """Numbers with six digits, and nothing for None and what is not finite, as every reader of CSV understands; `yes`
    and `no`; text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
