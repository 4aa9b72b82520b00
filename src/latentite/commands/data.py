"""`latentite data build | convert | info` and `csv-to-dataset`: the command line of `build.py` and `info.py`.

`cli.py` calls `register`; each subcommand sets `func`, from the arguments to the exit code. Errors are raised
as ValueError or FileNotFoundError and become one line there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from latentite.commands.build_arguments import add_build_options, build_options, fractions
from latentite.data.sources import SPLITS


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` with its commands."""
    parser = subparsers.add_parser(
        "data", help="datasets: build from your files, convert to HDF5, look into one"
    )
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
    command.add_argument("source", metavar="SOURCE", help="a file, a folder, or a name such as mp_20")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    add_build_options(command)
    command.set_defaults(func=_build)


def _register_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "convert",
        help="crystals with their labels -> one HDF5 file, grouped by number of atoms",
        description="Write a source as HDF5 with groups of coord, numbers, cell and one dataset per label, as "
        "potentials are trained on. Unusable rows go to FILE.rejected.csv.",
    )
    command.add_argument("source", metavar="SOURCE", help="a file, a folder, or a name such as mp_20")
    command.add_argument("--out", required=True, type=Path, metavar="FILE.h5", help="the file to write")
    command.add_argument(
        "--split", choices=SPLITS, default="train", help="which one of a folder with splits [%(default)s]"
    )
    command.add_argument(
        "--property",
        action="append",
        dest="properties",
        metavar="NAME",
        help="label to write; repeatable [every numeric column]",
    )
    command.add_argument(
        "--max-atoms",
        type=int,
        default=0,
        metavar="N",
        help="reject cells of more atoms; 0: none [%(default)s]",
    )
    command.add_argument(
        "--as-is", action="store_true", help="keep cell, origin and order of atoms of the source"
    )
    command.set_defaults(func=_convert)


def _register_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("info", help="counts, elements, cell sizes and labels of a dataset")
    command.add_argument(
        "data_dir",
        metavar="DIR",
        help="a folder of `data build`, a folder with train, val and test files, or a name such as mp_20",
    )
    command.add_argument("--png", type=Path, metavar="FILE", help="picture to write [DIR/info.png]")
    command.add_argument("--no-png", action="store_true", help="write no picture")
    command.add_argument(
        "--max-atoms",
        type=int,
        default=20,
        metavar="N",
        help="of files that are not built: reject cells of more atoms; 0: none [%(default)s]",
    )
    command.set_defaults(func=_info)


def csv_to_dataset(argv: Sequence[str] | None = None) -> int:
    """The command `csv-to-dataset`: `data build` of a folder of CSVs, under the name that its users know."""
    parser = argparse.ArgumentParser(
        prog="csv-to-dataset", description="A folder of CSVs -> a dataset folder; see `latentite data build`."
    )
    parser.add_argument("--csv-folder", required=True, dest="source", metavar="DIR", help="a folder of CSVs")
    parser.add_argument(
        "--output-folder", required=True, dest="out", type=Path, metavar="DIR", help="the folder to write"
    )
    add_build_options(parser)
    return _build(parser.parse_args(argv))


def _source(text: str) -> Path:
    """A path as given, or the folder of the named dataset when there is no such path."""
    from latentite.data.sources import DATASETS, resolve

    path = Path(text)
    return resolve(text) if text in DATASETS and not path.exists() else path


def _build(arguments: argparse.Namespace) -> int:
    from latentite.data.dataset_folder import build_dataset

    options = build_options(arguments)  # wrong ones are refused before a data set is fetched
    summary = build_dataset(
        _source(arguments.source),
        arguments.out,
        fractions=fractions(arguments),
        group_by=arguments.group_by,
        seed=arguments.seed,
        options=options,
        labels=arguments.labels,
        id_column=arguments.id_column,
        workers=arguments.workers,
    )
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


def _convert(arguments: argparse.Namespace) -> int:
    from latentite.data.build import read_labelled
    from latentite.data.dataset_folder import count_reasons, write_rejections
    from latentite.data.readers.checks import Limits
    from latentite.data.readers.hdf5 import write_hdf5
    from latentite.data.source_rows import BuildOptions

    if arguments.out.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"--out must end in .h5 or .hdf5, got {arguments.out}")
    options = BuildOptions(
        limits=Limits(max_atoms=arguments.max_atoms or None),
        properties=None if arguments.properties is None else tuple(arguments.properties),
        canonical=not arguments.as_is,
    )
    dataset, rejections = read_labelled(arguments.source, split=arguments.split, options=options)
    write_hdf5(arguments.out, dataset)
    write_rejections(arguments.out.with_suffix(".rejected.csv"), list(rejections))
    console = Console(highlight=False)
    total = len(dataset) + len(rejections)
    console.print(f"{total:,} in = {len(dataset):,} accepted + {len(rejections):,} rejected")
    for reason, count in count_reasons(rejections).items():
        console.print(f"  {count:,} × {reason}", markup=False)
    console.print(f"written to {arguments.out}", markup=False, soft_wrap=True)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from latentite.data.build import load_splits
    from latentite.data.info import describe, draw, tables
    from latentite.data.readers.checks import Limits
    from latentite.data.source_rows import BuildOptions

    options = BuildOptions(limits=Limits(max_atoms=arguments.max_atoms or None))
    folder = _source(arguments.data_dir)
    splits = load_splits(folder, options=options)
    console = Console(highlight=False)
    for table in tables(describe(splits)):
        console.print(table)
    if not arguments.no_png:
        path = draw(splits, arguments.png or folder / "info.png")
        console.print(f"picture: {path}", markup=False, soft_wrap=True)
    return 0
