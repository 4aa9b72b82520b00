"""Every experiment of the diffusion stage really trains what its name says.

Regression: in the system before us, `ldm_composition` trained an unconditional model. Sizes and lengths are
replaced by tiny ones; conditions, diffusion, and what is fine-tuned are those of the experiment.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_datamodule, tiny_ldm_config, tiny_split
from torch import Tensor

from latentite.checkpoint import read_checkpoint
from latentite.config import compose, config_dir, load
from latentite.data.dataset import write_dataset
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs
from latentite.models import load_ldm
from latentite.nn.condition_values import ConditionKind
from latentite.nn.ldm import LatentDiffusion
from latentite.stages import train_ldm
from latentite.training.stage_settings import TrainLDMConfig

CONDITIONAL = {
    "alex_mp_20_bandgap/ldm_bandgap": ("dft_band_gap", ConditionKind.SCALAR, "eV", 0.0, 6.0),
    "alex_mp_20_bandgap/ldm_bandgap_lora": ("dft_band_gap", ConditionKind.SCALAR, "eV", 0.0, 6.0),
    "mp_20/ldm_chemical_system": ("chemical_system", ConditionKind.CHEMICAL_SYSTEM, "", "Na-Cl", "Li-Fe-O"),
    "mp_20/ldm_composition": ("composition", ConditionKind.COMPOSITION, "", "TiO2", "Ti3O"),
    "mp_20_biternary/ldm_band_gap": ("band_gap", ConditionKind.SCALAR, "eV", 0.0, 6.0),
    "mp_20_biternary/ldm_composition": ("composition", ConditionKind.COMPOSITION, "", "TiO2", "Ti3O"),
    "mp_20_biternary/ldm_formation_energy": (
        "formation_energy_per_atom",
        ConditionKind.SCALAR,
        "eV/atom",
        -3.0,
        0.0,
    ),
    "prototypes/ldm_composition": ("composition", ConditionKind.COMPOSITION, "", "TiO2", "Ti3O"),
    "prototypes/ldm_density": ("density", ConditionKind.SCALAR, "g/cm^3", 3.0, 15.0),
}
"""Name, kind, unit of what each experiment is conditioned on, and two requests."""
ADAPTED = {name for name in CONDITIONAL if name.endswith("_lora") or name.startswith("mp_20_biternary/")}
"""Those that train low-rank adapters on an unconditional base."""
LABELS = ("band_gap", "dft_band_gap", "formation_energy_per_atom")
"""What the data sets bring; a density is computed from the crystals."""
TINY = [
    "data.batch_size=8",
    "data.eval_batch_size=null",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=3",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "logger.wandb.mode=disabled",
    "callbacks.progress_bar=false",
    "callbacks.checkpoint.export=false",
    "ldm_module.denoiser={size: custom, depth: 1, hidden_size: 16, num_heads: 2}",
    "ldm_module.optimizer.lr=0.01",
    "ldm_module.scheduler.name=constant",
    "ldm_module.scheduler.warmup_steps=0",
    "ldm_module.ema.decay=0.5",
]


def experiments() -> list[str]:
    folder = config_dir() / "experiment"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/ldm_*.yaml"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random crystals with random labels, a third of which are missing."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 44, 1), ("val", 12, 2)):
        split = tiny_split(count, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        labels = {label: torch.rand(count, generator=generator).double() for label in LABELS}
        for values in labels.values():
            values[torch.rand(count, generator=generator) < 1 / 3] = torch.nan
        crystals = split.crystals.with_properties(labels)
        write_dataset(folder / f"{name}.safetensors", replace(split, crystals=crystals))
    return folder


@pytest.fixture(scope="module")
def base(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional model."""
    config = tiny_ldm_config(tmp_path_factory.mktemp("base"), vae_checkpoint, trainer__max_epochs=3)
    return train_ldm(config, datamodule=tiny_datamodule()).last_path


def tiny_experiment(name: str, run_dir: Path, vae: Path, base: Path, data_dir: Path) -> TrainLDMConfig:
    start = f"ldm_module.ldm_ckpt_path={base}" if name in ADAPTED else f"ldm_module.vae_ckpt_path={vae}"
    overrides = [f"experiment={name}", f"data.data_dir={data_dir}", f"data.cache_dir={run_dir}", start, *TINY]
    return load(TrainLDMConfig, compose("train_ldm", overrides) | {"run_dir": str(run_dir)})


def answer(network: LatentDiffusion, request: dict[str, object]) -> Tensor:
    """What the denoiser says of fixed noise when this is asked."""
    module = network.condition_module
    assert module is not None
    tokens = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    condition = module(module.requested(module.parse(request), 4), num_crystals=4)
    return network.denoiser(tokens, torch.full((4,), 500.0), torch.ones(4, 3, dtype=torch.bool), condition)


def test_the_list_is_complete() -> None:
    assert [name for name in experiments() if not name.endswith("ldm_null")] == sorted(CONDITIONAL)


@pytest.mark.parametrize("name", [name for name in experiments() if name.endswith("ldm_null")])
def test_null_experiments_are_unconditional(
    name: str, vae_checkpoint: Path, base: Path, data_dir: Path, tmp_path: Path
) -> None:
    config = tiny_experiment(name, tmp_path, vae_checkpoint, base, data_dir)
    assert config.data.conditions == []
    network, settings, _ = load_ldm(train_ldm(config).last_path)
    assert network.condition_module is settings.condition_module is None


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_experiments_train_their_condition(
    name: str, vae_checkpoint: Path, base: Path, data_dir: Path, tmp_path: Path
) -> None:
    condition, kind, unit, one, other = CONDITIONAL[name]
    config = tiny_experiment(name, tmp_path, vae_checkpoint, base, data_dir)
    with torch.enable_grad():
        result = train_ldm(config)
    network, settings, _ = load_ldm(result.last_path)
    assert settings.condition_module is not None
    (found,) = settings.condition_module.conditions
    assert (found.name, found.kind, found.unit) == (condition, kind, unit)
    assert (read_checkpoint(result.last_path).config["lora"] is not None) == (name in ADAPTED)
    assert result.metrics["val/loss"] != result.metrics["val/loss_absent"]
    first, second, none = (answer(network, request) for request in ({condition: one}, {condition: other}, {}))
    assert not first.allclose(second, atol=1e-5)
    assert not first.allclose(none, atol=1e-5)

    sizes = torch.tensor([4, 4])
    assert network.condition_module is not None
    asked = [Ask(conditions=network.condition_module.parse({condition: value})) for value in (one, other)]
    plain = Jobs.plain(sizes)
    sampled = [
        sample_jobs(
            network, settings.diffusion, replace(plain, asked=(ask,)), seed=0, config=SamplingConfig(steps=3)
        ).crystals
        for ask in asked
    ]
    assert all(crystals.frac_coords.isfinite().all() for crystals in sampled)
    assert not sampled[0].lattice.allclose(sampled[1].lattice, atol=1e-5)
