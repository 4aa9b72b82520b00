"""A skip for a reason that nobody has allowed fails the run in CI, on one worker and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from known_skips import is_known

SKIPPING = {
    "call": "import pytest\ndef test_a():\n    pytest.skip({reason!r})\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason={reason!r})\ndef test_a(): pass\n",
    "module": "import pytest\npytest.skip({reason!r}, allow_module_level=True)\n",
}


def run(folder: Path, text: str, *, ci: bool, workers: int) -> subprocess.CompletedProcess[str]:
    """pytest on a file of the text and on one that passes, with nothing of this run but the plugin."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    (folder / "test_fine.py").write_text("def test_fine(): pass\n", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "CI"))}
    # Other plugins take seconds to import.
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {"CI": "true"} if ci else {}
    command = [sys.executable, "-m", "pytest", "-p", "known_skips", "-p", "no:cacheprovider"]
    command += ["-p", "xdist.plugin", "-n", str(workers)] if workers else []
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("how", SKIPPING)
def test_a_new_reason_to_skip_fails_the_run_in_ci(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, SKIPPING[how].format(reason="a new reason"), ci=True, workers=0)
    assert done.returncode == 1, done.stdout
    assert "skips for reasons that tests/known_skips.py does not know" in done.stdout
    assert "test_it.py" in done.stdout
    assert "a new reason" in done.stdout


@pytest.mark.parametrize("how", ["call", "module"])
def test_the_skips_of_workers_are_seen(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, SKIPPING[how].format(reason="a new reason"), ci=True, workers=2)
    assert done.returncode == 1, done.stdout
    assert "a new reason" in done.stdout


def test_a_known_reason_passes_and_a_new_one_passes_outside_of_ci(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPPING["call"].format(reason="needs a GPU"), ci=True, workers=0).returncode == 0
    done = run(tmp_path, SKIPPING["call"].format(reason="a new reason"), ci=False, workers=0)
    assert done.returncode == 0
    assert "a new reason" in done.stdout, "it is named all the same"


@pytest.mark.parametrize(
    "reason",
    [
        "the extra `energy` is not installed",
        "could not import 'h5py': No module named 'h5py'",
        "could not import 'dftd3': No module named 'dftd3'",
    ],
)
def test_what_dev_installs_is_no_reason_to_skip(reason: str) -> None:
    """CI did not install chgnet, and was green without the tests of the energies."""
    assert not is_known(f"Skipped: {reason}")
