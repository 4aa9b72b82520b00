"""`latentite hub list | download | verify | export`: the command line of `hub/`, called by `cli.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from latentite import hub


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `hub` and its four commands; each sets `func`, from the arguments to the exit code."""
    parser = subparsers.add_parser("hub", help="named checkpoints: list, download, verify, export")
    commands = parser.add_subparsers(
        dest="hub_command", required=True, metavar="{list,download,verify,export}"
    )

    listing = commands.add_parser("list", help="every name, and whether its file is on this machine")
    listing.set_defaults(func=_list)

    download = commands.add_parser("download", help="fetch public checkpoints into the cache")
    download.add_argument("names", nargs="*", metavar="NAME", help="as `latentite hub list` shows them")
    download.add_argument("--all", action="store_true", help="every public checkpoint")
    download.add_argument("--force", action="store_true", help="fetch again what is there already")
    download.set_defaults(func=_download)

    verify = commands.add_parser("verify", help="hash files again and compare with what was recorded")
    verify.add_argument("names", nargs="*", metavar="NAME", help="default: everything on this machine")
    verify.set_defaults(func=_verify)

    export = commands.add_parser("export", help="write a checkpoint to publish, or for Chemeleon2")
    export.add_argument("checkpoint", help="a file, or a name of `latentite hub list`")
    export.add_argument(
        "out", type=Path, help="the file to write, .safetensors (portable) or .ckpt (chemeleon2)"
    )
    export.add_argument("--format", choices=["portable", "chemeleon2"], default="portable")
    export.add_argument("--weights", choices=["ema", "raw"], help="default: the file's own")
    export.add_argument("--vae-ckpt-path", help="chemeleon2: where it will find the VAE of a diffusion model")
    export.set_defaults(func=_export)


def _list(arguments: argparse.Namespace) -> int:
    table = Table(title="Checkpoints")
    for column in ("name", "kind", "here", "sha256"):
        table.add_column(column, no_wrap=True)
    table.add_column("where", overflow="fold")
    for entry in hub.list_names():
        is_here = "yes" if entry.path is not None else "no"
        table.add_row(entry.name, entry.kind, is_here, (entry.sha256 or "-")[:12], entry.where)
    Console().print(table)
    return 0


def _download(arguments: argparse.Namespace) -> int:
    names = list(hub.PUBLIC) if arguments.all else arguments.names
    if not names:
        return _fail("NAME must be given (or --all); `latentite hub list` shows the names")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    failed = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in names:
            task = progress.add_task(name, total=None)
            failed += _report(name, partial(_fetch, name, arguments.force, progress, task))
            progress.remove_task(task)
    return 1 if failed else 0


def _fetch(name: str, force: bool, progress: Progress, task: TaskID) -> str:
    def show(done: int, total: int | None) -> None:
        progress.update(task, completed=done, total=total)

    return str(hub.download(name, force=force, on_progress=show))


def _verify(arguments: argparse.Namespace) -> int:
    names = arguments.names or [entry.name for entry in hub.list_names() if entry.path is not None]
    if not names:
        Console().print("No checkpoint is on this machine; nothing to verify.")
    failed = sum(_report(name, partial(hub.verify, name)) for name in names)
    return 1 if failed else 0


def _export(arguments: argparse.Namespace) -> int:
    from latentite.checkpoint import export_portable
    from latentite.interop.export import export_chemeleon2

    def write() -> str:
        source = hub.resolve(arguments.checkpoint)
        if arguments.format == "chemeleon2":
            path = export_chemeleon2(
                source, arguments.out, weights=arguments.weights, vae_ckpt_path=arguments.vae_ckpt_path
            )
            return str(path)
        if arguments.vae_ckpt_path is not None:
            raise ValueError("--vae-ckpt-path must only be given with --format chemeleon2")
        stem = arguments.out.with_suffix("") if arguments.out.suffix == ".safetensors" else arguments.out
        return " and ".join(map(str, export_portable(source, stem, weights=arguments.weights)))

    return 1 if _report(arguments.checkpoint, write) else 0


def _report(name: str, action: Callable[[], str]) -> bool:
    """Prints what the action gives, or why it failed; says whether it failed."""
    try:
        result = action()
    except ValueError as error:
        _fail(str(error))
        return True
    Console().print(f"{name}: {result}", markup=False, highlight=False, soft_wrap=True)
    return False


def _fail(message: str) -> int:
    Console(stderr=True).print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
    return 1
