"""From a name or path to a file in our format, the list of names, and whether a file is still what it was."""

from __future__ import annotations

import logging
from pathlib import Path

from latentite.base.download import Patience
from latentite.base.files import replacing, sha256_file
from latentite.hub.cached import (
    cached_file,
    card_hash,
    converted_file,
    download,
    problem_of,
    public_name,
    read_record,
    write_record,
)
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

logger = logging.getLogger(__name__)


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
