"""The record that a run keeps in its folder: manifest, journal and hashes.

`manifest.json` says where the structures come from, and whether a run may go on there. Every line of the journal has
length and sha256 of each file that grows, up to there; one of these files, `SHA256SUMS`, has the sha256 of every file
of its own (CIFs, trajectories). So whoever trusts the journal can trust the folder, and damage is named by file.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from latentite import __version__
from latentite.base.files import parse_json, write_json
from latentite.sampling.writers import file_stem

if TYPE_CHECKING:
    from hashlib import _Hash

MANIFEST, JOURNAL, CHECKSUMS = "manifest.json", "journal.jsonl", "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ((?:cifs|trajectories)/\d+\.(?:cif|extxyz))")
"""As `sha256sum` writes it. No other path is followed: a folder may come from elsewhere."""
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A line of the journal: the run up to the index `stop`."""

    stop: int
    offsets: dict[str, int]
    """Length in bytes of each file that grows."""
    batch_size: int
    """After halvings for want of memory, so that a resumed run makes the same batches."""
    counts: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each file that grows, up to that length; runs of earlier versions have none."""


class Stream:
    """A file that grows, and the hash of what is in it."""

    def __init__(self, file: IO[bytes], digest: _Hash | None = None) -> None:
        self.file = file
        self.digest = hashlib.sha256() if digest is None else digest

    def write(self, content: bytes) -> None:
        """Append."""
        self.file.write(content)
        self.digest.update(content)

    def flush(self) -> None:
        """Hand everything to the system."""
        self.file.flush()


def read_commits(path: Path) -> tuple[list[Commit], int]:
    """The whole lines of a journal, and the length in bytes up to their end; a torn last line does not count.

    Raises:
        ValueError: when a line is not what a run writes.
    """
    content = path.read_bytes() if path.is_file() else b""
    length = content.rfind(b"\n") + 1
    commits = []
    for number, line in enumerate(content[:length].splitlines(), start=1):
        try:
            commits.append(Commit(**parse_json(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, must be a line of a run's journal, got something else: the file is "
                "damaged; sample into a new folder"
            ) from error
    return commits, length


def sum_lines(content: str) -> Iterator[tuple[str, str]]:
    """Path in the folder and sha256 of each line of `SHA256SUMS`.

    Raises:
        ValueError: for a line that a run does not write.
    """
    for line in content.splitlines():
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise ValueError(f"{CHECKSUMS} must have lines such as 'sha256  cifs/000000.cif', got {line!r}")
        yield parts[2], parts[1]


def verify(folder: Path, commit: Commit) -> dict[str, _Hash]:
    """Hold every file that was committed against its hash.

    Args:
        folder: of the run.
        commit: the last line of its journal.

    Returns:
        The hash of each file that grows, up to its offset, to be continued.

    Raises:
        ValueError: naming a file that is missing, too short or changed, and how many there are.
    """
    digests: dict[str, _Hash] = {}
    problems = []
    for name, offset in commit.offsets.items():
        digests[name], length = _hash_start(folder / name, offset)
        if length < offset:
            problems.append(
                f"{folder / name} must have at least {offset} bytes, as the journal says, got {length}"
            )
        elif (digest := digests[name].hexdigest()) != commit.sha256.get(name):
            problems.append(_changed(folder / name, str(commit.sha256.get(name)), digest))
    if not problems and CHECKSUMS in commit.offsets:
        content = (folder / CHECKSUMS).read_bytes()[: commit.offsets[CHECKSUMS]].decode()
        for name, wanted in sum_lines(content):
            if not (folder / name).is_file():
                problems.append(f"{folder / name} is missing")
            elif (digest := hashlib.sha256((folder / name).read_bytes()).hexdigest()) != wanted:
                problems.append(_changed(folder / name, wanted, digest))
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"{problems[0]}{others}: the folder is not what the run wrote; put it back, or sample into a new folder"
        )
    return digests


def _changed(path: Path, wanted: str, got: str) -> str:
    return f"{path} was changed after it was written: its sha256 must be {wanted[:12]}..., got {got[:12]}..."


def _hash_start(path: Path, length: int) -> tuple[_Hash, int]:
    """Hash of the first bytes of a file, and how many of them there are."""
    digest, left = hashlib.sha256(), length
    if not path.is_file():
        return digest, 0
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest, length - left


FORMAT = 2
"""2: the journal has hashes, the range its total."""
ADDED = {"noise_scale": 1.0, "min_distance_scaled": 0.0}
"""Settings that runs of earlier versions did not write, and what they were then."""
_PACKAGES = ("torch", "numpy", "scipy", "pymatgen")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None for a folder that is empty or not there.

    Raises:
        ValueError: when the folder holds other things.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, got the file {folder}")
    path = folder / MANIFEST
    if path.is_file():
        try:
            return dict(parse_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} must be the manifest of a sampling run, got no JSON object") from error
    # Hidden files are those that a kill leaves before the manifest has its name.
    if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or one of `latentite sample`, got {folder}")
    return None


def new_manifest(
    settings: Mapping[str, Any], checkpoint: Mapping[str, Any], *, first: int, stop: int, total: int
) -> dict[str, Any]:
    """The manifest of a run that begins.

    Args:
        settings: every option that the structures depend on, as plain values.
        checkpoint: file, sha256 and weights.
        first: first index that is sampled in this folder.
        stop: index after the last.
        total: crystals of the whole run, over all shards.
    """
    return {
        "format": FORMAT,
        "status": "running",
        "settings": dict(settings),
        "checkpoint": dict(checkpoint),
        "range": {"first": first, "stop": stop, "total": total},
        "counts": {},
        "sessions": [],
    }


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, without: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first thing that the crystals of two runs depend on and that differs: its name, and both values.

    Args:
        old: a manifest.
        new: another.
        without: settings that may differ.
    """
    before, now = ({"checkpoint": manifest["checkpoint"]["sha256"]} for manifest in (old, new))
    before |= ADDED | json.loads(json.dumps(old["settings"]))
    now |= ADDED | json.loads(json.dumps(new["settings"]))
    for name in sorted(before.keys() | now.keys(), key=lambda name: (name != "checkpoint", name)):
        if name not in without and before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None


