"""The examples run as their readers would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_follow_one_crystal_reaches_the_end_of_the_way(tmp_path: Path) -> None:
    script = ROOT / "examples" / "follow_one_crystal.py"
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    stops = [line.split(".")[0] for line in done.stdout.splitlines() if line.split(". ")[0].isdigit()]
    assert stops == [str(number) for number in range(13)]
    assert "latentite.crystal.CrystalBatch" in done.stdout
    assert list(tmp_path.iterdir()) == []
