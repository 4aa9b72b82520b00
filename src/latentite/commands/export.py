"""`latentite export`: the command line of `export.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export`; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "export",
        help="a predictor at one fidelity as one file that runs elsewhere",
        description="Write a trained predictor at one fidelity, its baseline added back, as a file for "
        "`latentite.predictor.exported.load_exported(FILE).predict(atoms)`.",
    )
    add = command.add_argument
    add("checkpoint", metavar="CKPT", help="a .ckpt or .safetensors file, or a hub name")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="ending .pt2, .pt or .safetensors, by the format",
    )
    add("--format", choices=("pt2", "torchscript", "safetensors"), default="pt2", help="[%(default)s]")
    add("--fidelity", metavar="NAME", help="level of theory [the reference]")
    add("--weights", choices=("ema", "raw"), help="which weights [ema where there are any]")
    add(
        "--d3bj",
        metavar="FUNCTIONAL",
        help="add D3(BJ) dispersion, with dftd3's parameters for this functional",
    )
    add("--d3-target", metavar="NAME", help="the total energy that it is added to [the only target]")
    add(
        "--labels-without-dispersion",
        action="store_true",
        help="you say that the labels contain none, where the checkpoint does not",
    )
    command.set_defaults(func=_export)


def _export(arguments: argparse.Namespace) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.energy.dispersion import Dispersion
    from latentite.models import load_predictor
    from latentite.predictor.export import export_predictor, plan_dispersion

    network, _, record = load_predictor(arguments.checkpoint, weights=arguments.weights)
    targets = network.config.targets
    dispersion = None
    if arguments.d3bj is not None:
        if arguments.d3_target is None and len(targets) > 1:
            raise ValueError(f"--d3-target must say which of {', '.join(targets)} is a total energy")
        dispersion = plan_dispersion(
            network,
            record,
            method=arguments.d3bj,
            target=arguments.d3_target or targets[0],
            fidelity=arguments.fidelity,
            labels_have_none=arguments.labels_without_dispersion,
        )
    card = export_predictor(
        network,
        record,
        arguments.out,
        format=arguments.format,
        fidelity=arguments.fidelity,
        dispersion=dispersion,
    )
    console = Console(highlight=False)
    console.print(
        f"{', '.join(targets)} at fidelity {card['fidelity']}, {len(card['elements'])} elements", markup=False
    )
    if dispersion is not None:
        console.print(f"{dispersion['target']} + {Dispersion(**dispersion['d3bj']).describe()}", markup=False)
    console.print(f"written to {arguments.out}", markup=False, soft_wrap=True)
    return 0