def refuse_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse the folder of another version.

    Raises:
        ValueError: saying so.
    """
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder} must hold a run of format {FORMAT}, whose files have checksums, got format "
            f"{manifest.get('format')} of another version of latentite; sample into a new folder"
        )


def continued(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The manifest with which a run goes on: the old one, asked for more crystals where the new one is.

    Args:
        folder: of the run.
        old: its manifest.
        new: of what is asked now.

    Raises:
        ValueError: when settings differ, naming the first that does, or fewer crystals are asked for.
    """
    refuse_format(folder, old)
    differing = difference(old, new, without=("num_samples",))
    if differing is not None and differing[0] == "checkpoint":
        raise ValueError(
            f"--resume needs the checkpoint that the run began with (sha256 {differing[1][:12]}...), "
            f"got {new['checkpoint']['file']} ({differing[2][:12]}...)"
        )
    if differing is not None:
        name, before, now = differing
        raise ValueError(
            f"--resume needs the settings that the run began with: {name} was {before}, got {now}; use these, or "
            "sample into a new folder"
        )
    if old["range"] == new["range"]:
        return old
    _refuse_extension(folder, old, new)
    parts: dict[str, Any] = {name: old[name] for name in ("counts", "sessions", "parts") if name in old}
    return {**new, **parts}


def _refuse_extension(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse another number of samples where the crystals that are there would not be the first of them."""
    before, now = (manifest["settings"]["num_samples"] for manifest in (old, new))
    totals = [manifest["range"]["total"] for manifest in (old, new)]
    changed = f"was {before}, got {now}"
    if new["settings"].get("shard", "1/1") != "1/1":
        raise ValueError(
            f"num_samples of a shard cannot change, as it decides where shards begin: {changed}; finish and merge "
            "the shards (`latentite sample merge`), then go on with the merged folder"
        )
    if totals[1] > now:
        raise ValueError(
            "num_samples cannot change in a run of several formulas or structures to start from, as it decides "
            f"which index belongs to which: {changed}; sample the others into a new folder with another seed"
        )
    if now < before:
        raise ValueError(
            f"num_samples must be at least that of the run in {folder} to go on with it: {changed}; its first {now} "
            "crystals are those of the smaller run"
        )
    if file_stem(0, totals[0]) != file_stem(0, totals[1]):
        raise ValueError(
            f"num_samples cannot grow beyond what the file names in {folder} have digits for: {changed}; sample "
            "into a new folder"
        )


def finished_commits(folder: Path, manifest: Mapping[str, Any]) -> list[Commit]:
    """The journal of a run that its manifest calls finished.

    Raises:
        ValueError: when journal and manifest do not say the same.
    """
    commits, _ = read_commits(folder / JOURNAL)
    end = commits[-1].stop if commits else manifest["range"]["first"]
    if end != manifest["range"]["stop"] or (commits and commits[-1].counts != manifest["counts"]):
        raise ValueError(
            f"{folder / JOURNAL} must end where {MANIFEST} says that the run is finished, at index "
            f"{manifest['range']['stop']} and with the same counts, got {end}: one of them was changed; put it "
            "back, or sample into a new folder"
        )
    return commits


class Sessions:
    """Keeps the manifest of a run that is going on: one session from start or resumption to end or kill."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], *, command: Sequence[str], device: str, at: int
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._start = datetime.now(UTC)
        self._session: dict[str, Any] = {
            "command": list(command),
            "device": device,
            "first": at,
            "started": self._start.isoformat(timespec="seconds"),
            "versions": versions(),
        }
        manifest["sessions"].append(self._session)
        self.save("running", {})

    def save(self, status: str, counts: Mapping[str, Any]) -> None:
        """Write where the run stands; after a kill this is what is known of the session."""
        now = datetime.now(UTC)
        self._session["ended"] = now.isoformat(timespec="seconds")
        self._session["wall_seconds"] = round((now - self._start).total_seconds(), 3)
        self._manifest["status"] = status
        if counts:
            self._manifest["counts"] = dict(counts)
        write_json(self._folder / MANIFEST, self._manifest)


def versions() -> dict[str, str]:
    """Versions of everything that the structures were made with."""
    ours = {"latentite": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return ours | {name: metadata.version(name) for name in _PACKAGES}
