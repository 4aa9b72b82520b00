"""Names of checkpoints and the files behind them: what is bundled, what is cached, what can be downloaded.

`resolve` is what `${hub:NAME}` in a configuration and NAME on the command line mean. It looks, in this
order, for a file at that path; for a bundled checkpoint (`ckpts/NAME.safetensors` or `.ckpt`); in the
download cache; and on the Hugging Face hub. Names are exact. A Chemeleon2 checkpoint, public or not, is
converted once, without executing anything in it, and its conversion is what is given. Comes after `download.py`
and `interop/convert.py`; `checkpoint.py` reads what is found here, `hub_commands.py` is its command line.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from latentite.download import DownloadError, Patience, fetch, hub_address, is_offline
from latentite.files import cache_dir, impostor, replacing, sha256_file, write_json
from latentite.interop import CONVERSION

logger = logging.getLogger(__name__)

REPOSITORY = "hspark1212/chemeleon2-checkpoints"
PUBLIC: dict[str, str] = {
    "mp_20_vae": "v0.0.1/mp_20/vae/dng_m4owq4i5_v0.ckpt",
    "alex_mp_20_vae": "v0.0.1/alex_mp_20/vae/dng_j1jgz9t0_v1.ckpt",
    "mp_20_ldm_base": "v0.0.1/mp_20/ldm/ldm_null_4tfw67aq.ckpt",
    "alex_mp_20_ldm_base": "v0.0.1/alex_mp_20/ldm/ldm_null_k744ob4i.ckpt",
    "mp_20_ldm_rl": "v0.0.1/mp_20/ldm/ldm_rl_dng_xxq3a0mn.ckpt",
    "alex_mp_20_ldm_rl": "v0.0.1/alex_mp_20/ldm/ldm_rl_dng_tuor5vgd.ckpt",
}
"""The public Chemeleon2 checkpoints: name -> path in `REPOSITORY`."""

_SUFFIXES = (".safetensors", ".ckpt")  # in the order in which they are preferred


class HubError(DownloadError):
    """A checkpoint cannot be had: offline, unreachable, refused, or damaged. One sentence says what to do."""


class Kind(StrEnum):
    """Where a name comes from."""

    BUNDLED = "bundled"
    PUBLIC = "public"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One name that `resolve` knows."""

    name: str
    kind: Kind
    where: str
    """The file of a bundled checkpoint; repository and path of a public one."""
    path: Path | None
    """The file on this machine, or None when it has not been downloaded."""
    sha256: str | None
    """As recorded; None when nothing is recorded."""


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
    if (bundled := _bundled().get(text)) is not None:
        return _in_our_format(bundled, patience)
    if text in PUBLIC:
        return _in_our_format(download(text, patience=patience), patience)
    if path.is_dir():
        raise ValueError(f"{text} is a folder, not a checkpoint; give the file inside it")
    if len(path.parts) > 1 or path.suffix in (*_SUFFIXES, ".json"):
        raise ValueError(f"there is no file {text}; check the path, or take a name from `latentite hub list`")
    raise _unknown(text, [entry.name for entry in list_names()])


def card(file: Path) -> dict[str, Any]:
    """What is recorded of a file that `resolve` gave from the cache: hashes, origin, and what was converted to what.

    Raises:
        ValueError: when nothing is recorded of it.
    """
    record = _read_record(file)
    if record is None:
        raise ValueError(f"{file} is not from the cache: it has no record beside it")
    return record


def list_names() -> list[Entry]:
    """Every name that `resolve` knows, the bundled ones first; looks at the disk only."""
    bundled = _bundled()
    entries = [
        Entry(name=name, kind=Kind.BUNDLED, where=str(path), path=path, sha256=_card_hash(path))
        for name, path in sorted(bundled.items())
    ]
    for name, remote in PUBLIC.items():
        if name in bundled:
            continue
        file = _cached_file(name)
        record = _read_record(file)
        entries.append(
            Entry(
                name=name,
                kind=Kind.PUBLIC,
                where=f"{REPOSITORY}/{remote}",
                path=file if file.is_file() else None,
                sha256=record.get("sha256") if record else None,
            )
        )
    return entries


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
        if name in _bundled():
            raise ValueError(f"{name} is bundled: it is at {_bundled()[name]} already")
        raise _unknown(name, PUBLIC)
    file = _cached_file(name)
    if not force and file.is_file():
        problem = _problem(file, is_thorough=False)
        if problem is None:
            return file
        logger.warning("%s; it is downloaded again", problem)
    url = hub_address(REPOSITORY, PUBLIC[name])
    by_hand = f"fetch {url} on a machine with network and put it at {file}"
    if is_offline():
        raise HubError(f"{name} is not on this machine and HF_HUB_OFFLINE is set; unset it, or {by_hand}")
    with replacing(file) as part:
        try:
            remote = fetch(url, part, patience=patience or Patience(), is_hub=True, on_progress=on_progress)
        except DownloadError as error:
            raise HubError(f"{name}: {error}; check the network, or {by_hand}") from error
        # Before the file: if it ends here, the record speaks of a file that is missing or has another hash.
        _write_record(file, part, commit=remote.commit, etag=remote.etag, url=url)
    return file


