"""`latentite baseline fit`: element baselines of a source as YAML."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from latentite.base.options import add_options, fill, option
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.nn.baseline_ridge import RIDGE, TRIM

if TYPE_CHECKING:
    from latentite.nn.baseline_fit import BaselineFit


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """Options of `latentite baseline fit`."""

    source: str = field(metadata=option("SOURCE", positional=True))
    """Crystals with labels; of a folder with splits the training split."""
    property: str
    """Column of the labels."""
    out: Path = field(metadata=option("YAML"))
    """The file to write, such as sae.yaml."""
    extent: Literal["per_atom", "total"] | None = None
    """Labels are per atom, or of the whole cell [per_atom where NAME ends so]."""
    unit: str | None = field(default=None, metadata=option("UNIT"))
    """Of the labels, written down with them [eV/atom or eV, by the extent]."""
    fidelity: str = "labels"
    """Name of the level of theory."""
    ridge: float = RIDGE
    """Weight of the penalty on large coefficients."""
    trim: float = TRIM
    """Share of rows left out on either side."""


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
    add_options(fit, FitOptions)
    add_options(fit, Limits, only=["max_atoms"], defaults={"max_atoms": None})
    fit.set_defaults(func=lambda arguments: _fit(fill(FitOptions, arguments), fill(Limits, arguments)))


def _fit(options: FitOptions, limits: Limits) -> int:
    # Imported here: torch takes seconds, and `--help` should not.
    from latentite.data.build import read_labelled
    from latentite.data.labels import ours, require_numbers
    from latentite.nn.baseline_fit import fit_baselines, write_baselines

    name = ours(options.property)
    build = BuildOptions(limits=limits, properties=(name,))
    dataset, rejections = read_labelled(options.source, split="train", options=build)
    require_numbers(dataset, name, use="a baseline")
    extent = options.extent or ("per_atom" if name.endswith("_per_atom") else None)
    if extent is None:
        raise ValueError(f"--extent must say whether {name} is per_atom or total (of the whole cell)")
    unit = options.unit or ("eV/atom" if extent == "per_atom" else "eV")
    baselines, fits = fit_baselines(
        dataset.crystals,
        targets=[name],
        extents=[extent],
        fidelities=[options.fidelity],
        ridge=options.ridge,
        trim=options.trim,
    )
    provenance = {
        "source": Path(options.source).name,
        "content_hash": dataset.content_hash,
        "num_rows": len(dataset),
        "num_rejected": len(rejections),
        "ridge": options.ridge,
        "trim": options.trim,
    }
    write_baselines(
        options.out,
        baselines,
        fits,
        units={name: unit},
        reference=options.fidelity,
        provenance=provenance,
    )
    console = Console(highlight=False)
    total = len(dataset) + len(rejections)
    console.print(f"{total:,} in = {len(dataset):,} accepted + {len(rejections):,} rejected", markup=False)
    for line in describe(fits[0], unit=unit, num_rows=len(dataset)):
        console.print(line, markup=False)
    console.print(f"written to {options.out}", markup=False, soft_wrap=True)
    return 0


def describe(fit: BaselineFit, *, unit: str, num_rows: int) -> list[str]:
    """Summary of the fit and of the rest of the labels, in a few lines."""
    per_atom = unit if unit.endswith("/atom") else f"{unit}/atom"
    low, high = fit.residual_percentiles
    return [
        f"{fit.target}: {fit.num_rows:,} labels ({num_rows - fit.num_rows:,} missing), {fit.num_trimmed:,} trimmed, "
        f"{len(fit.fitted)} elements",
        f"labels: standard deviation {fit.label_std:.4f} {per_atom}",
        f"residuals: mean {fit.residual_mean:+.4f}, MAE {fit.residual_mae:.4f}, RMSE {fit.residual_rmse:.4f}, "
        f"between {low:+.4f} and {high:+.4f} {per_atom} for the rows that were kept",
    ]
