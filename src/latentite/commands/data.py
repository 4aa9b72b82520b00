"""`latentite data build | convert | info` and `csv-to-dataset`.

`cli.py` calls `register`; each command sets `func`, from the arguments to the exit code. Errors are raised
as ValueError or FileNotFoundError and become one line there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from latentite.base.options import add_options, fill, option, typed
from latentite.data.options import DEFAULT_FRACTIONS, BuildOptions, DatasetOptions
from latentite.data.readers.checks import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlaces:
    """Inputs and outputs of `latentite data build`."""

    source: str = field(metadata=option("SOURCE", positional=True))
    """A file, a folder, or a name such as mp_20."""
    out: Path = field(metadata=option("DIR"))
    """The folder to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderPlaces:
    """The same of `csv-to-dataset`."""

    csv_folder: str = field(metadata=option("DIR"))
    """A folder of CSVs."""
    output_folder: Path = field(metadata=option("DIR"))
    """The folder to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """Options of `latentite data convert`."""

    source: str = field(metadata=option("SOURCE", positional=True))
    """A file, a folder, or a name such as mp_20."""
    out: Path = field(metadata=option("FILE.h5"))
    """The file to write."""
    split: Literal["train", "val", "test"] = "train"
    """The split of a folder that has splits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InfoOptions:
    """Options of `latentite data info`."""

    data_dir: str = field(metadata=option("DIR", positional=True))
    """A folder of `data build`, a folder with train, val and test files, or a name such as mp_20."""
    png: Path | None = field(default=None, metadata=option("FILE"))
    """Picture to write [DIR/info.png]."""
    no_png: bool = False
    """Write no picture."""


