"""Conditions of a run: what is resolved and refused, where statistics come from, and what training leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import tiny_datamodule, tiny_ldm_config

from latentite.config import compose, load
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset
from latentite.models import load_ldm
from latentite.nn.condition_values import ConditionKind, Transform
from latentite.stages import train_ldm
from latentite.training.conditions import (
    ConditionModuleOptions,
    ConditionOptions,
    check_labels,
    resolve_conditions,
)
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ldm import LDMTrainingModule
from latentite.training.stage_settings import TrainLDMConfig

CATEGORIES = {"prototype": ("fluorite", "rocksalt"), "space_group": ("1", "225")}
KINDS = {
    "band_gap": ConditionKind.SCALAR,
    "prototype": ConditionKind.CATEGORICAL,
    "space_group": ConditionKind.SPACE_GROUP,
    "composition": ConditionKind.COMPOSITION,
    "chemical_system": ConditionKind.CHEMICAL_SYSTEM,
    "num_atoms": ConditionKind.NUM_ATOMS,
    "volume_per_atom": ConditionKind.VOLUME_PER_ATOM,
}
"""What each name means without a word about it, given `CATEGORIES`."""


@given(names=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True))
def test_names_say_their_kinds_in_the_order_of_the_request(names: list[str]) -> None:
    module = resolve_conditions(names, ConditionModuleOptions(), categories=CATEGORIES, hidden_size=16)
    assert module is not None
    assert [(c.name, c.kind) for c in module.conditions] == [(name, KINDS[name]) for name in names]
    assert all(bool(c.classes) == (c.kind is ConditionKind.CATEGORICAL) for c in module.conditions)


def test_options_override_what_the_name_says() -> None:
    options = ConditionModuleOptions(
        drop_probability=0.3,
        row_drop_probability=0.4,
        conditions={
            "symmetry": ConditionOptions(kind=ConditionKind.SPACE_GROUP),
            "hardness": ConditionOptions(unit="GPa", transform=Transform.LOG, drop_probability=0.0),
        },
    )
    names = ["hardness", "symmetry", "band_gap"]
    module = resolve_conditions(names, options, categories={}, hidden_size=16)
    assert module is not None
    hardness, group, gap = module.conditions
    assert (hardness.unit, hardness.transform, hardness.drop_probability) == ("GPa", Transform.LOG, 0.0)
    assert (group.kind, group.drop_probability) == (ConditionKind.SPACE_GROUP, 0.3)
    assert (gap.unit, gap.drop_probability, module.row_drop_probability) == ("eV", 0.3, 0.4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.target_condition=[band_gap]"],
            r"needs a condition module, but ldm_module\.condition_module is",
        ),
        (
            ["data.target_condition=band_gap"],
            r"data\.target_condition=\['band_gap'\] needs a condition module",
        ),
        (["ldm_module.condition_module={}"], r"needs conditions, but data\.target_condition is empty"),
        (
            ["data.target_condition=[band_gap]", "ldm_module.condition_module.conditions.gap.unit=eV"],
            r"ldm_module\.condition_module\.conditions\.gap must be one of data\.target_condition \(band_gap\)",
        ),
        (
            ["data.target_condition=[a]", "ldm_module.condition_module={drop_probability: 2}"],
            r"ldm_module\.condition_module\.drop_probability must be between 0 and 1, got 2",
        ),
    ],
)
def test_a_run_whose_conditions_do_not_fit_is_refused_before_anything_is_read(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(TrainLDMConfig, compose("train_ldm", ["ldm_module.vae_ckpt_path=nowhere.ckpt", *overrides]))


def test_a_derived_kind_keeps_its_own_name() -> None:
    options = ConditionModuleOptions(conditions={"mix": ConditionOptions(kind=ConditionKind.COMPOSITION)})
    with pytest.raises(ValueError, match="of kind composition must be called composition"):
        resolve_conditions(["mix"], options, categories={}, hidden_size=16)


def labelled_data(missing: float = 0.5) -> CrystalDataModule:
    """The tiny data set; labels of its validation split are far from those of training, and many are missing."""
    data = tiny_datamodule()
    for position, (name, shift) in enumerate((("train", 0.0), ("val", 1000.0))):
        split = data.splits[name]
        generator = torch.Generator().manual_seed(position)
        gap = shift + 2.0 * torch.rand(len(split), generator=generator)
        gap[torch.rand(len(split), generator=generator) < missing] = torch.nan
        group = torch.randint(1, 231, (len(split),), generator=generator).float()
        crystals = split.crystals.with_properties({"band_gap": gap, "space_group": group})
        data.splits[name] = replace(split, crystals=crystals)
    data.config.target_condition = ["band_gap", "space_group", "composition"]
    return data


def conditional_config(run_dir: Path, vae: Path, **changes: object) -> TrainLDMConfig:
    options = ConditionModuleOptions(drop_probability=0.4, row_drop_probability=0.3)
    config = tiny_ldm_config(run_dir, vae, ldm_module__condition_module=options, **changes)
    config.ldm_module.optimizer.lr = 0.02
    return config


@pytest.mark.parametrize("latent_cache", [0, 2])
def test_training_keeps_every_row_and_every_label(
    latent_cache: int, vae_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: rows with a missing label were dropped elsewhere, and hiding overwrote the labels in place."""
    data, sizes = labelled_data(), []
    before = {
        split: {name: values.clone() for name, values in data.splits[split].crystals.properties.items()}
        for split in ("train", "val")
    }
    original = LDMTrainingModule.training_step

    def step(self: LDMTrainingModule, batch: object, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)  # type: ignore[arg-type]  # either kind of batch
        sizes.append(len(batch))  # type: ignore[arg-type]
        assert loss.isfinite()
        return loss

    monkeypatch.setattr(LDMTrainingModule, "training_step", step)
    config = conditional_config(
        tmp_path, vae_checkpoint, trainer__max_epochs=2, ldm_module__latent_cache=latent_cache
    )
    result = train_ldm(config, datamodule=data)
    assert sum(sizes) == 2 * 44
    for split, labels in before.items():
        for name, values in labels.items():
            after = data.splits[split].crystals.properties[name]
            torch.testing.assert_close(after, values, rtol=0.0, atol=0.0, equal_nan=True)

    network, _, _ = load_ldm(result.last_path)
    assert network.condition_module is not None
    gap = before["train"]["band_gap"]
    known = gap[~gap.isnan()].double()
    assert 0 < len(known) < 44
    mean, std = network.condition_module.statistics["band_gap"]
    assert mean == pytest.approx(float(known.mean()), rel=1e-6)
    assert std == pytest.approx(float(known.std(correction=0)), rel=1e-6)


