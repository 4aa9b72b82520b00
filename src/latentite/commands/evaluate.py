"""`latentite evaluate`: the command line of `evaluation/run.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from latentite.commands.evaluate_options import (
    add_comparisons,
    add_energies,
    add_run,
    energy_options,
    tolerances,
)

if TYPE_CHECKING:
    from latentite.evaluation.compare import Comparison
    from latentite.evaluation.result import Evaluation


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate` and `evaluate compare`; they set `func`, arguments to exit code. `cli.py` reports mistakes."""
    _register_compare(subparsers)
    command = subparsers.add_parser(
        "evaluate",
        help="measure any set of structures against a reference",
        description="Measure structures and hold them against a reference; leaves a folder with structures.csv, "
        "failed.csv, summary.json and report.html.",
        epilog="Two finished reports are compared by: latentite evaluate compare A B",
    )
    add_run(command.add_argument)
    add_comparisons(command.add_argument_group("features, conditions and targets").add_argument)
    add_energies(command.add_argument_group("energies and relaxation").add_argument)
    command.set_defaults(func=_evaluate)


def _register_compare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # A command of two words, as `cli.py` joins them: its name is also what the help shows.
    command = subparsers.add_parser(
        "evaluate compare",
        description="Hold two finished evaluations against each other: every rate with its 95 % interval, and the "
        "interval of the difference B - A.",
    )
    add = command.add_argument
    add("first", metavar="A", type=Path, help="folder of a report")
    add("second", metavar="B", type=Path, help="folder of another report")
    add("--out", type=Path, metavar="DIR", help="folder for compare.json and compare.html [write nothing]")
    add("--force", action="store_true", help="compare also when settings or reference differ")
    command.set_defaults(func=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from latentite.evaluation.compare import compare_runs, write_comparison

    found = compare_runs(arguments.first, arguments.second, force=arguments.force)
    console = Console()
    console.print(comparison_table(found))
    if arguments.out is not None:
        write_comparison(found, arguments.out)
        page = arguments.out / "compare.html"
        console.print(f"Comparison in {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


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
            relax=energy_options(arguments),
            hull=arguments.hull,
            fingerprints=arguments.fingerprints,
            vae=arguments.vae,
            tolerances=tolerances(arguments.tolerance or ()),
            targets=arguments.targets,
            targets_split=arguments.targets_split,
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
    note = f"Protocol {result.protocol.name}: {result.protocol.note}."
    console.print(note, markup=False, highlight=False, soft_wrap=True)
    report = arguments.out / "report.html"
    console.print(f"Report in {report}", markup=False, highlight=False, soft_wrap=True)
    return 0


def rates_table(result: Evaluation, *, title: str | None = None) -> Table:
    """The rates, and what sections add to them, as a rich table."""
    crystals = result.crystals
    table = Table(title=title or f"Evaluation, protocol {result.protocol.name}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    failed = len(crystals.rejections)
    table.add_row("structures", f"{crystals.num_in} in = {len(crystals)} scored + {failed} failed")
    for name, label in result.labels.items():
        table.add_row(label, str(result.rates[name]))
    for section in result.sections:
        for label, value in section.lines:
            table.add_row(label, escape(value))
    return table


def comparison_table(comparison: Comparison) -> Table:
    """The rates of two runs, and what differs between them, as a rich table."""
    from latentite.evaluation.compare_page import change, share, warnings

    caption = "\n".join(["bold: the 95 % interval of the difference excludes 0", *warnings(comparison)])
    table = Table(title="{} (A) and {} (B)".format(*map(escape, comparison.names)), caption=escape(caption))
    for heading in ("", "A", "B", "B - A", "95 %"):
        table.add_column(heading, justify="left" if not heading else "right")
    for pair in comparison.rates:
        if pair.label is not None:  # the others are for the files
            is_clear = pair.difference is not None and pair.difference.is_clear
            table.add_row(
                pair.label,
                share(pair.first),
                share(pair.second),
                *change(pair),
                style="bold" if is_clear else "",
            )
    return table
