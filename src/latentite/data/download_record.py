"""Checksums of downloaded data sets: what is known of a file before it is taken, and recorded of it afterwards.

None of the makers of these data sets publishes checksums that we know of, and made-up ones would protect nobody. So
the first download is taken on trust, which is said; its sha256 is recorded beside it, and what is used later must
still have it. Who has a checksum of her own (of a colleague's download, or from a mirror) names a file in the format
of `sha256sum` in `LATENTITE_DATASETS_SHA256`; then nothing else is taken.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentite.base.download import DownloadError
from latentite.base.files import parse_json, sha256_file, write_json

log = logging.getLogger(__name__)

CHECKSUMS_VARIABLE = "LATENTITE_DATASETS_SHA256"
"""Environment variable: a file with lines such as `SHA256  mp_20/train.csv`, one for every file that is downloaded."""
RECORD = "source.json"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S+)")


def given_checksums(name: str, files: Sequence[str]) -> dict[str, str]:
    """Checksums that the user gives for the files of a data set; empty where she gives none.

    Args:
        name: of the data set.
        files: names of what is downloaded.

    Raises:
        DownloadError: when the file is not there, not readable, or leaves one of them out.
    """
    place = os.environ.get(CHECKSUMS_VARIABLE)
    if not place:
        return {}
    try:
        lines = Path(place).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{CHECKSUMS_VARIABLE} must name a file of checksums, got {place}: {error}"
        ) from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DownloadError(
                f"{place}, line {number}, must be written 'SHA256  {name}/{files[0]}', as sha256sum does, got {line!r}"
            )
        path, digest = match[2].removeprefix("./"), match[1].lower()
        if sums.setdefault(path, digest) != digest:
            raise DownloadError(f"{place}, line {number}: {path} must have one checksum, got a second one")
    missing = [f"{name}/{file}" for file in files if f"{name}/{file}" not in sums]
    if missing:
        raise DownloadError(
            f"{place} ({CHECKSUMS_VARIABLE}) must have a line for {missing[0]}; add it, or unset the variable"
        )
    return {file: sums[f"{name}/{file}"] for file in files}


def write_download(
    folder: Path,
    *,
    addresses: Sequence[str],
    downloads: Mapping[str, str],
    rows: Mapping[str, int],
    made_from: Mapping[str, str] | None = None,
) -> None:
    """Record what was downloaded, and say what of it nobody has vouched for.

    Args:
        folder: of the data set, with its files.
        addresses: where they came from.
        downloads: sha256 of each file as it came.
        rows: of each file that is kept.
        made_from: sha256 of each table that a recipe made it from.
    """
    sums = {name: sha256_file(folder / name) for name in rows}
    if not os.environ.get(CHECKSUMS_VARIABLE):
        for name, digest in downloads.items():
            log.warning(
                "%s is taken on trust, as no checksum of it is known: sha256 %s, which is recorded and checked on "
                "each use",
                name,
                digest,
            )
    record = {
        "addresses": list(addresses),
        "downloads": dict(downloads),
        "files": {name: {"rows": count, "sha256": sums[name]} for name, count in rows.items()},
    }
    if made_from is not None:
        record["made_from"] = dict(made_from)
    write_json(folder / RECORD, record)


def check_download(folder: Path, name: str, files: Sequence[str]) -> None:
    """Compare an earlier download with its recorded checksums, and with those that the user gives.

    Args:
        folder: of the data set.
        name: of the data set.
        files: names of what was downloaded.

    Raises:
        DownloadError: naming the file that is missing, changed or another one, or the damaged record.
    """
    again = f"remove the folder {folder} to download it again"
    record = _read(folder, name, again)
    for file, facts in record["files"].items():
        path = folder / file
        if not path.is_file():
            raise DownloadError(f"{path} must be there, as {RECORD} says, and is not; {again}")
        stat = path.stat()
        if (digest := _digest(path, stat.st_size, stat.st_mtime_ns)) != facts["sha256"]:
            raise DownloadError(
                f"{path} has changed since it was downloaded: its sha256 must be {facts['sha256']}, got {digest}; "
                f"{again}"
            )
    for file, wanted in (given_checksums(name, files) if files else {}).items():
        if (digest := record["downloads"].get(file)) != wanted:
            raise DownloadError(
                f"{name}/{file} must have sha256 {wanted}, as {CHECKSUMS_VARIABLE} says, but what was downloaded to "
                f"{folder} has {digest}; {again}"
            )


def _read(folder: Path, name: str, again: str) -> dict[str, Any]:
    try:
        record = parse_json((folder / RECORD).read_text(encoding="utf-8"))
        sums = {file: str(facts["sha256"]) for file, facts in record["files"].items()}
        # Earlier versions have no downloads of their own: then these are the files.
        return {**record, "downloads": record.get("downloads", sums)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DownloadError(
            f"{folder / RECORD} must say which files were downloaded and their sha256, and does not ({error!r}): "
            f"nothing vouches for what lies there; {again}, or move files of your own to data/{name}"
        ) from error


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Hashed once in a process while size and time stay the same, as a table is looked up many times."""
    return sha256_file(path)
