"""Weights, one normalisation, floors: whatever a reward does, the run gets finite numbers and a count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.rewards.combine import RewardConfig, Rewards
from latentite.rewards.protocol import ComponentOptions, CustomReward, Normalize, check_reward, normalise
from latentite.rewards.target import build, locate

FILE = """
import torch

class Volume:
    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, structures, batch):
        return self.factor * batch.volume

class Fragile(Volume):
    def __call__(self, structures, batch):
        if any("Fe" in structure.composition for structure in structures):
            raise RuntimeError("no iron, please")
        return batch.volume

class Rank:
    is_collective = True

    def __call__(self, structures, batch):
        return batch.volume.argsort().argsort().float()

class Greedy:
    def __call__(self, structures, batch):
        for structure in structures:
            structure.translate_sites(range(len(structure)), [0.1, 0.0, 0.0])
        return batch.volume

class FirstBest:
    def __call__(self, structures, batch):
        return torch.arange(len(structures)).float()

def volume(structure):
    return structure.volume

def three(structures, batch):
    return torch.zeros(3)

def sometimes(structures, batch):
    values = batch.volume.clone()
    values[0] = float("nan")
    return values
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_reward.py"
    path.write_text(FILE)
    return path


def rewards(**components: dict) -> Rewards:
    return Rewards.build(from_plain(RewardConfig, {"components": components}))


def test_components_are_weighted_and_a_weight_of_zero_only_watches(
    file: Path, crystals: CrystalBatch
) -> None:
    table = rewards(
        big={"_target_": f"{file}:Volume", "weight": 2.0},
        small={"_target_": f"{file}:Volume", "weight": -0.5, "factor": 3.0, "cap": 200.0},
        watched={"_target_": f"{file}:Rank", "weight": 0.0},
    )(crystals)
    volume = crystals.volume.double()
    torch.testing.assert_close(table.total, 2.0 * volume - 0.5 * (3.0 * volume).clamp(max=200.0))
    assert table.raw["watched"].tolist() == volume.argsort().argsort().tolist()
    means = table.means()
    assert means["big/weighted"] == pytest.approx(2.0 * float(volume.mean()))
    assert means["watched/weighted"] == 0.0
    assert means["total"] == pytest.approx(float(table.total.mean()))


def test_a_crystal_at_which_a_reward_raises_gets_the_floor_alone(file: Path, crystals: CrystalBatch) -> None:
    table = rewards(fragile={"_target_": f"{file}:Fragile"})(crystals)
    assert table.num_failed == {"fragile": 1}
    assert math.isnan(table.raw["fragile"][2])
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(table.total[others], crystals.volume[others].double())
    assert table.total[2] == crystals.volume[others].min()
    floored = rewards(fragile={"_target_": f"{file}:Fragile", "floor": -7.0})(crystals)
    assert floored.total[2] == -7.0


def test_nan_and_wrong_shapes_are_counted_and_do_not_end_the_run(file: Path, crystals: CrystalBatch) -> None:
    table = rewards(
        nan={"_target_": f"{file}:sometimes"}, shape={"_target_": f"{file}:three", "normalize": "min_max"}
    )(crystals)
    assert table.num_failed == {"nan": 1, "shape": 5}
    assert table.total.isfinite().all()
    assert table.total[0] == crystals.volume[1:].min(), "the lowest of the others"


def test_crystals_that_cannot_be_are_not_shown_and_get_every_floor(
    file: Path, crystals: CrystalBatch
) -> None:
    usable = torch.tensor([True, True, False, True, True])
    table = rewards(fragile={"_target_": f"{file}:Fragile"})(crystals, usable)
    assert table.num_failed == {"fragile": 0}
    assert table.total[2] == table.total[usable].min()
    nothing = rewards(fragile={"_target_": f"{file}:Fragile"})(crystals, torch.zeros(5, dtype=torch.bool))
    assert nothing.total.eq(0.0).all()


VALUES = st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), min_size=1, max_size=9)


@given(values=VALUES, kind=st.sampled_from(list(Normalize)), floor=st.one_of(st.none(), st.floats(-10, 0)))
def test_normalised_rewards_are_finite_and_keep_their_order(
    values: list[float], kind: Normalize, floor: float | None
) -> None:
    raw = torch.tensor(values, dtype=torch.float64)
    found = normalise(raw, ComponentOptions(normalize=kind, floor=floor, cap=5.0))
    assert found.isfinite().all()
    known = ~raw.isnan()
    if known.any():
        assert found[~known].le(found[known].min() + 1e-9).all(), (
            "whoever fails is not better than anyone else"
        )
        order = raw[known].argsort()
        assert found[known][order].diff().ge(-1e-9).all()
    if kind is Normalize.MIN_MAX:
        assert 0.0 <= found.min() <= found.max() <= 1.0
    if kind is Normalize.STANDARD:
        assert abs(float(found.mean())) < 1e-6


