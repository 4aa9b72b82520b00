"""Files on disk: atomic replacement, hashes, and the names of things that are not what they claim to be.

Imports nothing of ours; `checkpoint/`, `hub/` and the readers of data may all use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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
