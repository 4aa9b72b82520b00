"""`latentite predict`: the command line of `predict.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from latentite.commands.options import add_model_and_source, add_running, check_running, counting


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `predict`; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "predict",
        help="predict properties of any structures with a trained predictor",
        description="Predict properties; leaves a CSV with one row per structure of the source: the id, every "
        "target with its uncertainty where that is known, and the reason where there is no prediction.",
    )
    add_model_and_source(command)
    command.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table to write")
    command.add_argument(
        "--fidelity", metavar="NAME", help="level of theory to predict [the reference one of the model]"
    )
    command.add_argument(
        "--max-atoms",
        type=int,
        metavar="N",
        help="cells of more atoms fail; 0: none [the largest cell of its training]",
    )
    add_running(command)
    command.set_defaults(func=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.data.build import read_source
    from latentite.models import load_predictor
    from latentite.predictor.predict import at_fidelity, predict_dataset, write_predictions

    check_running(arguments)
    if arguments.out.is_dir():
        raise ValueError(f"--out must be a file such as table.csv, got the folder {arguments.out}")
    network, _, record = load_predictor(arguments.checkpoint, weights=arguments.weights)
    max_atoms = record.data.largest_cell if arguments.max_atoms is None else arguments.max_atoms
    dataset, rejections = read_source(arguments.source, split=arguments.split, max_atoms=max_atoms)
    at_fidelity(network, dataset.crystals, arguments.fidelity)
    with counting("predict", len(dataset)) as advance:
        table = predict_dataset(
            network,
            dataset,
            rejections=rejections,
            fidelity=arguments.fidelity,
            batch_size=arguments.batch_size,
            device=arguments.device,
            advance=advance,
        )
    write_predictions(table, arguments.out)
    Console().print(
        f"predicted {table.rate}; table in {arguments.out}", markup=False, highlight=False, soft_wrap=True
    )
    return 0
