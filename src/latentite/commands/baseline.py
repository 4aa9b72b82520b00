"""`latentite baseline fit`: element baselines of a source as YAML; the command line of `nn/baseline_fit.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from latentite.nn.baseline_fit import BaselineFit


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `baseline` with its command; it sets `func`, arguments to exit code. `cli.py` reports mistakes."""
    parser = subparsers.add_parser("baseline", help="element baselines of a property: fit")
    commands = parser.add_subparsers(dest="baseline_command", required=True, metavar="{fit}")
    fit = commands.add_parser(
        "fit",
        help="one number per element, by ridge least squares",
        description="Fit element baselines (self-atomic energies) to a property: ridge least squares of totals "
        "per formula unit on the numbers of atoms of each element, without the rows of largest residual.",
    )
    add = fit.add_argument
    add("source", metavar="SOURCE", help="crystals with labels; of a folder with splits the training split")
    add("--property", required=True, metavar="NAME", help="column of the labels")
    add("--out", required=True, type=Path, metavar="YAML", help="the file to write, such as sae.yaml")
    add(
        "--extent",
        choices=("per_atom", "total"),
        help="labels are per atom, or of the whole cell [per_atom where NAME ends so]",
    )
    add(
        "--unit",
        default=None,
        metavar="UNIT",
        help="of the labels, written down with them [eV/atom or eV, by the extent]",
    )
    add(
        "--fidelity",
        default="labels",
        metavar="NAME",
        help="what the level of theory is called [%(default)s]",
    )
    add(
        "--ridge",
        type=float,
        default=1e-3,
        metavar="X",
        help="weight of the penalty on large coefficients [%(default)s]",
    )
    add(
        "--trim",
        type=float,
        default=0.02,
        metavar="X",
        help="share of rows left out on either side [%(default)s]",
    )
    add(
        "--max-atoms",
        type=int,
        default=0,
        metavar="N",
        help="reject cells of more atoms; 0: none [%(default)s]",
    )
    fit.set_defaults(func=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    # Imported here: torch takes seconds, and `--help` should not.
    from latentite.data.build import read_labelled
    from latentite.data.labels import ours, require_numbers
    from latentite.data.readers.checks import Limits
    from latentite.data.source_rows import BuildOptions
    from latentite.nn.baseline_fit import fit_baselines, write_baselines

    name = ours(arguments.property)
    options = BuildOptions(limits=Limits(max_atoms=arguments.max_atoms or None), properties=(name,))
    dataset, rejections = read_labelled(arguments.source, split="train", options=options)
    require_numbers(dataset, name, use="a baseline")
    extent = arguments.extent or ("per_atom" if name.endswith("_per_atom") else None)
    if extent is None:
        raise ValueError(f"--extent must say whether {name} is per_atom or total (of the whole cell)")
    unit = arguments.unit or ("eV/atom" if extent == "per_atom" else "eV")
    baselines, fits = fit_baselines(
        dataset.crystals,
        targets=[name],
        extents=[extent],
        fidelities=[arguments.fidelity],
        ridge=arguments.ridge,
        trim=arguments.trim,
    )
    provenance = {
        "source": Path(arguments.source).name,
        "content_hash": dataset.content_hash,
        "num_rows": len(dataset),
        "num_rejected": len(rejections),
        "ridge": arguments.ridge,
        "trim": arguments.trim,
    }
    write_baselines(
        arguments.out,
        baselines,
        fits,
        units={name: unit},
        reference=arguments.fidelity,
        provenance=provenance,
    )
    console = Console(highlight=False)
    total = len(dataset) + len(rejections)
    console.print(f"{total:,} in = {len(dataset):,} accepted + {len(rejections):,} rejected", markup=False)
    for line in describe(fits[0], unit=unit, num_rows=len(dataset)):
        console.print(line, markup=False)
    console.print(f"written to {arguments.out}", markup=False, soft_wrap=True)
    return 0


def describe(fit: BaselineFit, *, unit: str, num_rows: int) -> list[str]:
    """What was fitted and what is left of the labels, in a few lines."""
    per_atom = unit if unit.endswith("/atom") else f"{unit}/atom"
    low, high = fit.residual_percentiles
    return [
        f"{fit.target}: {fit.num_rows:,} labels ({num_rows - fit.num_rows:,} missing), {fit.num_trimmed:,} trimmed, "
        f"{len(fit.fitted)} elements",
        f"labels: standard deviation {fit.label_std:.4f} {per_atom}",
        f"residuals: mean {fit.residual_mean:+.4f}, MAE {fit.residual_mae:.4f}, RMSE {fit.residual_rmse:.4f}, "
        f"between {low:+.4f} and {high:+.4f} {per_atom} for the rows that were kept",
    ]
