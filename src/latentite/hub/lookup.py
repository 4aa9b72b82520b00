"""From a name or path to a file in our format: bundled, downloaded into the cache or converted, and still what it was.

Beside every file of the cache lies a record of where it came from and whether it is whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentite.base.download import DownloadError, Patience, fetch, hub_address, is_offline
from latentite.base.files import cache_dir, impostor, parse_json, replacing, sha256_file, write_json
from latentite.hub.names import (
    BUNDLED,
    PUBLIC,
    REPOSITORY,
    SUFFIXES,
    Entry,
    HubError,
    Origin,
    bundled_files,
    missing_bundled,
    unknown_name,
)
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
    """Path of the file of a public checkpoint, once it is downloaded."""
    return cache_dir() / "hub" / f"{name}.ckpt"


def converted_file(file: Path, sha256: str) -> Path:
    """Path of the conversion of a Chemeleon2 checkpoint of this content, once it is made."""
    return cache_dir() / "converted" / f"{file.stem}-{sha256[:16]}-v{CONVERSION}.ckpt"


def public_name(file: Path) -> str | None:
    """The public checkpoint that a file is: one in the cache, or one that kept its name in the repository."""
    for name, remote in PUBLIC.items():
        if file == cached_file(name) or file.name == Path(remote).name:
            return name
    return None


def card(file: Path) -> dict[str, Any]:
    """The record of a file that `resolve` gave from the cache: hashes, origin, and what was converted to what.

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
    """The fault of a cached file, or None; without `is_thorough` an untouched file is not hashed again.

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


def resolve(name_or_path: str | Path, *, patience: Patience | None = None) -> Path:
    """The file behind a name or path, in our format; downloads a public checkpoint on first use.

    Raises:
        ValueError: an empty or unknown name (near ones are suggested), a path at which there is no file, or a
            Chemeleon2 checkpoint that cannot be imported.
        HubError: a public name whose file is not here and cannot be had.
    """
    text = str(name_or_path).strip()
    if not text or text == ".":  # Path("") is "."
        raise ValueError("a checkpoint's name must not be empty; `latentite hub list` shows the names")
    path = Path(text).expanduser()
    if path.is_file():
        return _in_our_format(path, patience)
    if (bundled := bundled_files().get(text)) is not None:
        return _in_our_format(bundled, patience)
    if text in PUBLIC:
        return _in_our_format(download(text, patience=patience), patience)
    if text in BUNDLED:
        raise missing_bundled(text)
    if path.is_dir():
        raise ValueError(f"{text} is a folder, not a checkpoint; give the file inside it")
    if len(path.parts) > 1 or path.suffix in (*SUFFIXES, ".json"):
        raise ValueError(f"there is no file {text}; check the path, or take a name from `latentite hub list`")
    raise unknown_name(text, [entry.name for entry in list_names()])


def list_names() -> list[Entry]:
    """Every name that `resolve` knows, the bundled ones first; looks at the disk only."""
    bundled = bundled_files()
    entries = [
        Entry(
            name=name,
            kind=Origin.BUNDLED,
            where=str(path),
            path=path,
            sha256=card_hash(path),
            size=path.stat().st_size,
        )
        for name, path in sorted(bundled.items())
    ]
    for name, remote in PUBLIC.items():
        if name in bundled:
            continue
        file = cached_file(name)
        record = read_record(file)
        entries.append(
            Entry(
                name=name,
                kind=Origin.PUBLIC,
                where=f"{REPOSITORY}/{remote}",
                path=file if file.is_file() else None,
                sha256=record.get("sha256") if record else None,
                size=file.stat().st_size if file.is_file() else None,
            )
        )
    return entries


def verify(name: str) -> str:
    """Hashes the file behind a name again and compares with what is recorded; gives the sha256.

    A bundled portable checkpoint is compared with its card, and so is what it borrows; one without card is only hashed.

    Raises:
        ValueError: unknown name.
        HubError: not on this machine, or not what it was.
    """
    if (bundled := bundled_files().get(name)) is not None:
        from latentite.checkpoint import CheckpointError, read_portable  # late: torch takes seconds

        if card_hash(bundled) is None:
            return sha256_file(bundled)
        try:
            return read_portable(bundled).sha256
        except CheckpointError as error:
            raise HubError(f"{error}; or restore the file") from error
    if name not in PUBLIC:
        raise unknown_name(name, [entry.name for entry in list_names()])
    file = cached_file(name)
    if not file.is_file():
        raise HubError(f"{name} is not on this machine; run `latentite hub download {name}`")
    if (problem := problem_of(file, is_thorough=True)) is not None:
        raise HubError(f"{problem}; run `latentite hub download {name} --force`")
    digest = str((read_record(file) or {})["sha256"])
    converted = converted_file(file, digest)
    if converted.is_file() and (problem := problem_of(converted, is_thorough=True)) is not None:
        raise HubError(f"{problem}; remove it, and it is made again from {file}")
    return digest


def _in_our_format(file: Path, patience: Patience | None) -> Path:
    """The file itself, or what a Chemeleon2 checkpoint was converted to; its card is the record beside it."""
    if file.suffix in (".safetensors", ".json"):
        return file
    from latentite.interop.chemeleon2 import MP_20_NUM_ATOMS, convert, is_chemeleon2

    if not is_chemeleon2(file):
        return file
    digest = sha256_file(file)
    converted = converted_file(file, digest)
    if converted.is_file():
        if (problem := problem_of(converted, is_thorough=False)) is None:
            return converted
        logger.warning("%s; it is made again from %s", problem, file)
    name = public_name(file)

    def find_vae() -> Path | None:
        return None if name is None else download(f"{name.partition('_ldm_')[0]}_vae", patience=patience)

    logger.info("converting %s, a Chemeleon2 checkpoint, to %s", file, converted)
    num_atoms = None if name is None else MP_20_NUM_ATOMS
    with replacing(converted) as part:
        made = convert(file, part, sha256=digest, num_atoms=num_atoms, find_vae=find_vae)
        write_record(converted, part, **made)
    return converted
