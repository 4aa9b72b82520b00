"""`latentite predict`: properties of any structures."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from latentite.base.options import add_options, fill, option
from latentite.base.progress import progress_bar
from latentite.commands.options import NetworkOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(NetworkOptions):
    """Options of `latentite predict`."""

    out: Path = field(metadata=option("CSV"))
    """The table to write."""
    fidelity: str | None = None
    """Level of theory to predict [the reference one of the model]."""
    max_atoms: int | None = None
    """Cells of more atoms fail; 0: none [the largest cell of its training]."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `predict`; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "predict",
        help="predict properties of any structures with a trained predictor",
        description="Predict properties; leaves a CSV with one row per structure of the source: the id, every "
        "target with its uncertainty where that is known, and the reason where there is no prediction.",
    )
    add_options(command, PredictOptions)
    command.set_defaults(func=lambda arguments: _predict(fill(PredictOptions, arguments)))


def _predict(options: PredictOptions) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.data.build import read_source
    from latentite.models import load_predictor
    from latentite.predictor.predict import at_fidelity, predict_dataset, write_predictions

    device = options.check_running(needs_float64=True)  # of the element baselines
    if options.out.is_dir():
        raise ValueError(f"--out must be a file such as table.csv, got the folder {options.out}")
    network, _, record = load_predictor(options.checkpoint, weights=options.weights)
    max_atoms = record.data.largest_cell if options.max_atoms is None else options.max_atoms
    dataset, rejections = read_source(options.source, split=options.split, max_atoms=max_atoms)
    at_fidelity(network, dataset.crystals, options.fidelity)
    with progress_bar("predict", len(dataset)) as bar:
        table = predict_dataset(
            network,
            dataset,
            rejections=rejections,
            fidelity=options.fidelity,
            batch_size=options.batch_size,
            device=device,
            advance=bar.advance,
        )
    write_predictions(table, options.out)
    Console().print(
        f"predicted {table.rate}; table in {options.out}", markup=False, highlight=False, soft_wrap=True
    )
    return 0
