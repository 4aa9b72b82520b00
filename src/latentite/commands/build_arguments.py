"""Options of `latentite data build` and `csv-to-dataset`, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from latentite.data.sources import SPLITS
from latentite.data.splits import DEFAULT_FRACTIONS

if TYPE_CHECKING:
    from latentite.data.source_rows import BuildOptions


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Add how crystals are divided, which labels and crystals are kept, and `--workers`."""
    add = parser.add_argument
    _add_division(add)
    _add_labels(add)
    _add_limits(add)
    add(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes; they do not change the result [all cores]",
    )


def _add_division(add: Callable[..., argparse.Action]) -> None:
    for split in SPLITS:
        default = DEFAULT_FRACTIONS[split]
        add(
            f"--{split}-fraction",
            type=float,
            default=default,
            metavar="X",
            help=f"share of the crystals for {split} [%(default)s]",
        )
    add(
        "--group-by",
        default="formula",
        metavar="WHAT",
        help="what is not divided among splits: formula, none or a property [%(default)s]",
    )
    add("--seed", type=int, default=0, metavar="N", help="draws the splits [%(default)s]")


def _add_labels(add: Callable[..., argparse.Action]) -> None:
    add(
        "--labels",
        metavar="FILE",
        help="table (CSV, Parquet) of labels that are joined by id or file name [id_prop.csv in the folder, if any]",
    )
    add(
        "--id",
        dest="id_column",
        metavar="COLUMN",
        help="column of ids in the table of --labels [material_id or id]",
    )
    add(
        "--property",
        action="append",
        dest="properties",
        metavar="NAME",
        help="column to keep, one of text as names; repeatable [every column of numbers]",
    )
    add(
        "--categorical",
        action="append",
        default=[],
        metavar="NAME",
        help="column to keep as names, whatever its cells look like; repeatable",
    )
    add(
        "--derive",
        action="append",
        default=[],
        metavar="NAME",
        help="property to compute from the structures, such as density; repeatable",
    )
    add(
        "--symprec",
        type=float,
        default=0.1,
        metavar="Å",
        help="tolerance of space groups that are derived [%(default)s]",
    )


def _add_limits(add: Callable[..., argparse.Action]) -> None:
    add(
        "--max-atoms",
        type=int,
        default=20,
        metavar="N",
        help="reject cells of more atoms; 0: none [%(default)s]",
    )
    add(
        "--min-distance",
        type=float,
        default=0.5,
        metavar="Å",
        help="reject crystals with closer atoms [%(default)s]",
    )
    add("--as-is", action="store_true", help="keep cell, origin and order of atoms of the source")


def fractions(arguments: argparse.Namespace) -> dict[str, float]:
    """Shares of the splits, as given; `build_dataset` checks them."""
    return {split: getattr(arguments, f"{split}_fraction") for split in SPLITS}


def build_options(arguments: argparse.Namespace) -> BuildOptions:
    """How rows become a dataset.

    Raises:
        ValueError: for limits that are none.
    """
    from latentite.data.readers.checks import Limits
    from latentite.data.source_rows import BuildOptions

    return BuildOptions(
        limits=Limits(max_atoms=arguments.max_atoms or None, min_distance=arguments.min_distance),
        properties=None if arguments.properties is None else tuple(arguments.properties),
        derived=tuple(arguments.derive),
        categorical=tuple(arguments.categorical),
        canonical=not arguments.as_is,
        symprec=arguments.symprec,
    )
