"""`latentite hub list | download | verify | export | bundle`: the command line of `hub/`, called by `cli.py`."""

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
    """Adds `hub` and its commands; each sets `func`, from the arguments to the exit code."""
    parser = subparsers.add_parser("hub", help="named checkpoints: list, download, verify, export, bundle")
    commands = parser.add_subparsers(
        dest="hub_command", required=True, metavar="{list,download,verify,export,bundle}"
    )

    listing = commands.add_parser("list", help="every name, and whether its file is on this machine")
    listing.set_defaults(func=_list)
    _register_download(commands)
    _register_verify(commands)
    _register_export(commands)
    _register_bundle(commands)


def _register_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("download", help="fetch public checkpoints into the cache")
    command.add_argument("names", nargs="*", metavar="NAME", help="as `latentite hub list` shows them")
    command.add_argument("--all", action="store_true", help="every public checkpoint")
    command.add_argument("--force", action="store_true", help="fetch again what is there already")
    command.set_defaults(func=_download)


def _register_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("verify", help="hash files again and compare with what was recorded")
    command.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="as `latentite hub list` shows them [everything on this machine]",
    )
    command.set_defaults(func=_verify)


def _register_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("export", help="write a checkpoint to publish, or for Chemeleon2")
    command.add_argument("checkpoint", metavar="CKPT", help="a file, or a name of `latentite hub list`")
    command.add_argument(
        "out",
        type=Path,
        metavar="FILE",
        help="the file to write, .safetensors (portable) or .ckpt (chemeleon2)",
    )
    command.add_argument(
        "--format",
        choices=["portable", "chemeleon2"],
        default="portable",
        help="of Latentite, or of Chemeleon2 [%(default)s]",
    )
    command.add_argument(
        "--weights", choices=["ema", "raw"], help="moving average or last step [ema where there is one]"
    )
    command.add_argument(
        "--vae-ckpt-path",
        metavar="PATH",
        help="with --format chemeleon2: where it will find the VAE of a diffusion model",
    )
    command.set_defaults(func=_export)


def _register_bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "bundle", help="write a checkpoint small, with a card, into the folder from which names are read"
    )
    command.add_argument("checkpoint", metavar="CKPT", help="a file, or a name of `latentite hub list`")
    command.add_argument(
        "--name", required=True, metavar="NAME", help="of the pair NAME.safetensors and NAME.json"
    )
    command.add_argument(
        "--out", type=Path, default=Path("ckpts"), metavar="DIR", help="folder of the pair [%(default)s]"
    )
    command.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp16",
        help="number format of the matrices [%(default)s]",
    )
    command.add_argument("--card", type=Path, metavar="YAML", help="what people must know (docs/bundling.md)")
    command.add_argument(
        "--borrow",
        action="append",
        default=[],
        metavar="NAME",
        help="a pair in DIR, such as the model's VAE, whose tensors are not written again; repeatable",
    )
    command.add_argument(
        "--weights", choices=["ema", "raw"], help="moving average or last step [ema where there is one]"
    )
    command.set_defaults(func=_bundle)


def _list(arguments: argparse.Namespace) -> int:
    table = Table(title="Checkpoints")
    for column in ("name", "kind", "MB here", "sha256"):
        table.add_column(column, no_wrap=True, justify="right" if column.startswith("MB") else "left")
    table.add_column("where", overflow="fold", min_width=16)
    for entry in hub.list_names():
        size = "-" if entry.size is None else f"{entry.size / 1e6:.1f}"
        table.add_row(entry.name, entry.kind, size, (entry.sha256 or "-")[:12], entry.where)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # whole names in what is piped or kept
    console.print(table)
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
        """Bytes so far, and of how many if the server says."""
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
        """Writes the checkpoint; gives the paths for the terminal."""
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


def _bundle(arguments: argparse.Namespace) -> int:
    from latentite.checkpoint import Precision
    from latentite.hub.bundle import bundle

    def write() -> str:
        """Writes the pair; gives its paths, its size and what rounding cost."""
        done = bundle(
            arguments.checkpoint,
            arguments.name,
            arguments.out,
            precision=Precision(arguments.dtype),
            card=arguments.card,
            borrow=arguments.borrow,
            weights=arguments.weights,
        )
        borrowed = f", {done.borrowed} tensors borrowed" if done.borrowed else ""
        return (
            f"{done.weights} and {done.card}, {done.size / 1e6:.2f} MB{borrowed}; weights changed by "
            f"{done.rounding:.1e} of their size"
        )

    return 1 if _report(arguments.name, write) else 0


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
