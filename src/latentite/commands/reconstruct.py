"""`latentite vae reconstruct`: the command line of `reconstruct.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from latentite.base.plain import check_seed
from latentite.commands.options import add_model_and_source, add_running, check_running, counting

if TYPE_CHECKING:
    from latentite.evaluation.reconstruct import Reconstruction


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `vae` and its commands; each sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    parser = subparsers.add_parser("vae", help="a trained VAE at work: rebuild crystals")
    commands = parser.add_subparsers(dest="vae_command", required=True, metavar="{reconstruct}")
    command = commands.add_parser(
        "reconstruct",
        help="encode and decode crystals and report what came back",
        description="Encode crystals, decode the posterior mean, compare; leaves a folder with the report.",
    )
    add_model_and_source(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    command.add_argument("--limit", type=int, metavar="N", help="only N crystals, drawn with --seed [all]")
    command.add_argument(
        "--max-atoms",
        type=int,
        default=20,
        metavar="N",
        help="reject cells of more atoms; 0: none [%(default)s]",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws --limit and the pictures [%(default)s]"
    )
    add_running(command)
    command.add_argument("--no-cifs", action="store_true", help="write no pairs of CIFs")
    command.set_defaults(func=_reconstruct)


def _reconstruct(arguments: argparse.Namespace) -> int:
    from latentite.evaluation.reconstruct import report_table

    result = _run(arguments)
    console = Console()
    console.print(report_table(result))
    console.print(f"Report in {arguments.out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _run(arguments: argparse.Namespace) -> Reconstruction:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.data.build import read_source
    from latentite.evaluation.reconstruct import reconstruct, subset, write_report
    from latentite.models import load_vae

    _check(arguments)
    network, _, record = load_vae(arguments.checkpoint, arguments.weights)
    dataset, rejections = read_source(arguments.source, split=arguments.split, max_atoms=arguments.max_atoms)
    num_accepted = len(dataset)
    if num_accepted == 0:
        first = f" ({rejections[0].reason})" if rejections else ""
        raise ValueError(f"SOURCE must hold a usable crystal, got none of {len(rejections)}{first}")
    if arguments.limit is not None:
        dataset = subset(dataset, arguments.limit, seed=arguments.seed)
    with counting("decode and match", 2 * len(dataset)) as advance:
        result = reconstruct(
            network,
            dataset,
            rejections=rejections,
            num_accepted=num_accepted,
            batch_size=arguments.batch_size,
            device=arguments.device,
            advance=advance,
        )
    write_report(
        result,
        arguments.out,
        record=record,
        source=str(arguments.source),
        with_cifs=not arguments.no_cifs,
        seed=arguments.seed,
    )
    return result


def _check(arguments: argparse.Namespace) -> None:
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {arguments.limit}")
    check_running(arguments)
    check_seed(arguments.seed)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {arguments.out}")
