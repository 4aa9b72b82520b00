"""The examples run as their readers would run them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from test_imports import PACKAGE

ROOT = Path(__file__).resolve().parents[1]


def test_follow_one_crystal_reaches_the_end_of_the_way(tmp_path: Path) -> None:
    script = ROOT / "examples" / "follow_one_crystal.py"
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    stops = [line.split(".")[0] for line in done.stdout.splitlines() if line.split(". ")[0].isdigit()]
    assert stops == [str(number) for number in range(1, 12)]
    assert "latentite.crystal.CrystalBatch" in done.stdout
    assert list(tmp_path.iterdir()) == []


def imported_names(path: Path) -> set[str]:
    """Dotted names of what a file imports from the package, by `from ... import`."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentite")
        for alias in node.names
    }


def test_follow_one_crystal_calls_only_what_the_package_itself_calls() -> None:
    """It takes the way of training and sampling: each of its functions and types is one that the package imports."""
    used = {name for path in PACKAGE.rglob("*.py") for name in imported_names(path)}
    assert imported_names(ROOT / "examples" / "follow_one_crystal.py") - used == set()
