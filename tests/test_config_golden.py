"""Every experiment composes, is valid, opens with its command, and resolves to what was reviewed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from update import GOLDEN, config_name, experiments, resolved, stage

from latentite.config import STAGES, compose, config_dir, load
from latentite.training.stage_settings import TrainVAEConfig

EXPERIMENTS = experiments()
REQUIRED = {
    "mp_20/vae_dng",
    "mp_20/vae_csp",
    "alex_mp_20/vae_dng",
    "alex_mp_20/vae_csp",
    "mp_20_biternary/vae_dng",
    "prototypes/vae_dng",
}


def test_the_promised_experiments_exist():
    assert set(EXPERIMENTS) >= REQUIRED


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_resolves_to_its_golden_text(experiment):
    path = GOLDEN / f"{experiment}.yaml"
    assert path.is_file(), "run python tests/golden/update.py"
    assert resolved(experiment) == path.read_text(encoding="utf-8"), (
        "run python tests/golden/update.py if meant"
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_valid_and_opens_with_its_command(experiment):
    kind = STAGES[stage(experiment)].settings()
    overrides = [f"experiment={experiment}"]
    if "/rl_gpt_" in experiment:  # no crystal GPT is bundled: the user names hers
        overrides.append("rl_module.ldm_ckpt_path=gpt.ckpt")
    config = load(kind, compose(config_name(experiment), overrides))
    if isinstance(config, TrainVAEConfig):
        assert config.vae_module.atom_type_predict is not experiment.endswith("csp")
    lines = (config_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python src/{config_name(experiment)}.py experiment={experiment}")
