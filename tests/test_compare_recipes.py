"""`benchmarks/compare_recipes.py`: what is asked, what a run logged, and the table; no training."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RECIPES = {"stage": "vae", "common": ["a=1"], "metrics": ["val/loss"], "recipes": {"a": [], "b": ["c=2"]}}


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare_recipes

    return compare_recipes


def finished(folder: Path, losses: list[float]) -> None:
    """A run as it is left: the loss at steps 10, 20, ..."""
    folder.mkdir(parents=True)
    rows = [f"{10 * i},{loss}" for i, loss in enumerate(losses, start=1)]
    (folder / "metrics.csv").write_text("\n".join(["step,val/loss", *rows]) + "\n", encoding="utf-8")


def test_finished_runs_are_not_run_again_and_their_last_values_are_averaged(
    compare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare.subprocess, "run", lambda *arguments, **options: pytest.fail("trained"))
    path = tmp_path / "recipes.yaml"
    path.write_text(yaml.safe_dump(RECIPES), encoding="utf-8")
    for name, losses in {"0_0": [9.0, 2.0], "0_1": [4.0], "1_0": [1.0], "1_1": [1.0]}.items():
        folder = tmp_path / "out" / name
        finished(folder, losses)
        words = ["a=1", *([] if name[0] == "0" else ["c=2"])]
        command = compare.command_of("vae", words, folder, seed=int(name[-1]), minutes=1.0)
        (folder / "finished.json").write_text(json.dumps({"command": command}), encoding="utf-8")
    asked = [str(path), "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    compare.main([*asked, "--minutes", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "| a | 2 | 15 (10 to 20) | 3 (2 to 4) |"
    assert lines[-1] == "| b | 2 | 10 (10 to 10) | 1 (1 to 1) |"
    with pytest.raises(ValueError, match="holds a run of another command"):
        compare.main([*asked, "--minutes", "2"])


def test_what_is_wrong_is_named(compare: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipes.yaml"
    path.write_text(yaml.safe_dump(RECIPES | {"stage": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match="stage must be a str"):
        compare.read_recipes(path)
    path.write_text("stage: vae", encoding="utf-8")
    with pytest.raises(ValueError, match="must have the keys stage, common, metrics, recipes"):
        compare.read_recipes(path)
    finished(tmp_path / "run", [1.0])
    with pytest.raises(ValueError, match="must have val/other, got val/loss"):
        compare.last_values(tmp_path / "run", ["val/other"])


def test_a_training_that_fails_says_what_it_said(compare: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"train_nothing\.py.*failed"):
        compare.run_once(compare.command_of("nothing", [], tmp_path, seed=0, minutes=1.0), tmp_path)
    assert not (tmp_path / "finished.json").exists()