def test_a_list_of_components_is_named_by_class(file: Path) -> None:
    config = RewardConfig(
        components=[{"_target_": f"{file}:Volume"}, {"_target_": f"{file}:Volume", "weight": 0.0}]
    )
    assert list(config.named()) == ["Volume", "Volume_2"]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({}, "components must hold at least one reward"),
        ({"x": {"weight": 1.0}}, r"components\.x must have a _target_, got weight"),
        ({"x": {"_target_": "a.b", "weight": "much"}}, r"components\.x: weight must be a number, got 'much'"),
        (
            {"x": {"_target_": "a.b", "normalize": "zscore"}},
            "normalize must be one of none, min_max, standard",
        ),
        ({"x": {"_target_": "a.b", "floor": 1, "cap": 0}}, "floor must be below cap"),
    ],
)
def test_wrong_components_are_refused_by_name(components: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(RewardConfig, {"components": components})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py:Reward", r"there is no file nowhere\.py"),
        ("{file}:Missing", r"there is no Missing in it; there are Volume, Fragile"),
        ("latentite.nothing.Here", r"cannot be imported: No module named 'latentite\.nothing'"),
        ("mine/reward.py", r"must say which class or function of the file it is: mine/reward\.py:Name"),
        ("Reward", r"must be package\.module\.Name or path/to/file\.py:Name, got 'Reward'"),
    ],
)
def test_wrong_targets_are_refused_with_a_reason(target: str, message: str, file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        locate(target.format(file=file))


def test_targets_are_built_with_their_arguments(file: Path) -> None:
    assert locate(f"{file}:volume") is locate(f"{file}:volume"), "one file is one module"
    nested = build(
        {"_target_": "latentite.rewards.protocol.CustomReward", "function": f"{file}:volume"}, "reward"
    )
    assert isinstance(nested, CustomReward)
    with pytest.raises(ValueError, match=r"reward: .*Volume does not take these arguments.*size is not one"):
        build({"_target_": f"{file}:Volume", "size": 2}, "reward")
    broken = file.with_name("broken.py")
    broken.write_text("import nothing_of_that_name")
    with pytest.raises(ValueError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        locate(f"{broken}:Reward")


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("properties.PropertyReward", {"scal": 2.0}, r"reward: scal is not a setting; did you mean scale\?"),
        ("properties.PropertyReward", {"scale": "x"}, r"reward: scale must be a number, got 'x'"),
        ("properties.PropertyReward", {"wieght": 2.0}, r"wieght is not one of them; did you mean weight\?"),
        ("properties.SymmetryReward", {"symprc": 0.1}, r"symprc is not one of them; did you mean symprec\?"),
        ("properties.SymmetryReward", {"zzz": 0.1}, r"zzz is not one of them; there are symprec, weight"),
        ("properties.SymmetryReward", {"symprec": 0.0}, r"^reward: symprec must be above 0"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_near(target: str, arguments: dict, message: str) -> None:
    spec = {"_target_": f"latentite.rewards.{target}", **arguments}
    if target.endswith("PropertyReward"):
        spec |= {"property": "density", "maximise": True}
    with pytest.raises(ValueError, match=message):
        build(spec, "reward", beside=["weight"])


def test_the_contract_is_kept_by_good_rewards(file: Path, crystals: CrystalBatch) -> None:
    report = check_reward(locate(f"{file}:Volume")(), crystals)
    assert report.num_crystals == 5
    assert report.num_failed == 0
    assert report.highest == pytest.approx(float(crystals.volume.max()))
    assert check_reward(locate(f"{file}:Rank")(), crystals).is_collective
    assert check_reward(CustomReward(f"{file}:volume"), crystals).mean == pytest.approx(
        float(crystals.volume.mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Greedy", "must leave its input as it is, but structure 0 was changed"),
        ("FirstBest", "must be the same in another order, got a difference of"),
        ("three", r"one number per crystal, shape \(5,\), got \(3,\)"),
        ("sometimes", "must be the same in another order"),
    ],
)
def test_the_contract_names_what_is_broken(
    name: str, message: str, file: Path, crystals: CrystalBatch
) -> None:
    found = locate(f"{file}:{name}")
    with pytest.raises(ValueError, match=message):
        check_reward(found() if isinstance(found, type) else found, crystals)


def test_the_contract_wants_tensors_and_numbers(crystals: CrystalBatch) -> None:
    with pytest.raises(ValueError, match=r"must give a torch\.Tensor, got list"):
        check_reward(lambda structures, batch: [0.0] * 5, crystals)
    with pytest.raises(ValueError, match="got NaN for every one of them"):
        check_reward(lambda structures, batch: torch.full((5,), torch.nan), crystals)
    with pytest.raises(ValueError, match="must be finite or NaN, got inf"):
        check_reward(lambda structures, batch: torch.full((len(batch),), torch.inf), crystals)
