"""`latentite hub list | download | verify | export | bundle`: named checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from latentite import hub
from latentite.base.options import make_command, option
from latentite.base.progress import Bar, ProgressBars
from latentite.hub.names import BUNDLE_PRECISION


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadOptions:
    """Options of `latentite hub download`."""

    names: tuple[str, ...] = field(default=(), metadata=option("NAME", positional=True))
    """As `latentite hub list` shows them."""
    all: bool = False
    """Every public checkpoint."""
    force: bool = False
    """Fetch again what is there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """Options of `latentite hub verify`."""

    names: tuple[str, ...] = field(default=(), metadata=option("NAME", positional=True))
    """As `latentite hub list` shows them [everything on this machine]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointOptions:
    """The checkpoint that is written in another form."""

    checkpoint: str = field(metadata=option("CKPT", positional=True))
    """A file, or a name of `latentite hub list`."""
    weights: Literal["ema", "raw"] | None = None
    """Moving average or last step [ema where there is one]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions(CheckpointOptions):
    """Options of `latentite hub export`."""

    out: Path = field(metadata=option("FILE", positional=True))
    """The file to write, .safetensors (portable) or .ckpt (chemeleon2)."""
    format: Literal["portable", "chemeleon2"] = "portable"
    """Of Latentite, or of Chemeleon2."""
    vae_ckpt_path: str | None = field(default=None, metadata=option("PATH"))
    """With --format chemeleon2: where it will find the VAE of a diffusion model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleOptions(CheckpointOptions):
    """Options of `latentite hub bundle`."""

    name: str
    """Of the pair NAME.safetensors and NAME.json."""
    out: Path = field(default=Path("ckpts"), metadata=option("DIR"))
    """Folder of the pair."""
    dtype: Literal["fp32", "fp16", "bf16"] = BUNDLE_PRECISION
    """Number format of the matrices."""
    card: Path | None = field(default=None, metadata=option("YAML"))
    """Facts that its users must know (docs/bundling.md)."""
    borrow: tuple[str, ...] = ()
    """A pair in DIR, such as the model's VAE, whose tensors are not written again; repeatable."""


def register(parser: argparse.ArgumentParser) -> None:
    """Give `latentite hub` its commands."""
    commands = parser.add_subparsers(
        dest="hub_command", required=True, metavar="{list,download,verify,export,bundle}"
    )

    def add(name: str, about: str) -> argparse.ArgumentParser:
        """A command with the same line in the list and in its own help."""
        return commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")

    make_command(add("list", "every name, and whether its file is on this machine"), _list)
    make_command(add("download", "fetch public checkpoints into the cache"), _download, DownloadOptions)
    verify = add("verify", "hash files again and compare with what was recorded")
    make_command(verify, _verify, VerifyOptions)
    make_command(add("export", "write a checkpoint to publish, or for Chemeleon2"), _export, ExportOptions)
    bundle = add("bundle", "write a checkpoint small, with a card, into the folder from which names are read")
    make_command(bundle, _bundle, BundleOptions)


def _list() -> int:
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


def _download(options: DownloadOptions) -> int:
    names = tuple(hub.PUBLIC) if options.all else options.names
    if not names:
        return _fail("NAME must be given (or --all); `latentite hub list` shows the names")
    failed = 0
    with ProgressBars("bytes") as bars:
        for name in names:
            bar = bars.add(name)
            failed += _report(name, partial(_fetch, name, options.force, bar))
            bar.remove()
    return 1 if failed else 0


def _fetch(name: str, force: bool, bar: Bar) -> str:
    def show(done: int, total: int | None) -> None:
        """Bytes so far, and of how many if the server says."""
        bar.set(done, total=total)

    return str(hub.download(name, force=force, on_progress=show))


def _verify(options: VerifyOptions) -> int:
    names = options.names or [entry.name for entry in hub.list_names() if entry.path is not None]
    if not names:
        Console().print("No checkpoint is on this machine; nothing to verify.")
    failed = sum(_report(name, partial(hub.verify, name)) for name in names)
    return 1 if failed else 0


def _export(options: ExportOptions) -> int:
    from latentite.checkpoint import export_portable
    from latentite.interop.export import export_chemeleon2

    def write() -> str:
        """Writes the checkpoint; gives the paths for the terminal."""
        source = hub.resolve(options.checkpoint)
        if options.format == "chemeleon2":
            path = export_chemeleon2(
                source, options.out, weights=options.weights, vae_ckpt_path=options.vae_ckpt_path
            )
            return str(path)
        if options.vae_ckpt_path is not None:
            raise ValueError("--vae-ckpt-path must only be given with --format chemeleon2")
        stem = options.out.with_suffix("") if options.out.suffix == ".safetensors" else options.out
        return " and ".join(map(str, export_portable(source, stem, weights=options.weights)))

    return 1 if _report(options.checkpoint, write) else 0


def _bundle(options: BundleOptions) -> int:
    from latentite.checkpoint import StoredFormat
    from latentite.hub.bundle import bundle

    def write() -> str:
        """Writes the pair; gives its paths, its size and what rounding cost."""
        done = bundle(
            options.checkpoint,
            options.name,
            options.out,
            precision=StoredFormat(options.dtype),
            card=options.card,
            borrow=options.borrow,
            weights=options.weights,
        )
        borrowed = f", {done.borrowed} tensors borrowed" if done.borrowed else ""
        return (
            f"{done.weights} and {done.card}, {done.size / 1e6:.2f} MB{borrowed}; weights changed by "
            f"{done.rounding:.1e} of their size"
        )

    return 1 if _report(options.name, write) else 0


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
