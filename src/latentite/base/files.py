"""Files on disk: written whole or not at all, hashed, recognised where they are not what they claim to be; CSV tables.

Imports nothing of ours; `checkpoint/`, `hub/` and the readers of data may all use it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes its place when the block ends well.

    A reader sees the old file or the whole new one, never a part; after an error nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut after the rename can leave an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_json(text: str | bytes, **arguments: Any) -> Any:
    """As `json.loads`, of a text that somebody else wrote.

    Raises:
        json.JSONDecodeError: a `ValueError`; also for thousands of nested brackets, of which Python only says that
            its own recursion is at an end.
    """
    try:
        return json.loads(text, **arguments)
    except RecursionError as error:
        raise json.JSONDecodeError("it nests too deeply", "", 0) from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes plain values as indented JSON, atomically. NaN and infinities are kept in Python's spelling."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def impostor(path: str | Path) -> str | None:
    """The kind of file that came instead of data, or None when nothing speaks against it.

    Recognises an empty file, a Git-LFS pointer and an HTML page (an error page saved under the file's name).
    """
    with Path(path).open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.startswith(_LFS_POINTER):
        return "a Git-LFS pointer, not the file itself (run `git lfs pull`)"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not data (a download that went wrong)"
    return None


def cache_dir() -> Path:
    """Folder for what can be made or fetched again: LATENTITE_CACHE_DIR, else ~/.cache/latentite."""
    return Path(os.environ.get("LATENTITE_CACHE_DIR") or Path.home() / ".cache" / "latentite")


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Gives an empty temporary folder beside `folder`; it takes that name when the block ends well.

    Of two processes that fill the same folder at once, the first keeps the name and the work of the other is
    dropped; after an error, or a kill, nothing stands under the name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's own mode shuts out the other users of a shared cache
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # not a lost race: the disk or the permissions are at fault
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes a table, atomically; its cells are those of `cell`."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(map(cell, row) for row in chain([header], rows))


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Rows for a file that grows: numbers with all their digits, lines that end in a newline only."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def cell(value: object) -> str:
    """Numbers with six digits, and nothing for None and what is not finite, as every reader of CSV understands; `yes`
    and `no`; text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
