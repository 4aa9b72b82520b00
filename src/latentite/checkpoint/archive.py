"""Whether a `.ckpt` is a whole zip file as torch writes it: looked at from outside, before anything in it is read.

Torch maps the numbers of a file into memory and does not check them, so one flipped bit would be another weight; here
every byte is held against the checksums of the zip.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from latentite.checkpoint.record import CheckpointError


def check_archive(path: Path) -> None:
    """Refuses, with one sentence, what is no whole file by `torch.save`; reads it once, at some GB/s.

    Raises:
        CheckpointError: for another kind of file, a truncated or damaged one, or a zip that torch would not write.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:1] == b"\x80":  # the first opcode of every binary pickle
        raise CheckpointError(
            f"{path} is a bare Python pickle, which can run code when it is read, so it was not opened; "
            "our checkpoints are zip files of tensors and plain values"
        )
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint (neither a torch zip file nor a portable pair)")
    if not zipfile.is_zipfile(path):  # the table of contents stands at the end
        raise CheckpointError(f"{path} is truncated: its end is missing; copy or download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        # what zipfile raises for a table of contents that is wrong, or for entries that are encrypted
        raise CheckpointError(f"{path} is damaged and cannot be read; copy or download it again") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged} inside it is wrong; copy or download it again"
        )


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Torch writes one folder of uncompressed entries, so an archive that unpacks to more than it is, is none."""
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a zip file, but not a checkpoint (it has no data.pkl)")
    for entry in entries:
        place = PurePosixPath(entry.filename)
        if place.is_absolute() or ".." in place.parts:
            raise CheckpointError(
                f"{path} has an entry {entry.filename!r} that reaches out of it; torch writes no such file"
            )
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path} has a compressed entry {entry.filename!r}; torch writes no such file, save it again"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: its entries are larger than itself; copy it again")
