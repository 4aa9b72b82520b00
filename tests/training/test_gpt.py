"""The stage `gpt` on a tiny scale: trains on orbits, resumes exactly, and its checkpoint stands alone."""

from __future__ import annotations

import csv
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_config

from latentite.checkpoint import CRYSTAL_GPT, CheckpointError, Stage
from latentite.data.build import load_splits
from latentite.data.dataset import CrystalDataset
from latentite.data.properties import derive
from latentite.data.sampler import seeded_generator
from latentite.data.sources import resolve
from latentite.models import load_gpt, load_ldm
from latentite.nn.gpt.network import GPTConfig, GPTMode, GPTNetwork, limits_of
from latentite.nn.gpt.size import GPTSize
from latentite.stages import train_gpt
from latentite.symmetry.orbits import OrbitBatch
from latentite.training.conditions import ConditionModuleOptions, resolve_conditions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.fit import RunStatus
from latentite.training.gpt import GPTTrainingModule, encoding_of, redescribed
from latentite.training.optim import OptimizerConfig, SchedulerConfig
from latentite.training.orbit_data import GPTBatch, OrbitDataModule
from latentite.training.settings import DataConfig
from latentite.training.stage_settings import GPTModuleConfig, TrainGPTConfig

CONDITIONS = ["composition", "chemical_system", "space_group", "num_atoms", "density"]
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")


@cache
def crystals(split: str, count: int) -> CrystalDataset:
    """Some crystals of the embedded data set with at most six atoms, every third without its density."""
    whole = load_splits(resolve("prototypes"))[split]
    small = (whole.crystals.num_atoms <= 6).nonzero().flatten()
    rows = small[torch.linspace(0, len(small) - 1, count).long()]
    chosen = whole.crystals.select(rows)
    density = derive("density", chosen)
    assert isinstance(density, torch.Tensor)
    density[::3] = float("nan")
    return replace(
        whole,
        crystals=chosen.with_properties({"density": density}),
        ids=tuple(whole.ids[row] for row in rows.tolist()),
        content_hash=f"{split}-{count}",
    )


