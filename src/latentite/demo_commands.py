"""`latentite demo`: the command line of `demo.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`; it sets `func`, from the arguments to the exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "demo",
        help="train a small VAE on the embedded crystals and show what it rebuilds; a few minutes",
        description="Make the embedded dataset, train a small VAE, rebuild crystals that it has not seen. "
        "Needs two CPU cores, about eight minutes the first time, and no network.",
    )
    command.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder [%(default)s]")
    command.add_argument("--minutes", type=float, default=5.0, help="of training [%(default)s]")
    command.add_argument("--seed", type=int, default=0, help="of everything random [%(default)s]")
    command.set_defaults(func=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    # Imported here: Lightning and the networks take seconds, and `--help` should not.
    from latentite.demo import run_demo
    from latentite.reconstruct import report_table

    result = run_demo(arguments.out, minutes=arguments.minutes, seed=arguments.seed)
    console = Console()
    console.print(report_table(result.reconstruction, title="Test crystals, rebuilt from 8 numbers per atom"))
    for what, path in (
        ("picture", result.picture),
        ("report", arguments.out / "reconstruction"),
        ("checkpoint", result.fit.last_path),
    ):
        console.print(f"{what:11}{path}", markup=False, highlight=False, soft_wrap=True)
    return 0
