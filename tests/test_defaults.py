"""A default is written once, in a dataclass: Python, YAML and the command line all read it there."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest
import yaml

from latentite.base.plain import default_values
from latentite.commands.sample import register, sample_options
from latentite.config import STAGES, compose, config_dir, load
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.latent.options import LatentOptions
from latentite.nn.predictor_config import PredictorConfig
from latentite.predictor.settings import PredictorModuleConfig, TrainPredictorConfig
from latentite.rewards.combine import RewardConfig
from latentite.rl.config import RLModuleConfig, TrainRLConfig
from latentite.sampling.options import GenerateConfig
from latentite.training.settings import EarlyStoppingConfig, RunConfig
from latentite.training.stage_settings import LDMModuleConfig, TrainGPTConfig, TrainLDMConfig, TrainVAEConfig

SYMMETRY = {"symmetry": {"_target_": "latentite.rewards.properties.SymmetryReward"}}
SHORTEST: dict[str, tuple[RunConfig, list[str]]] = {
    "vae": (TrainVAEConfig(), []),
    "ldm": (
        TrainLDMConfig(ldm_module=LDMModuleConfig(vae_ckpt_path="vae.ckpt")),
        ["ldm_module.vae_ckpt_path=vae.ckpt"],
    ),
    "rl": (
        TrainRLConfig(
            rl_module=RLModuleConfig(ldm_ckpt_path="ldm.ckpt", reward_fn=RewardConfig(components=SYMMETRY))
        ),
        [
            "rl_module.ldm_ckpt_path=ldm.ckpt",
            f"+rl_module.reward_fn.components.symmetry._target_={SYMMETRY['symmetry']['_target_']}",
        ],
    ),
    "predictor": (
        TrainPredictorConfig(
            predictor_module=PredictorModuleConfig(vae_ckpt_path="vae.ckpt", target_conditions=["density"])
        ),
        ["predictor_module.vae_ckpt_path=vae.ckpt", "predictor_module.target_conditions=[density]"],
    ),
    "gpt": (TrainGPTConfig(), []),
}
"""A run of each stage with what must be given, and nothing else: in Python, and as typed."""


def test_there_is_a_shortest_run_of_every_stage():
    assert list(SHORTEST) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_the_same_in_python_and_on_the_command_line(stage):
    """Clipping, validation interval, devices, wandb's mode and most of RL's numbers once differed."""
    in_python, typed = SHORTEST[stage]
    entry = STAGES[stage]
    assert load(entry.settings(), compose(entry.config_name, typed)) == in_python


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_line_shows_every_setting_of_its_dataclass_and_no_other(stage):
    """`--cfg job` once lacked `ldm_module.diffusion.compatibility`."""
    entry = STAGES[stage]
    shown = compose(entry.config_name)
    data = shown["data"] | {"seed": None}  # shown as what null means: the run's
    assert shown | {"data": data} == default_values(entry.settings())


@pytest.mark.parametrize("stage", STAGES)
def test_the_yaml_files_that_a_run_begins_with_repeat_no_default(stage):
    """Those named `default`, and the stage's own, say which files are taken; the data set's says its name."""
    primary = yaml.safe_load((config_dir() / f"{STAGES[stage].config_name}.yaml").read_text(encoding="utf-8"))
    assert list(primary) == ["defaults"]
    for group in (f"{stage}_module", "trainer", "callbacks"):
        assert yaml.safe_load((config_dir() / group / "default.yaml").read_text(encoding="utf-8")) is None, (
            group
        )
    assert yaml.safe_load((config_dir() / "logger" / "wandb.yaml").read_text(encoding="utf-8")) is None


def test_early_stopping_shows_the_defaults_of_its_dataclass():
    composed = compose("train_vae", ["callbacks=early_stopping", "callbacks.early_stopping.patience=5"])
    found = load(TrainVAEConfig, composed).callbacks.early_stopping
    assert found == EarlyStoppingConfig(patience=5)
    assert list(composed["callbacks"]["early_stopping"]) == [
        item.name for item in fields(EarlyStoppingConfig)
    ]


def test_one_seed_sets_the_order_of_the_crystals_too_in_python_and_on_the_command_line():
    """In Python the crystals came in the order of seed 0 whatever the run's was."""
    for more, expected in (([], 5), (["data.seed=3"], 3)):
        config = load(TrainVAEConfig, compose("train_vae", ["seed=5", *more]))
        assert config.data.seed == expected
    in_python = TrainVAEConfig(seed=5)
    assert in_python.data.seed == 5
    assert TrainVAEConfig(seed=5, data=replace(in_python.data, seed=3)).data.seed == 3


def test_the_defaults_of_sample_are_those_of_its_dataclass():
    """The command hands over what was typed and nothing else; the dataclasses fill in the rest."""
    parser = argparse.ArgumentParser()
    register(parser)
    config, own = sample_options(parser.parse_args(["--out", "folder"]))
    assert config == GenerateConfig(out="folder")
    assert own == {}


def test_the_chain_of_a_sampled_crystal_has_the_defaults_of_every_chain():
    assert LatentOptions().sampling() == SamplingConfig()


def test_a_predictor_s_network_has_the_defaults_of_its_settings():
    """`predictor_module` repeats the keys of the network's own config, so that they can be typed."""

    def default(kind: type, name: str) -> Any:
        item = kind.__dataclass_fields__[name]
        return item.default if item.default_factory is MISSING else item.default_factory()

    shared = {item.name for item in fields(PredictorConfig)} & {
        item.name for item in fields(PredictorModuleConfig)
    }
    assert shared >= {"pooling", "hidden", "dropout", "head", "quantiles", "ensemble", "fidelity_mode"}
    for name in shared - {"targets"}:  # names there, details by name here
        assert default(PredictorModuleConfig, name) == default(PredictorConfig, name), name
