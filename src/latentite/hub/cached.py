"""Files of the cache: downloaded, with a record beside each of where it came from and whether it is whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentite.base.download import DownloadError, Patience, fetch, hub_address, is_offline
from latentite.base.files import cache_dir, impostor, parse_json, replacing, sha256_file, write_json
from latentite.hub.names import PUBLIC, REPOSITORY, HubError, bundled_files, unknown_name
from latentite.interop import CONVERSION

logger = logging.getLogger(__name__)


def download(
    name: str,
    *,
    force: bool = False,
    patience: Patience | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file of a public checkpoint in the cache, fetched if it is not there whole.

    Args:
        name: one of `PUBLIC`.
        force: fetch it even if it is there.
        patience: time-outs and tries; None for the defaults.
        on_progress: called with bytes so far and bytes in total (None while unknown).

    Raises:
        ValueError: not a public name.
        HubError: it cannot be fetched; the message says which file to put where instead.
    """
    if name not in PUBLIC:
        if name in bundled_files():
            raise ValueError(f"{name} is bundled: it is at {bundled_files()[name]} already")
        raise unknown_name(name, PUBLIC)
    file = cached_file(name)
    problem = None
    if not force and file.is_file():
        problem = problem_of(file, is_thorough=False)
        if problem is None:
            return file
        logger.warning("%s; it is downloaded again", problem)
    url = hub_address(REPOSITORY, PUBLIC[name])
    by_hand = f"fetch {url} on a machine with network and put it at {file}"
    if is_offline():
        why = problem or f"{name} is not on this machine"
        raise HubError(f"{why} and HF_HUB_OFFLINE is set; unset it, or {by_hand}")
    with replacing(file) as part:
        try:
            remote = fetch(url, part, patience=patience or Patience(), is_hub=True, on_progress=on_progress)
        except DownloadError as error:
            raise HubError(f"{name}: {error}; check the network, or {by_hand}") from error
        # Before the file: if it ends here, the record speaks of a file that is missing or has another hash.
        write_record(file, part, commit=remote.commit, etag=remote.etag, url=url)
    return file


def cached_file(name: str) -> Path:
    """Where the file of a public checkpoint lies, once it is downloaded."""
    return cache_dir() / "hub" / f"{name}.ckpt"


def converted_file(file: Path, sha256: str) -> Path:
    """Where the conversion of a Chemeleon2 checkpoint of this content lies, once it is made."""
    return cache_dir() / "converted" / f"{file.stem}-{sha256[:16]}-v{CONVERSION}.ckpt"


def public_name(file: Path) -> str | None:
    """The public checkpoint that a file is: one in the cache, or one that kept its name in the repository."""
    for name, remote in PUBLIC.items():
        if file == cached_file(name) or file.name == Path(remote).name:
            return name
    return None


def card(file: Path) -> dict[str, Any]:
    """What is recorded of a file that `resolve` gave from the cache: hashes, origin, and what was converted to what.

    Raises:
        ValueError: when nothing is recorded of it.
    """
    record = read_record(file)
    if record is None:
        raise ValueError(f"{file} is not from the cache: it has no record beside it")
    return record


def card_hash(path: Path) -> str | None:
    """The sha256 in the card beside a portable checkpoint, if it has one."""
    card = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not card.is_file():
        return None
    content = _read_json(card)
    return content.get("sha256") if content else None


def _record_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def read_record(file: Path) -> dict[str, Any] | None:
    """The record beside a file; None where there is none that can be read."""
    return _read_json(_record_file(file)) if _record_file(file).is_file() else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is not valid JSON and is ignored", path)
        return None
    return content if isinstance(content, dict) else None


def write_record(file: Path, content: Path, **origin: Any) -> None:
    """Notes hash, size and time of `content`, which is `file` or about to become it."""
    stat = content.stat()
    facts = {"sha256": sha256_file(content), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    write_json(_record_file(file), {**facts, **origin})


def problem_of(file: Path, *, is_thorough: bool) -> str | None:
    """What is wrong with a cached file, or None; without `is_thorough` an untouched file is not hashed again.

    A file without record was put there by hand: it is taken as it is, and recorded, which is said. A record that cannot
    be read vouches for nothing, so the file beside it is not taken.
    """
    if (other := impostor(file)) is not None:
        return f"{file} is {other}"
    if not _record_file(file).is_file():
        write_record(file, file, url="put here by hand")
        digest = (read_record(file) or {}).get("sha256")
        logger.warning(
            "%s has no record: it is taken as it is, sha256 %s, and checked from now on", file, digest
        )
        return None
    record = read_record(file)
    if record is None or not {"sha256", "size", "mtime_ns"} <= record.keys():
        return (
            f"{_record_file(file)} must be a JSON object with sha256, size and mtime_ns of the file beside it, and is "
            "damaged (remove it to take that file as it is)"
        )
    stat = file.stat()
    if stat.st_size != record["size"]:
        return f"{file} is damaged: its size must be {record['size']} bytes, got {stat.st_size}"
    if not is_thorough and stat.st_mtime_ns == record["mtime_ns"]:
        return None
    digest = sha256_file(file)
    if digest != record["sha256"]:
        return f"{file} is damaged: sha256 must be {record['sha256']}, got {digest}"
    return None
