"""`latentite evaluate`: the command line of `evaluation/run.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from latentite.evaluation.compare import Comparison
    from latentite.evaluation.energy_options import EnergyOptions
    from latentite.evaluation.run import Evaluation

SPLIT_CHOICES = ("train", "val", "test", "all")


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
    add = command.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a folder or zip of CIFs, an extxyz, a table, ..., or a dataset's name",
    )
    add(
        "--reference",
        metavar="NAME_OR_FILE",
        help="what is known already, given like SOURCE; without it there is no novelty",
    )
    add(
        "--protocol",
        default="default",
        metavar="NAME",
        help="what counts as valid, unique and novel: default, chemeleon2, mattergen, cdvae, lemat [%(default)s]",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add(
        "--split",
        choices=SPLIT_CHOICES,
        default="test",
        help="which one of a SOURCE with splits [%(default)s]",
    )
    add(
        "--reference-split",
        choices=SPLIT_CHOICES,
        default="train",
        help="which one of the reference [%(default)s]",
    )
    add("--resume", action="store_true", help="go on where an evaluation of the same into --out was stopped")
    add("--workers", type=int, metavar="N", help="processes; they do not change the result [all cores]")
    add("--seed", type=int, default=0, metavar="N", help="draws the structures of the gallery [%(default)s]")
    _add_comparisons(command.add_argument_group("features, conditions and targets").add_argument)
    _add_energies(command.add_argument_group("energies and relaxation").add_argument)
    command.set_defaults(func=_evaluate)


def _add_comparisons(add: Callable[..., argparse.Action]) -> None:
    add(
        "--fingerprints",
        default="radial",
        metavar="NAME",
        help="radial; crystalnn adds CDVAE's coverage, 0.3 s a crystal when it is new [%(default)s]",
    )
    add(
        "--vae", metavar="NAME_OR_PATH", help="checkpoint in whose latent space the reference is compared too"
    )
    add(
        "--tolerance",
        action="append",
        metavar="NAME=VALUE",
        help="how far from what was asked of NAME still hits, in its unit; repeatable [5 %% of the value]",
    )
    add(
        "--targets",
        metavar="NAME_OR_FILE",
        help="right structures of what was to be predicted; samples are compared with those of their formula",
    )
    add(
        "--targets-split",
        choices=SPLIT_CHOICES,
        default="test",
        help="which one of the targets [%(default)s]",
    )


def _tolerances(given: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--tolerance must be written NAME=VALUE with a number, got {text!r}") from None
        if name in found:
            raise ValueError(f"--tolerance {name} must be given once, got it twice")
        found[name] = number
    return found


def _add_energies(add: Callable[..., argparse.Action]) -> None:
    add(
        "--relax",
        default="none",
        metavar="POTENTIAL",
        help="none, chgnet, 7net-0 or package.module:Class of an ASE calculator [%(default)s]",
    )
    add(
        "--relax-cell",
        choices=("full", "fixed", "none"),
        default="full",
        help="cell and atoms move, only atoms, or nothing (single points) [%(default)s]",
    )
    add("--relax-steps", type=int, default=500, metavar="N", help="most steps per structure [%(default)s]")
    add("--fmax", type=float, default=0.05, metavar="X", help="largest force at the end, eV/Å [%(default)s]")
    add(
        "--hull",
        action="append",
        metavar="NAME_OR_FILE",
        help="table with formation energies to compete with, every split of it; repeatable [the reference]",
    )
    add(
        "--hull-theory",
        metavar="LEVEL",
        help="level of theory of a hull without a known name, such as 'PBE(+U), corrected' (the Materials Project's)",
    )
    add(
        "--phase-diagram",
        type=Path,
        metavar="JSON",
        help="hull to take instead: a phase diagram or entries of pymatgen, or a hull of latentite; --hull still gives "
        "the element references",
    )
    add("--potential-arguments", metavar="JSON", help="keyword arguments of an ASE calculator")
    add("--potential-theory", metavar="LEVEL", help="what an ASE calculator's energies are, as --hull-theory")
    add(
        "--allow-mixed-theory",
        action="store_true",
        help="judge also when the levels of theory of potential and hull differ",
    )


def _energy_options(arguments: argparse.Namespace) -> EnergyOptions | str:
    if arguments.relax == "none":
        return "none"
    from latentite.energy.catalogue import parse_theory
    from latentite.energy.relaxation import RelaxCell
    from latentite.evaluation.energy_options import EnergyOptions

    try:
        given = json.loads(arguments.potential_arguments or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(
            f"--potential-arguments must be a JSON object, got {arguments.potential_arguments!r}"
        )
    return EnergyOptions(
        potential=arguments.relax,
        cell=RelaxCell(arguments.relax_cell),
        max_steps=arguments.relax_steps,
        fmax=arguments.fmax,
        hull_theory=parse_theory(arguments.hull_theory) if arguments.hull_theory else None,
        phase_diagram=arguments.phase_diagram,
        arguments=given,
        theory=parse_theory(arguments.potential_theory) if arguments.potential_theory else None,
        allow_mixed_theory=arguments.allow_mixed_theory,
    )


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
            relax=_energy_options(arguments),
            hull=arguments.hull,
            fingerprints=arguments.fingerprints,
            vae=arguments.vae,
            tolerances=_tolerances(arguments.tolerance or ()),
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