def register(parser: argparse.ArgumentParser) -> None:
    """Give `latentite data` its commands."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="{build,convert,info}")
    _register_build(commands)
    _register_convert(commands)
    _register_info(commands)


def _register_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "build",
        help="files of crystals -> a dataset folder with train, val and test",
        description="Read CSV, Parquet, JSON, HDF5, extxyz, an ASE database or trajectory, CIFs or POSCARs; check, "
        "canonicalise and divide the crystals, and write a folder for data.data_dir. Unusable rows and files go to "
        "rejected.csv.",
    )
    add_options(command, BuildPlaces)
    _add_build_options(command)
    command.set_defaults(func=lambda arguments: _build(fill(BuildPlaces, arguments), arguments))


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    """Settings of the division, and of which labels and crystals are kept."""
    for split, share in DEFAULT_FRACTIONS.items():
        parser.add_argument(
            f"--{split}-fraction",
            type=float,
            default=share,
            metavar="X",
            help=f"share of the crystals for {split} [{share}]",
        )
    add_options(parser, DatasetOptions, BuildOptions)
    add_options(parser, Limits, only=["max_atoms", "min_distance"])


def _register_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "convert",
        help="crystals with their labels -> one HDF5 file, grouped by number of atoms",
        description="Write a source as HDF5 with groups of coord, numbers, cell and one dataset per label, as "
        "potentials are trained on. Unusable rows go to FILE.rejected.csv.",
    )
    add_options(command, ConvertOptions)
    add_options(command, BuildOptions, only=["properties", "canonical"])
    add_options(command, Limits, only=["max_atoms"], defaults={"max_atoms": None})
    command.set_defaults(func=lambda arguments: _convert(fill(ConvertOptions, arguments), _rows(arguments)))


def _register_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "info",
        help="counts, elements, cell sizes and labels of a dataset",
        description="Counts, elements, cell sizes and labels of a dataset. Of one that is built, --max-atoms rejects "
        "nothing.",
    )
    add_options(command, InfoOptions)
    add_options(command, Limits, only=["max_atoms"])
    command.set_defaults(func=lambda arguments: _info(fill(InfoOptions, arguments), fill(Limits, arguments)))


def csv_to_dataset(argv: Sequence[str] | None = None) -> int:
    """The command `csv-to-dataset`: `data build` of a folder of CSVs, under the name that its users know."""
    parser = argparse.ArgumentParser(
        prog="csv-to-dataset", description="A folder of CSVs -> a dataset folder; see `latentite data build`."
    )
    add_options(parser, FolderPlaces)
    _add_build_options(parser)
    arguments = parser.parse_args(argv)
    places = fill(FolderPlaces, arguments)
    return _build(BuildPlaces(source=places.csv_folder, out=places.output_folder), arguments)


def _rows(arguments: argparse.Namespace) -> BuildOptions:
    """The settings of the step from rows to a dataset.

    Raises:
        ValueError: for limits that are none.
    """
    return fill(BuildOptions, arguments, limits=fill(Limits, arguments))


def _source(text: str) -> Path:
    """A path as given, or the folder of the named dataset when there is no such path."""
    from latentite.data.sources import DATASETS, resolve

    path = Path(text)
    return resolve(text) if text in DATASETS and not path.exists() else path


def _build(places: BuildPlaces, arguments: argparse.Namespace) -> int:
    from latentite.data.dataset_folder import build_dataset

    rows = _rows(arguments)  # wrong ones are refused before a data set is fetched
    fractions = {split: getattr(arguments, f"{split}_fraction") for split in DEFAULT_FRACTIONS}
    division = typed(DatasetOptions, arguments)
    summary = build_dataset(_source(places.source), places.out, options=rows, fractions=fractions, **division)
    console = Console(highlight=False)
    colour = "red" if summary.num_rejected else "green"
    console.print(
        f"{summary.num_in:,} in = [green]{summary.num_accepted:,} accepted[/] + "
        f"[{colour}]{summary.num_rejected:,} rejected[/]"
    )
    for reason, count in summary.reasons.items():
        console.print(f"  {count:,} × {reason}", markup=False)
    for name, why in summary.left_out.items():
        console.print(f"column left out: {name} ({why})", markup=False, soft_wrap=True)
    for remark in summary.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.counts.items())
    console.print(f"{counts} (split by {summary.group_by})", markup=False)
    if summary.shared_formulas:
        console.print(
            f"[yellow]{summary.shared_formulas:,} reduced formulas stand in both train and test[/]: "
            "scores on test will look better than they are"
        )
    console.print(f"written to {summary.out_dir} (dataset.json, rejected.csv)", markup=False, soft_wrap=True)
    return 0


def _convert(options: ConvertOptions, rows: BuildOptions) -> int:
    from latentite.data.build import read_labelled
    from latentite.data.dataset_folder import count_reasons, write_rejections
    from latentite.data.readers.hdf5 import write_hdf5

    if options.out.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"--out must end in .h5 or .hdf5, got {options.out}")
    dataset, rejections = read_labelled(options.source, split=options.split, options=rows)
    write_hdf5(options.out, dataset)
    write_rejections(options.out.with_suffix(".rejected.csv"), list(rejections))
    console = Console(highlight=False)
    total = len(dataset) + len(rejections)
    console.print(f"{total:,} in = {len(dataset):,} accepted + {len(rejections):,} rejected")
    for reason, count in count_reasons(rejections).items():
        console.print(f"  {count:,} × {reason}", markup=False)
    console.print(f"written to {options.out}", markup=False, soft_wrap=True)
    return 0


def _info(options: InfoOptions, limits: Limits) -> int:
    from latentite.data.build import load_splits
    from latentite.data.info import describe, draw, tables

    folder = _source(options.data_dir)
    splits = load_splits(folder, options=BuildOptions(limits=limits))
    console = Console(highlight=False)
    for table in tables(describe(splits)):
        console.print(table)
    if not options.no_png:
        path = draw(splits, options.png or folder / "info.png")
        console.print(f"picture: {path}", markup=False, soft_wrap=True)
    return 0
