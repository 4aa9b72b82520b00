"""`latentite evaluate`: the command line of `evaluation/run.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from latentite.evaluation.run import Evaluation

SPLIT_CHOICES = ("train", "val", "test", "all")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate`; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "evaluate",
        help="validity, uniqueness, novelty and distributions of any set of structures",
        description="Measure structures and hold them against a reference; leaves a folder with structures.csv, "
        "failed.csv, summary.json and report.html.",
    )
    add = command.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a folder or zip of CIFs, an extxyz, a table, ..., or a dataset's name",
    )
    add("--reference", metavar="NAME_OR_FILE", help="what is known already, likewise; for novelty")
    add(
        "--protocol",
        default="default",
        metavar="NAME",
        help="chemeleon2, mattergen, cdvae, lemat [%(default)s]",
    )
    add("--relax", default="none", metavar="HOW", help="only none so far [%(default)s]")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add("--split", choices=SPLIT_CHOICES, default="test", help="of a SOURCE with splits [%(default)s]")
    add("--reference-split", choices=SPLIT_CHOICES, default="train", help="of the reference [%(default)s]")
    add("--resume", action="store_true", help="go on where an evaluation of the same into --out was stopped")
    add("--workers", type=int, metavar="N", help="processes; they do not change the result [all cores]")
    add("--seed", type=int, default=0, help="draws the structures of the gallery [%(default)s]")
    command.set_defaults(func=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    # Imported here: torch and pymatgen take seconds, and `--help` should not.
    from latentite.evaluation.run import evaluate

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:

        def stage(text: str, total: int | None) -> Callable[[int], None]:
            task = progress.add_task(text, total=total)
            return lambda count: progress.advance(task, count)

        result = evaluate(
            arguments.source,
            reference=arguments.reference,
            protocol=arguments.protocol,
            relax=arguments.relax,
            out=arguments.out,
            split=arguments.split,
            reference_split=arguments.reference_split,
            workers=arguments.workers,
            seed=arguments.seed,
            resume=arguments.resume,
            stage=stage,
        )
    console = Console()
    console.print(rates_table(result))
    report = arguments.out / "report.html"
    console.print(f"Report in {report}", markup=False, highlight=False, soft_wrap=True)
    return 0


def rates_table(result: Evaluation, *, title: str | None = None) -> Table:
    """The rates as a rich table."""
    crystals = result.crystals
    table = Table(title=title or f"Evaluation, protocol {result.protocol.name}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    failed = len(crystals.rejections)
    table.add_row("structures", f"{crystals.num_in} in = {len(crystals)} scored + {failed} failed")
    for name, label in result.labels.items():
        table.add_row(label, str(result.rates[name]))
    return table