def datamodule(count: int = 40) -> CrystalDataModule:
    splits = {"train": crystals("train", count), "val": crystals("val", 12)}
    return CrystalDataModule(DataConfig(name="tiny"), splits=splits)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions are made once, in this process."""
    folder = tmp_path_factory.getbasetemp() / "orbits"
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(folder))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TrainGPTConfig]:
    """`make("name", trainer__max_epochs=2)`: a tiny run with every part that has a state."""

    def build(name: str, **changes: object) -> TrainGPTConfig:
        shared = tiny_config(tmp_path / name, trainer__max_epochs=2)
        module = GPTModuleConfig(
            size=GPTSize(d_model=16, num_layers=1, num_heads=2, dim_feedforward=32, num_mixtures=2),
            condition_module=ConditionModuleOptions(drop_probability=0.3),
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01),
            scheduler=SchedulerConfig(name="cosine", warmup_steps=3, total_steps=24),
            ema=EMAConfig(decay=0.9),
        )
        config = TrainGPTConfig(
            run_dir=tmp_path / name,
            data=DataConfig(name="tiny", batch_size=8, workers=1, target_condition=CONDITIONS),
            trainer=shared.trainer,
            logger=shared.logger,
            callbacks=shared.callbacks,
            gpt_module=module,
        )
        for key, value in changes.items():
            *path, last = key.split("__")
            target: object = config
            for part in path:
                target = getattr(target, part)
            assert hasattr(target, last), key
            setattr(target, last, value)
        return config

    return build


def batch_of(config: TrainGPTConfig, data: CrystalDataModule) -> GPTBatch:
    orbits = OrbitDataModule(config.data, encoding_of(config.gpt_module), splits=data.splits)
    batch = orbits.source("train").select(torch.arange(8))
    assert isinstance(batch, GPTBatch)
    return batch


def test_a_checkpoint_stands_alone_and_says_what_it_was_trained_on(make):
    result = train_gpt(make("run"), datamodule=datamodule())
    network, settings, record = load_gpt(result.last_path)
    assert (record.stage, record.generator) == (Stage.GPT, CRYSTAL_GPT)
    card, train = record.data, crystals("train", 40)
    assert card.split("train").num_crystals == 40
    assert card.split("train").num_rejected == 0
    assert card.split("train").content_hash == "train-40[orbits 0.1 0.01]"
    assert sum(card.train_sizes) == 40
    assert card.elements is not None
    assert len(card.elements) == len(train.crystals.atomic_numbers.unique())
    assert card.orbits.mode == "symmetry"
    assert card.orbits.max_elements == settings.limits.max_elements <= 4
    assert settings.limits.max_atoms == card.largest_cell
    assert settings.limits.max_orbits == card.orbits.max_orbits
    names = [condition.name for condition in settings.condition_module.conditions]
    assert names == CONDITIONS
    batch = batch_of(make("other"), datamodule())
    assert network.log_prob(batch.orbits, batch.reductions).total.isfinite().all()
    assert {"val/group", "val/letters", "val/elements", "val/cell", "val/coords", "val/loss"} < set(
        result.metrics
    )
    parts = [result.metrics[f"val/{part}"] for part in ("group", "letters", "elements", "cell", "coords")]
    assert result.metrics["val/loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_what_is_not_of_this_kind_is_refused_by_both_loaders(make, vae_checkpoint):
    last = train_gpt(make("run", trainer__max_epochs=1), datamodule=datamodule()).last_path
    with pytest.raises(CheckpointError, match="expected a checkpoint of latent_diffusion, got one of gpt"):
        load_ldm(last)
    with pytest.raises(CheckpointError, match="expected a gpt checkpoint, got vae"):
        load_gpt(vae_checkpoint)


@pytest.mark.parametrize(
    ("method", "call"), [("training_step", 3), ("training_step", 5), ("validation_step", 1)]
)
def test_a_run_that_is_stopped_anywhere_resumes_bit_for_bit(make, monkeypatch, method, call):
    """In the middle and at the end of an epoch, and in a validation; with dropout, sampled places and hiding."""
    whole = train_gpt(make("whole"), datamodule=datamodule())
    original, calls = getattr(GPTTrainingModule, method), []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(GPTTrainingModule, method, step)
        first = train_gpt(make("first"), datamodule=datamodule())
    assert first.status is RunStatus.PREEMPTED
    torch.rand(1000)  # a state of torch's own generator that no step may depend on
    rest = train_gpt(make("rest", ckpt_path=first.last_path), datamodule=datamodule())
    one, other = read(whole.last_path), read(rest.last_path)
    for key in STATES:
        assert_same(one[key], other[key], key)
    assert_same(one["latentite"]["ema"], other["latentite"]["ema"])
    assert_same(one["latentite"]["metrics"], other["latentite"]["metrics"])


def test_sixteen_crystals_are_learnt_by_heart(make):
    config = make(
        "run",
        trainer__max_epochs=60,
        trainer__check_val_every_n_epoch=60,
        gpt_module__condition_module=None,
        data__target_condition=None,
        data__batch_size=16,
    )
    config.gpt_module.size = GPTSize(d_model=64, num_layers=2, num_heads=2, dim_feedforward=128, dropout=0.0)
    config.gpt_module.optimizer.lr = 5e-3
    config.gpt_module.scheduler = SchedulerConfig()
    train_gpt(config, datamodule=datamodule(16))
    with (config.run_dir / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.35 * losses[0]


def conditional(seed: int = 0) -> GPTNetwork:
    config, data = GPTModuleConfig(), datamodule()
    orbits = OrbitDataModule(
        replace(data.config, target_condition=CONDITIONS), encoding_of(config), splits=data.splits
    ).orbits("train")
    module = resolve_conditions(CONDITIONS, ConditionModuleOptions(), categories={}, hidden_size=16)
    size = GPTSize(d_model=16, num_layers=1, num_heads=2, dim_feedforward=32)
    torch.manual_seed(seed)
    network = GPTNetwork(GPTConfig(size=size, limits=limits_of(orbits), condition_module=module)).eval()
    network.fit_statistics(orbits)
    network.condition_module.fit_statistics(network.condition_values(orbits))
    return network


@torch.no_grad()
def test_all_conditions_absent_is_unconditional(make):
    network = conditional()
    batch = batch_of(make("run"), datamodule())
    values = network.condition_values(batch.orbits)
    plain = network.log_prob(batch.orbits, batch.reductions).total
    hidden = {name: torch.zeros(8, dtype=torch.bool) for name in values}
    nothing = {name: torch.full_like(value, float("nan")) for name, value in values.items()}
    for told in (
        network.conditioning({}, num_crystals=8),
        network.conditioning(values, hidden, num_crystals=8),
        network.conditioning(nothing, num_crystals=8),
    ):
        assert torch.equal(network.log_prob(batch.orbits, batch.reductions, told).total, plain)
    shown = network.conditioning(values, num_crystals=8)
    assert not torch.equal(network.log_prob(batch.orbits, batch.reductions, shown).total, plain)


def test_conditions_are_read_off_the_orbits_and_a_missing_label_is_absent(make):
    batch = batch_of(make("run"), datamodule())
    network = conditional()
    values = network.condition_values(batch.orbits)
    primitive = batch.orbits.to_crystals()
    assert torch.equal(values["space_group"], batch.orbits.space_group.float())
    assert torch.equal(values["num_atoms"], primitive.num_atoms.float())
    assert torch.equal(values["chemical_system"] > 0, values["composition"] > 0)
    assert values["composition"].sum(-1) == pytest.approx(torch.ones(8))
    missing = values["density"].isnan()
    assert missing.any()
    assert not missing.all()
    present = network.conditioning(values, num_crystals=8).present
    assert torch.equal(present[:, CONDITIONS.index("density")], ~missing)
    assert present[:, :4].all()


def test_volumes_of_elements_take_most_of_the_spread_of_volumes_away():
    network = conditional()
    orbits = OrbitDataModule(
        DataConfig(name="tiny"), encoding_of(GPTModuleConfig()), splits=datamodule().splits
    )
    spread = float(orbits.orbits("train").cell[:, 0].std())
    assert 0.0 < float(network.gpt.cell_std[0]) < spread
    assert (network.gpt.cell_std >= 0.01).all()


def test_a_base_is_fine_tuned_from_its_outputs_with_conditions_that_start_without_effect(make):
    plain = {"gpt_module__condition_module": None, "data__target_condition": None, "trainer__max_epochs": 1}
    base = train_gpt(make("base", **plain), datamodule=datamodule()).last_path
    frozen = make("tuned", trainer__max_epochs=1, gpt_module__gpt_ckpt_path=str(base))
    frozen.gpt_module.optimizer = OptimizerConfig(name="sgd", lr=1e-12)
    frozen.gpt_module.ema = EMAConfig(decay=0.0)
    tuned = train_gpt(frozen, datamodule=datamodule()).last_path
    batch = batch_of(make("any"), datamodule())
    one, other = load_gpt(base).network, load_gpt(tuned).network
    assert one.condition_module is None
    assert other.condition_module is not None
    with torch.no_grad():
        before = one.log_prob(batch.orbits, batch.reductions).total
        after = other.log_prob(batch.orbits, batch.reductions).total
    torch.testing.assert_close(after, before)
    with pytest.raises(ValueError, match=r"data.target_condition must be \[composition, .*gpt_ckpt_path"):
        train_gpt(
            make("wrong", data__target_condition=["density"], gpt_module__gpt_ckpt_path=str(tuned)),
            datamodule=datamodule(),
        )
    with pytest.raises(ValueError, match=r"gpt_module\.mode must be symmetry"):
        train_gpt(
            make("p1", gpt_module__mode=GPTMode.P1, gpt_module__gpt_ckpt_path=str(base), **plain),
            datamodule=datamodule(),
        )


def test_p1_takes_every_atom_as_an_orbit_of_group_1(make):
    config = make("run", trainer__max_epochs=1, gpt_module__mode=GPTMode.P1)
    config = replace(config, data=replace(config.data, target_condition=["num_atoms"]))
    _, settings, record = load_gpt(train_gpt(config, datamodule=datamodule()).last_path)
    assert settings.mode is GPTMode.P1
    assert settings.limits.max_orbits == settings.limits.max_atoms == record.data.largest_cell
    assert record.data.split("train").content_hash == "train-40[p1]"
    assert record.data.orbits.symprec is None


def test_rejected_crystals_are_counted_said_and_left_out(make, caplog):
    """Here one whose atoms lie on top of each other."""
    whole = crystals("train", 40)
    coords = whole.crystals.frac_coords.clone()
    row = int((whole.crystals.num_atoms > 1).nonzero()[0])
    atoms = (whole.crystals.crystal_index == row).nonzero().flatten()
    coords[atoms] = 0.25
    numbers = whole.crystals.atomic_numbers.clone()
    numbers[atoms] = 26
    broken = replace(
        whole,
        crystals=replace(whole.crystals, frac_coords=coords, atomic_numbers=numbers),
        content_hash="broken",
    )
    data = CrystalDataModule(DataConfig(name="tiny"), splits={"train": broken, "val": crystals("val", 12)})
    with caplog.at_level(logging.INFO):
        record = load_gpt(train_gpt(make("run", trainer__max_epochs=1), datamodule=data).last_path).record
    card = record.data.split("train")
    assert (card.num_crystals, card.num_rejected) == (39, 1)
    assert "1 rejected" in caplog.text


def test_another_description_of_a_crystal_is_the_same_crystal(make):
    batch = batch_of(make("run"), datamodule())
    one, again, other = (redescribed(batch.orbits, seeded_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.coords, again.coords)
    assert not all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("position", "coords"))
    for name in ("space_group", "num_orbits", "cell"):
        assert torch.equal(getattr(one, name), getattr(batch.orbits, name))
    assert torch.equal(one.num_atoms, batch.orbits.num_atoms)
    config = make("run", trainer__max_epochs=1, gpt_module__equivalents=True)
    assert train_gpt(config, datamodule=datamodule()).status is RunStatus.FINISHED


def test_what_the_model_cannot_say_counts_in_validation_and_is_told(make):
    """A crystal of more different elements than any of training had probability 0: the loss was infinite."""
    train = crystals("train", 40)
    few = (train.crystals.num_atoms <= 4).nonzero().flatten()
    data = CrystalDataModule(
        DataConfig(name="tiny"),
        splits={
            "train": replace(
                train,
                crystals=train.crystals.select(few),
                ids=tuple(train.ids[row] for row in few.tolist()),
                content_hash="few",
            ),
            "val": crystals("val", 12),
        },
    )
    metrics = train_gpt(make("run", trainer__max_epochs=1), datamodule=data).metrics
    assert 0.0 < metrics["val/impossible"] <= 1.0
    assert metrics["val/loss"] < 1e4


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"size.d_model must be a multiple of size.num_heads \(6\), got 64"):
        GPTModuleConfig(size=GPTSize(d_model=64))
    with pytest.raises(ValueError, match="symprec must be a positive number of Å, got 0"):
        GPTModuleConfig(symprec=0.0)
    with pytest.raises(ValueError, match=r"smoothing must be at least 0 and below 1, got 1\.0"):
        GPTModuleConfig(smoothing=1.0)
    with pytest.raises(ValueError, match=r"set gpt_module\.condition_module=\{\}"):
        TrainGPTConfig(data=DataConfig(target_condition=["composition"]))
    with pytest.raises(ValueError, match=r"must not hold space_group with gpt_module\.mode=p1"):
        TrainGPTConfig(
            data=DataConfig(target_condition=["space_group"]),
            gpt_module=GPTModuleConfig(mode=GPTMode.P1, condition_module=ConditionModuleOptions()),
        )


def test_batches_are_sorted_by_orbits_within_windows_only():
    data = datamodule()
    orbits = OrbitDataModule(
        DataConfig(name="tiny", batch_size=2, seed=0), encoding_of(GPTModuleConfig()), splits=data.splits
    )
    orbits.window = 4
    batches = list(orbits.train_dataloader())
    assert sum(len(batch) for batch in batches) == 40
    assert all(isinstance(batch.orbits, OrbitBatch) for batch in batches)
    spread = [len(batch.orbits.num_orbits.unique()) for batch in batches]
    orbits.window, orbits.config.bucketed = None, False
    unsorted = [len(batch.orbits.num_orbits.unique()) for batch in orbits.train_dataloader()]
    assert sum(spread) < sum(unsorted)
