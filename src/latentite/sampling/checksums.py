"""The journal and the hashes of a run's files: how far they count, and damage named by file.

Every line of the journal has length and sha256 of each file that grows, up to there; one of these files,
`SHA256SUMS`, has the sha256 of every file of its own (CIFs, trajectories). So whoever trusts the journal can trust
the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from latentite.base.files import parse_json

if TYPE_CHECKING:
    from hashlib import _Hash

CHECKSUMS = "SHA256SUMS"

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
