"""`latentite vae reconstruct`: crystals through a trained VAE and back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from latentite.base.options import add_options, fill, option
from latentite.base.plain import check_seed
from latentite.base.progress import progress_bar
from latentite.commands.predictor import NetworkOptions
from latentite.data.readers.checks import Limits

if TYPE_CHECKING:
    from latentite.evaluation.reconstruct import Reconstruction


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructOptions(NetworkOptions):
    """Options of `latentite vae reconstruct`."""

    out: Path = field(metadata=option("DIR"))
    """Folder of the report."""
    limit: int | None = None
    """Only N crystals, drawn with --seed [all]."""
    seed: int = 0
    """Draws --limit and the pictures."""
    no_cifs: bool = False
    """Write no pairs of CIFs."""


def register(parser: argparse.ArgumentParser) -> None:
    """Give `latentite vae` its command. `cli.py` reports mistakes."""
    commands = parser.add_subparsers(dest="vae_command", required=True, metavar="{reconstruct}")
    command = commands.add_parser(
        "reconstruct",
        help="encode and decode crystals and report what came back",
        description="Encode crystals, decode the posterior mean, compare; leaves a folder with the report.",
    )
    add_options(command, ReconstructOptions)
    add_options(command, Limits, only=["max_atoms"])
    command.set_defaults(
        func=lambda arguments: _reconstruct(fill(ReconstructOptions, arguments), fill(Limits, arguments))
    )


def _reconstruct(options: ReconstructOptions, limits: Limits) -> int:
    from latentite.evaluation.reconstruct import report_table

    result = _run(options, limits)
    console = Console()
    console.print(report_table(result))
    console.print(f"Report in {options.out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _run(options: ReconstructOptions, limits: Limits) -> Reconstruction:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.data.build import read_source
    from latentite.evaluation.reconstruct import reconstruct, subset, write_report
    from latentite.models import load_vae

    _check(options)
    device = options.check_running()
    network, _, record = load_vae(options.checkpoint, options.weights)
    dataset, rejections = read_source(options.source, split=options.split, max_atoms=limits.max_atoms or 0)
    num_accepted = len(dataset)
    if num_accepted == 0:
        first = f" ({rejections[0].reason})" if rejections else ""
        raise ValueError(f"SOURCE must hold a usable crystal, got none of {len(rejections)}{first}")
    if options.limit is not None:
        dataset = subset(dataset, options.limit, seed=options.seed)
    with progress_bar("decode and match", 2 * len(dataset)) as bar:
        result = reconstruct(
            network,
            dataset,
            rejections=rejections,
            num_accepted=num_accepted,
            batch_size=options.batch_size,
            device=device,
            advance=bar.advance,
        )
    write_report(
        result,
        options.out,
        record=record,
        source=options.source,
        with_cifs=not options.no_cifs,
        seed=options.seed,
    )
    return result


def _check(options: ReconstructOptions) -> None:
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}")
    check_seed(options.seed)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {options.out}")
