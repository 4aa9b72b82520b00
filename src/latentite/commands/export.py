"""`latentite export`: a predictor at one fidelity as one file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from latentite.base.options import add_options, fill, option


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Options of `latentite export`."""

    checkpoint: str = field(metadata=option("CKPT", positional=True))
    """A .ckpt or .safetensors file, or a hub name."""
    out: Path = field(metadata=option("FILE"))
    """Ending .pt2, .pt or .safetensors, by the format."""
    format: Literal["pt2", "torchscript", "safetensors"] = "pt2"
    """Format of the file: torch.export, a trace, or weights and config."""
    fidelity: str | None = None
    """Level of theory [the reference]."""
    weights: Literal["ema", "raw"] | None = None
    """The set of weights [ema where there are any]."""
    d3bj: str | None = field(default=None, metadata=option("FUNCTIONAL"))
    """Add D3(BJ) dispersion, with dftd3's parameters for this functional."""
    d3_target: str | None = None
    """The total energy that it is added to [the only target]."""
    labels_without_dispersion: bool = False
    """You say that the labels contain none, where the checkpoint does not."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export`; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "export",
        help="a predictor at one fidelity as one file that runs elsewhere",
        description="Write a trained predictor at one fidelity, its baseline added back, as a file for "
        "`latentite.predictor.exported.load_exported(FILE).predict(atoms)`.",
    )
    add_options(command, ExportOptions)
    command.set_defaults(func=lambda arguments: _export(fill(ExportOptions, arguments)))


def _export(options: ExportOptions) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.energy.dispersion import Dispersion
    from latentite.models import load_predictor
    from latentite.predictor.export import export_predictor, plan_dispersion

    network, _, record = load_predictor(options.checkpoint, weights=options.weights)
    targets = network.config.targets
    dispersion = None
    if options.d3bj is not None:
        if options.d3_target is None and len(targets) > 1:
            raise ValueError(f"--d3-target must say which of {', '.join(targets)} is a total energy")
        dispersion = plan_dispersion(
            network,
            record,
            method=options.d3bj,
            target=options.d3_target or targets[0],
            fidelity=options.fidelity,
            labels_have_none=options.labels_without_dispersion,
        )
    card = export_predictor(
        network,
        record,
        options.out,
        format=options.format,
        fidelity=options.fidelity,
        dispersion=dispersion,
    )
    console = Console(highlight=False)
    console.print(
        f"{', '.join(targets)} at fidelity {card['fidelity']}, {len(card['elements'])} elements", markup=False
    )
    if dispersion is not None:
        console.print(f"{dispersion['target']} + {Dispersion(**dispersion['d3bj']).describe()}", markup=False)
    console.print(f"written to {options.out}", markup=False, soft_wrap=True)
    return 0