def test_any_subset_of_several_conditions_can_be_asked_for(vae_checkpoint: Path, tmp_path: Path) -> None:
    config = conditional_config(tmp_path, vae_checkpoint, trainer__max_epochs=3)
    result = train_ldm(config, datamodule=labelled_data())
    network, _, _ = load_ldm(result.last_path)
    module = network.condition_module
    assert module is not None
    everything: dict[str, object] = {"band_gap": 1.5, "space_group": 225, "composition": "NaCl"}
    subsets = [
        {name: everything[name] for i, name in enumerate(everything) if number >> i & 1}
        for number in range(8)
    ]
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    with torch.no_grad():
        for subset in subsets:
            condition = module(module.requested(module.parse(subset), 1), num_crystals=1)
            mask = torch.ones(1, 4, dtype=torch.bool)
            answers.append(network.denoiser(tokens, torch.tensor([500.0]), mask, condition))
        assert module.absent(1).vector.equal(module(module.requested({}, 1), num_crystals=1).vector)
    for i, first in enumerate(answers):
        for second in answers[:i]:
            assert not first.allclose(second, atol=1e-6)


def test_training_with_conditions_resumes_bit_for_bit(vae_checkpoint: Path, tmp_path: Path) -> None:
    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        changes = {"trainer__max_epochs": epochs, "ckpt_path": ckpt_path}
        config = conditional_config(tmp_path / name, vae_checkpoint, **changes)
        return dict(load_ldm(train_ldm(config, datamodule=labelled_data()).last_path)[0].state_dict())

    whole = run("whole", 2)
    run("half", 1)
    rest = run("rest", 2, tmp_path / "half" / "checkpoints" / "last.ckpt")
    assert whole.keys() == rest.keys()
    assert all(whole[name].equal(rest[name]) for name in whole)


def test_conditions_refuse_names_where_they_take_numbers_and_other_classes() -> None:
    """The codes 0, 1, 2, ... of names were once learnt as energies, or as space groups."""
    crystals = CrystalBatch.from_arrays([CrystalArrays(np.array([11]), np.zeros((1, 3)), 3 * np.eye(3))] * 2)
    labels = {
        name: torch.tensor([torch.nan, 0.0]) for name in ("band_gap", "space_group", "prototype", "hardness")
    }
    train = CrystalDataset(
        crystals=crystals.with_properties(labels),
        ids=("a", "b"),
        categories={"band_gap": ("1.0 eV",), "space_group": ("Fm-3m",), "prototype": ("rocksalt",)},
        content_hash="",
    )
    for name, text in (("band_gap", "1.0 eV"), ("space_group", "Fm-3m")):
        module = resolve_conditions(
            [name], ConditionModuleOptions(), categories=train.categories, hidden_size=16
        )
        assert module is not None
        with pytest.raises(
            ValueError, match=rf"condition {name} .* needs {name} as numbers.*'{text}' in row 1 \(id b\)"
        ):
            check_labels(module.conditions, train)
    names = ["prototype", "hardness"]
    fitting = resolve_conditions(names, ConditionModuleOptions(), categories=train.categories, hidden_size=16)
    others = resolve_conditions(names, ConditionModuleOptions(), categories=CATEGORIES, hidden_size=16)
    assert fitting is not None
    assert others is not None
    check_labels(fitting.conditions, train)
    with pytest.raises(
        ValueError, match=r"condition prototype must have labels of the classes \['fluorite', 'rocksalt'\]"
    ):
        check_labels(others.conditions, train)
