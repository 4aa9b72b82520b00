"""`manifest.json`: where the structures of a folder come from, and whether a run may go on there.

Comes after `folder.py`; `run.py` keeps it up to date.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from latentite import __version__
from latentite.files import write_json
from latentite.sampling.folder import MANIFEST

FORMAT = 1
ADDED = {"noise_scale": 1.0}
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
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} must be the manifest of a sampling run, got no JSON object") from error
    # Hidden files are those that a kill leaves before the manifest has its name.
    if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or one of `latentite sample`, got {folder}")
    return None


def new_manifest(
    settings: Mapping[str, Any], checkpoint: Mapping[str, Any], *, first: int, stop: int
) -> dict[str, Any]:
    """The manifest of a run that begins.

    Args:
        settings: every option that the structures depend on, as plain values.
        checkpoint: file, sha256 and weights.
        first: first index that is sampled in this folder.
        stop: index after the last.
    """
    return {
        "format": FORMAT,
        "status": "running",
        "settings": dict(settings),
        "checkpoint": dict(checkpoint),
        "range": {"first": first, "stop": stop},
        "counts": {},
        "sessions": [],
    }


def refuse_other_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings, naming the first that differs.

    Raises:
        ValueError: when they differ.
    """
    if old.get("format") != FORMAT:
        raise ValueError(f"the manifest must have format {FORMAT}, got {old.get('format')}")
    hashes = [manifest["checkpoint"]["sha256"] for manifest in (old, new)]
    if hashes[0] != hashes[1]:
        raise ValueError(
            f"--resume needs the checkpoint that the run began with (sha256 {hashes[0][:12]}...), "
            f"got {new['checkpoint']['file']} ({hashes[1][:12]}...)"
        )
    before, now = (ADDED | json.loads(json.dumps(manifest["settings"])) for manifest in (old, new))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--resume needs the settings that the run began with: {name} was {before.get(name)}, "
                f"got {now.get(name)}; use these, or sample into a new folder"
            )


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
    """What the structures were made with."""
    found = {"latentite": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return found | {name: metadata.version(name) for name in _PACKAGES}
