"""`latentite evaluate` and `latentite evaluate compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latentite.base.files import parse_json
from latentite.base.options import add_options, fill, make_command, option, typed, typed_flags
from latentite.base.progress import ProgressBars
from latentite.energy.settings import RelaxSettings
from latentite.evaluation.options import EnergyOptions, EvaluateOptions

if TYPE_CHECKING:
    from latentite.evaluation.compare import Comparison
    from latentite.evaluation.result import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Options of `latentite evaluate compare`."""

    first: Path = field(metadata=option("A", positional=True))
    """Folder of a report."""
    second: Path = field(metadata=option("B", positional=True))
    """Folder of another report."""
    out: Path | None = field(default=None, metadata=option("DIR"))
    """Folder for compare.json and compare.html [write nothing]."""
    force: bool = False
    """Compare also when settings or reference differ."""


def register(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite evaluate`. `cli.py` reports mistakes."""
    parser.description = (
        "Measure structures and hold them against a reference; leaves a folder with structures.csv, failed.csv, "
        "summary.json and report.html."
    )
    parser.epilog = "Two finished reports are compared by: latentite evaluate compare A B"
    add_options(parser, EvaluateOptions, required=["out"])
    add_options(parser, RelaxSettings, only=["cell", "max_steps", "fmax"])
    add_options(parser, EnergyOptions)
    parser.set_defaults(func=lambda arguments: _evaluate(evaluate_options(arguments)))


def register_compare(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite evaluate compare`. `cli.py` reports mistakes."""
    make_command(
        parser,
        _compare,
        CompareOptions,
        description="Hold two finished evaluations against each other: every rate with its 95 % interval, and the "
        "interval of the difference B - A.",
    )


def evaluate_options(arguments: argparse.Namespace) -> EvaluateOptions:
    """The typed options.

    Raises:
        ValueError: for tolerances that are no numbers, potential arguments that are no JSON object, a level of theory
            that is none, settings that `RelaxSettings` refuse, or options of energies without `--relax`.
    """
    given = typed(EvaluateOptions, arguments)
    if "tolerances" in given:
        given["tolerances"] = _tolerances(given["tolerances"])
    options = EvaluateOptions(**given)
    if options.relax != "none":
        return replace(options, relax=_energies(arguments, given["relax"]))
    if without_use := [*typed_flags(EnergyOptions, arguments), *typed_flags(RelaxSettings, arguments)]:
        raise ValueError(
            f"{', '.join(without_use)} must be given together with --relax, got no potential to judge by"
        )
    return options


def _energies(arguments: argparse.Namespace, potential: str) -> EnergyOptions:
    from latentite.energy.catalogue import parse_theory  # imports torch, which `--help` should not

    given = typed(EnergyOptions, arguments)
    for name in ("hull_theory", "theory"):
        if name in given:
            given[name] = parse_theory(given[name])
    if "arguments" in given:
        try:
            value = parse_json(given["arguments"])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"--potential-arguments must be a JSON object, got {given['arguments']!r}")
        given["arguments"] = value
    return EnergyOptions(potential=potential, settings=fill(RelaxSettings, arguments), **given)


def _tolerances(texts: Sequence[str]) -> dict[str, float]:
    """`--tolerance NAME=VALUE`, each once, by name.

    Raises:
        ValueError: for anything else.
    """
    tolerances: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--tolerance must be written NAME=VALUE with a number, got {text!r}") from None
        if name in tolerances:
            raise ValueError(f"--tolerance {name} must be given once, got it twice")
        tolerances[name] = number
    return tolerances


def _compare(options: CompareOptions) -> int:
    from latentite.evaluation.compare import compare_runs, write_comparison

    comparison = compare_runs(options.first, options.second, force=options.force)
    console = Console()
    console.print(comparison_table(comparison))
    if options.out is not None:
        write_comparison(comparison, options.out)
        page = options.out / "compare.html"
        console.print(f"Comparison in {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _evaluate(options: EvaluateOptions) -> int:
    # Imported here: torch and pymatgen take seconds, and `--help` should not.
    from latentite.evaluation.run import evaluate_from

    with ProgressBars() as bars:
        result = evaluate_from(options, stage=lambda text, total: bars.add(text, total).advance)
    console = Console()
    console.print(rates_table(result))
    note = f"Protocol {result.protocol.name}: {result.protocol.note}."
    console.print(note, markup=False, highlight=False, soft_wrap=True)
    report = Path(options.out or ".") / "report.html"
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
    from latentite.evaluation.compare import change, share, warnings

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