def verify(name: str) -> str:
    """Hashes the file behind a name again and compares with what is recorded; gives the sha256.

    A bundled portable checkpoint is compared with its card; one without record is only hashed.

    Raises:
        ValueError: unknown name.
        HubError: not on this machine, or not what it was.
    """
    if (bundled := _bundled().get(name)) is not None:
        digest, expected = sha256_file(bundled), _card_hash(bundled)
        if expected is not None and digest != expected:
            raise HubError(f"{bundled} is damaged: sha256 must be {expected}, got {digest}; restore the file")
        return digest
    if name not in PUBLIC:
        raise _unknown(name, [entry.name for entry in list_names()])
    file = _cached_file(name)
    if not file.is_file():
        raise HubError(f"{name} is not on this machine; run `latentite hub download {name}`")
    if (problem := _problem(file, is_thorough=True)) is not None:
        raise HubError(f"{problem}; run `latentite hub download {name} --force`")
    digest = str((_read_record(file) or {})["sha256"])
    converted = _converted_file(file, digest)
    if converted.is_file() and (problem := _problem(converted, is_thorough=True)) is not None:
        raise HubError(f"{problem}; remove it, and it is made again from {file}")
    return digest


def _in_our_format(file: Path, patience: Patience | None) -> Path:
    """The file itself, or what a Chemeleon2 checkpoint was converted to; its card is the record beside it."""
    if file.suffix in (".safetensors", ".json"):
        return file
    from latentite.interop.chemeleon2 import is_chemeleon2
    from latentite.interop.convert import MP_20_NUM_ATOMS, convert

    if not is_chemeleon2(file):
        return file
    digest = sha256_file(file)
    converted = _converted_file(file, digest)
    if converted.is_file():
        if (problem := _problem(converted, is_thorough=False)) is None:
            return converted
        logger.warning("%s; it is made again from %s", problem, file)
    name = _public_name(file)

    def find_vae() -> Path | None:
        return None if name is None else download(f"{name.partition('_ldm_')[0]}_vae", patience=patience)

    logger.info("converting %s, a Chemeleon2 checkpoint, to %s", file, converted)
    num_atoms = None if name is None else MP_20_NUM_ATOMS
    with replacing(converted) as part:
        made = convert(file, part, sha256=digest, num_atoms=num_atoms, find_vae=find_vae)
        _write_record(converted, part, **made)
    return converted


def _converted_file(file: Path, sha256: str) -> Path:
    return cache_dir() / "converted" / f"{file.stem}-{sha256[:16]}-v{CONVERSION}.ckpt"


def _public_name(file: Path) -> str | None:
    """The public checkpoint that a file is: one in the cache, or one that kept its name in the repository."""
    for name, remote in PUBLIC.items():
        if file == _cached_file(name) or file.name == Path(remote).name:
            return name
    return None


def _unknown(name: str, names: Iterable[str]) -> ValueError:
    known = {candidate.lower(): candidate for candidate in names}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)]
    advice = f"did you mean {' or '.join(close)}?" if close else f"the names are {', '.join(known.values())}"
    return ValueError(f"there is no checkpoint named {name!r}; {advice}")


def _bundled() -> dict[str, Path]:
    """Name -> file of every checkpoint in the `ckpts` folders; the first folder that has a name wins."""
    package = Path(__file__).parent
    folders = [package / "ckpts", package.parents[1] / "ckpts"]  # in an installed wheel, in a checkout
    if own := os.environ.get("LATENTITE_CKPT_DIR"):
        folders.insert(0, Path(own))
    found: dict[str, Path] = {}
    for folder in folders:
        for suffix in _SUFFIXES:
            for path in sorted(folder.glob(f"*{suffix}")):
                found.setdefault(path.name.removesuffix(suffix), path)
    return found


def _card_hash(path: Path) -> str | None:
    """The sha256 in the card beside a portable checkpoint, if it has one."""
    card = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not card.is_file():
        return None
    content = _read_json(card)
    return content.get("sha256") if content else None


def _cached_file(name: str) -> Path:
    return cache_dir() / "hub" / f"{name}.ckpt"


def _record_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _read_record(file: Path) -> dict[str, Any] | None:
    return _read_json(_record_file(file)) if _record_file(file).is_file() else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is not valid JSON and is ignored", path)
        return None
    return content if isinstance(content, dict) else None


def _write_record(file: Path, content: Path, **origin: Any) -> None:
    """Notes hash, size and time of `content`, which is `file` or about to become it."""
    stat = content.stat()
    facts = {"sha256": sha256_file(content), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    write_json(_record_file(file), {**facts, **origin})


def _problem(file: Path, *, is_thorough: bool) -> str | None:
    """What is wrong with a cached file, or None; without `is_thorough` an untouched file is not hashed again.

    A file without record was put there by hand: it is taken as it is, and recorded.
    """
    if (other := impostor(file)) is not None:
        return f"{file} is {other}"
    record = _read_record(file)
    if record is None or not {"sha256", "size", "mtime_ns"} <= record.keys():
        _write_record(file, file, url="put here by hand")
        return None
    stat = file.stat()
    if stat.st_size != record["size"]:
        return f"{file} is damaged: its size must be {record['size']} bytes, got {stat.st_size}"
    if not is_thorough and stat.st_mtime_ns == record["mtime_ns"]:
        return None
    digest = sha256_file(file)
    if digest != record["sha256"]:
        return f"{file} is damaged: sha256 must be {record['sha256']}, got {digest}"
    return None
