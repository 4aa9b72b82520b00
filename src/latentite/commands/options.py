"""Options and the progress bar that commands about trained models share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def add_model_and_source(command: argparse.ArgumentParser) -> None:
    """Add `CKPT` and `SOURCE`, as `checkpoint` and `source`, and `--split` of the latter."""
    command.add_argument("checkpoint", metavar="CKPT", help="a .ckpt or .safetensors file, or a hub name")
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="crystals: CSV, Parquet, JSON, extxyz, a folder of CIFs, ..., a folder made by `latentite data "
        "build` (its --split), or the name of a dataset",
    )
    command.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="test",
        help="which one of a folder with splits [%(default)s]",
    )


def add_running(command: argparse.ArgumentParser) -> None:
    """Add `--batch-size`, `--device` and `--weights`."""
    command.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="crystals at once [%(default)s]"
    )
    command.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... [%(default)s]"
    )
    command.add_argument(
        "--weights", choices=("ema", "raw"), help="moving average or last step [ema where there is one]"
    )


def check_running(arguments: argparse.Namespace) -> None:
    """Refuse what `add_running` lets through.

    Raises:
        ValueError: for a batch size below 1, or a device that is not there.
    """
    from latentite.base.plain import check_device  # imports torch, which `--help` should not

    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    check_device(arguments.device)


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, silent where that is no terminal; gives a function that adds to the count."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
