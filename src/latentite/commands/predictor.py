"""`latentite predict`, `export` and `baseline fit`: a predictor used, written as one file, and its baselines fitted."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from latentite.base.machine import BATCH_SIZE, resolve_device
from latentite.base.options import add_options, fill, make_command, option
from latentite.base.progress import progress_bar
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.nn.baseline_ridge import RIDGE, TRIM

if TYPE_CHECKING:
    import torch

    from latentite.nn.baseline_fit import BaselineFit


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkOptions:
    """A trained network, the crystals that it is shown, and how it is run."""

    checkpoint: str = field(metadata=option("CKPT", positional=True))
    """A .ckpt or .safetensors file, or a hub name."""
    source: str = field(metadata=option("SOURCE", positional=True))
    """Crystals: CSV, Parquet, JSON, extxyz, a folder of CIFs, ..., a folder made by `latentite data build` (its
    --split), or the name of a dataset."""
    split: Literal["train", "val", "test"] = "test"
    """The split of a folder that has splits."""
    batch_size: int = BATCH_SIZE
    """Crystals at once."""
    device: str = "auto"
    """One of auto, cpu, cuda, cuda:1, ..., mps."""
    weights: Literal["ema", "raw"] | None = None
    """Moving average or last step [ema where there is one]."""

    def check_running(self, *, needs_float64: bool = False) -> torch.device:
        """The device, once nothing speaks against running the network on it.

        Raises:
            ValueError: for a batch size below 1, or a device that is not there.
        """
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        return resolve_device(self.device, needs_float64=needs_float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(NetworkOptions):
    """Options of `latentite predict`."""

    out: Path = field(metadata=option("CSV"))
    """The table to write."""
    fidelity: str | None = None
    """Level of theory to predict [the reference one of the model]."""
    max_atoms: int | None = None
    """Cells of more atoms fail; 0: none [the largest cell of its training]."""


def register_predict(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite predict`. `cli.py` reports mistakes."""
    make_command(
        parser,
        _predict,
        PredictOptions,
        description="Predict properties; leaves a CSV with one row per structure of the source: the id, every "
        "target with its uncertainty where that is known, and the reason where there is no prediction.",
    )


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


def register_export(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite export`. `cli.py` reports mistakes."""
    make_command(
        parser,
        _export,
        ExportOptions,
        description="Write a trained predictor at one fidelity, its baseline added back, as a file for "
        "`latentite.predictor.exported.load_exported(FILE).predict(atoms)`.",
    )


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


def register_baseline(parser: argparse.ArgumentParser) -> None:
    """Give `latentite baseline` its command. `cli.py` reports mistakes."""
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
