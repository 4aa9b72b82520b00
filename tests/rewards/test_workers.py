"""Rewards in processes of their own are those of this process, failures and deaths included."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.rewards.combine import RewardConfig, Rewards, RewardWorkers

pytestmark = pytest.mark.slow  # seconds to start each process

FILE = """
import os
import torch

class Volume:
    def __call__(self, structures, batch):
        return batch.volume

class Fragile:
    def __call__(self, structures, batch):
        if any("Fe" in structure.composition for structure in structures):
            raise RuntimeError("no iron, please")
        return batch.volume

class Mortal:
    is_collective = True

    def __call__(self, structures, batch):
        if len(structures) == 2:
            os._exit(1)
        return batch.volume

class Once(Mortal):
    def set_reference(self, crystals):
        if os.path.exists(__file__ + ".asked"):
            raise ValueError("only once")
        open(__file__ + ".asked", "w").close()

class Shy:
    def set_reference(self, crystals):
        raise RuntimeError("not this one")

    def __call__(self, structures, batch):
        return batch.volume
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FILE)
    return path


def config(file: Path, *names: str) -> RewardConfig:
    components = {name: {"_target_": f"{file}:{name}", "weight": 0.5 + i} for i, name in enumerate(names)}
    components["diversity"] = {
        "_target_": "latentite.rewards.diversity.DiversityReward",
        "features": "composition",
        "normalize": "min_max",
    }
    return from_plain(RewardConfig, {"components": components, "duplicate_discount": 0.5})


def test_workers_say_what_this_process_says(file: Path, crystals: CrystalBatch) -> None:
    wanted_of = config(file, "Volume", "Fragile")
    here = Rewards.build(wanted_of)
    here.set_reference(crystals)
    usable = torch.tensor([True, True, True, False, True])
    wanted = here(crystals, usable)
    there = RewardWorkers(wanted_of, 2)
    try:
        there.set_reference(crystals)
        first, second = there.start(crystals, usable), there.start(crystals)
        found = first()
        assert found.total.equal(wanted.total)
        assert found.num_failed == wanted.num_failed == {"Volume": 0, "Fragile": 1, "diversity": 0}
        assert list(found.raw) == list(wanted.raw)
        assert second().total.equal(here(crystals).total)
    finally:
        there.close()


def test_a_process_that_dies_costs_its_rewards_once(file: Path, crystals: CrystalBatch) -> None:
    there = RewardWorkers(config(file, "Mortal"), 2)
    two = crystals.select(torch.tensor([0, 1]))
    try:
        there.set_reference(crystals)
        first, second = there.start(two), there.start(crystals)
        table = first()
        assert table.num_failed == {"Mortal": 2, "diversity": 0}
        assert all(math.isnan(value) for value in table.raw["Mortal"].tolist())
        assert table.total.isfinite().all()
        assert second().num_failed["Mortal"] == 5, "it waited in the same process"
        assert there.start(crystals)().num_failed["Mortal"] == 0, "started anew"
    finally:
        there.close()


def test_a_reward_that_cannot_be_made_ready_anew_costs_its_rewards_and_not_the_run(
    file: Path, crystals: CrystalBatch
) -> None:
    there = RewardWorkers(config(file, "Once"), 2)
    try:
        there.set_reference(crystals)
        assert there.start(crystals)().num_failed["Once"] == 0
        assert there.start(crystals.select(torch.tensor([0, 1])))().num_failed["Once"] == 2, "it dies"
        table = there.start(crystals)()
        assert table.num_failed == {"Once": 5, "diversity": 0}
        assert table.total.isfinite().all()
    finally:
        there.close()


def test_a_reference_that_a_reward_cannot_take_ends_the_run_at_its_start(
    file: Path, crystals: CrystalBatch
) -> None:
    there = RewardWorkers(config(file, "Shy"), 1)
    try:
        with pytest.raises(RuntimeError, match="not this one"):
            there.set_reference(crystals)
    finally:
        there.close()
