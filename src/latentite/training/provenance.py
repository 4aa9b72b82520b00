"""Where a run comes from: versions, commit, command line, data, settings. Written before the first step.

`training/fit.py` calls it once, on the first process.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from latentite import __version__
from latentite.base.files import replacing, write_json
from latentite.base.plain import to_plain
from latentite.training.settings import RunConfig


def write_provenance(config: RunConfig, data: dict[str, Any], *, num_parameters: int) -> None:
    """Write `config.yaml` (every setting, resolved) and `provenance.json` into the run's folder."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(config.run_dir / "config.yaml") as path:
        path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")
    write_json(
        config.run_dir / "provenance.json",
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "latentite": __version__,
            "commit": git_commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": package_versions(),
            "seed": config.seed,
            "num_parameters": num_parameters,
            "data": data,
        },
    )


def git_commit() -> str | None:
    """Commit of the source tree that this package runs from, `-dirty` if it differs; None without git."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Installed version of each package that latentite depends on."""
    try:
        requirements = metadata.requires("latentite") or []
    except metadata.PackageNotFoundError:
        return {}
    versions = {}
    for requirement in requirements:
        name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
