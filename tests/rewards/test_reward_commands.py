"""`latentite reward check` as users type it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pymatgen.core import Structure

from latentite.cli import main

FILE = """
import torch

class Heavy:
    def __init__(self, target=8.0, unit="g/cm^3"):
        self.target = target

    def __call__(self, structures, batch):
        return torch.tensor([-abs(structure.density - self.target) for structure in structures])

def broken(structures, batch):
    return 1 / 0

def first_best(structures, batch):
    return torch.arange(len(structures)).float()
"""


@pytest.fixture
def folder(tmp_path: Path, structures: list[Structure]) -> Path:
    (tmp_path / "my_reward.py").write_text(FILE)
    (tmp_path / "cifs").mkdir()
    for number, structure in enumerate(structures):
        structure.to(str(tmp_path / "cifs" / f"{number}.cif"))
    return tmp_path


def check(folder: Path, *arguments: str) -> int:
    return main(["reward", "check", *arguments, "--crystals", str(folder / "cifs")])


def test_a_good_reward_passes_and_its_cost_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, f"{folder}/my_reward.py:Heavy", "target=5.5", "unit=kg") == 0
    printed = capsys.readouterr().out
    assert "keeps the contract on 5 crystals" in printed.replace("\n", " ")
    assert "s per 100 structures" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/my_reward.py:first_best"], "must be the same in another order"),
        (
            ["{}/my_reward.py:broken"],
            "it raised ZeroDivisionError: division by zero ({}/my_reward.py, line 12)",
        ),
        (["{}/my_reward.py:Missing"], "there is no Missing in it; there are Heavy, broken, first_best"),
        (["{}/my_reward.py:Heavy", "goal=1"], "does not take these arguments"),
        (["{}/my_reward.py:Heavy", "goal"], "must be given as key=value, got 'goal'"),
        (["{}/my_reward.py:Heavy", "--limit", "1"], "--limit must be at least 2"),
    ],
)
def test_mistakes_end_with_one_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(folder, *(argument.format(folder) for argument in arguments)) == 2
    assert message.format(folder) in capsys.readouterr().err
