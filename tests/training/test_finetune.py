"""Fine-tuning: what comes from the base, what is trained, and what stands in the checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_config, tiny_datamodule, tiny_ldm_config
from torch import Tensor

from latentite.checkpoint import Weights, export_portable, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig
from latentite.models import load_ldm
from latentite.nn.denoiser import DenoiserConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import LoraConfig
from latentite.nn.vae import LatentBatch
from latentite.stages import train_ldm, train_vae
from latentite.training.conditions import ConditionModuleOptions, ConditionOptions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ldm import build_module, plan_network
from latentite.training.stage_settings import TrainLDMConfig

LORA = LoraConfig(rank=2, alpha=4.0, dropout=0.2)
CONDITIONS = ["volume_per_atom", "composition"]


def data_for(names: list[str] | None = None) -> CrystalDataModule:
    """The tiny data set with other crystals than the base was trained on, conditioned on these names."""
    data = tiny_datamodule(count=36)
    data.config.target_condition = names
    return data


@pytest.fixture(scope="module")
def base(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_ldm_config(tmp_path_factory.mktemp("base"), vae_checkpoint, trainer__max_epochs=1)
    return train_ldm(config, datamodule=tiny_datamodule()).last_path


@pytest.fixture(scope="module")
def conditional_base(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_ldm_config(
        tmp_path_factory.mktemp("conditional"),
        vae_checkpoint,
        trainer__max_epochs=1,
        ldm_module__condition_module=ConditionModuleOptions(),
    )
    return train_ldm(config, datamodule=data_for(CONDITIONS)).last_path


def finetune_config(run_dir: Path, base: Path, **changes: object) -> TrainLDMConfig:
    """Settings that say nothing of VAE, denoiser and diffusion; what they say by default is not the base's."""
    config = tiny_ldm_config(run_dir, base, trainer__max_epochs=1, ldm_module__ldm_ckpt_path=str(base))
    config.ldm_module.vae_ckpt_path = None
    config.ldm_module.denoiser = DenoiserConfig()
    for name, value in changes.items():
        setattr(config if name == "ckpt_path" else config.ldm_module, name, value)
    return config


def started(config: TrainLDMConfig, data: CrystalDataModule) -> LatentDiffusion:
    """The network before the first step."""
    plan = plan_network(config.ldm_module, data)
    return build_module(config.ldm_module, plan, seed=0).network.eval()


def output(network: LatentDiffusion, crystals: CrystalBatch | None = None) -> Tensor:
    """What the denoiser says of fixed noise, told the conditions of these crystals or nothing."""
    mask = LatentBatch.token_mask(torch.tensor([2, 5, 3]))
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
    condition = None
    if crystals is not None and network.condition_module is not None:
        condition = network.condition_module(network.condition_module.values(crystals))
    with torch.no_grad():
        return network.denoiser(tokens, torch.tensor([3.0, 500.0, 900.0]), mask, condition)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_starts_with_the_outputs_of_its_base_also_with_new_conditions(
    lora: LoraConfig | None, base: Path, tmp_path: Path
) -> None:
    data = data_for(CONDITIONS)
    config = finetune_config(tmp_path, base, lora=lora, condition_module=ConditionModuleOptions())
    network, original = started(config, data), load_ldm(base)[0]
    module = network.condition_module
    assert module is not None
    crystals = data.splits["train"].crystals
    module.fit_statistics(module.values(crystals))
    told = output(network, crystals.select(torch.arange(3)))
    assert told.equal(output(original))
    assert output(original).abs().max() > 0
    assert network.latent_mean.equal(original.latent_mean)
    assert network.latent_std.equal(original.latent_std)
    assert_same(dict(network.vae.state_dict()), dict(original.vae.state_dict()))


def test_full_fine_tuning_keeps_statistics_and_vae_and_moves_the_denoiser(base: Path, tmp_path: Path) -> None:
    result = train_ldm(finetune_config(tmp_path, base), datamodule=data_for())
    before, after = load_ldm(base)[0].state_dict(), load_ldm(result.last_path)[0].state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert all(name.startswith("denoiser.") for name in moved)
    assert load_ldm(result.last_path)[1] == load_ldm(base)[1]


def test_lora_trains_adapters_and_conditions_only_and_checkpoints_stand_alone(
    base: Path, tmp_path: Path
) -> None:
    config = finetune_config(tmp_path, base, lora=LORA, condition_module=ConditionModuleOptions())
    config.callbacks.checkpoint.export = True
    result = train_ldm(config, datamodule=data_for(CONDITIONS))
    original = read_checkpoint(base, weights=Weights.EMA).state
    trained = read(result.last_path)
    for name, value in original.items():
        assert trained["state_dict"][f"network.{name}"].equal(value), f"{name} is frozen"
    averaged = set(trained["latentite"]["ema"])
    assert averaged
    assert all("lora" in name or "adapter" in name or name.startswith("condition_") for name in averaged)

    record = read_checkpoint(result.last_path)
    assert record.config["lora"] == {
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.2,
        "targets": LORA.targets,
        "trainable": [],
    }
    with_adapters = started(config, data_for(CONDITIONS))
    with_adapters.load_state_dict(record.state)
    merged, settings, _ = load_ldm(result.last_path)
    assert settings.lora is None
    assert not any("lora" in name or "adapter" in name for name in merged.state_dict())
    crystals = tiny_datamodule().splits["val"].crystals.select(torch.arange(3))
    wanted = output(with_adapters, crystals)
    torch.testing.assert_close(output(merged, crystals), wanted, atol=1e-5, rtol=1e-4)
    assert not wanted.allclose(output(load_ldm(base)[0]), atol=1e-4), "training must have changed something"

    for portable in (
        result.run_dir / "checkpoints" / "model.safetensors",
        export_portable(result.last_path, tmp_path / "again")[0],
    ):
        published, published_settings, record = load_ldm(portable)
        assert record.config["lora"] is None
        assert published_settings == settings
        assert_same(dict(published.state_dict()), dict(merged.state_dict()))


def test_a_lora_run_resumes_bit_for_bit(base: Path, tmp_path: Path) -> None:
    """Dropout included, which draws from torch's own generator."""

    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> Path:
        config = finetune_config(
            tmp_path / name,
            base,
            lora=LORA,
            condition_module=ConditionModuleOptions(),
            ckpt_path=ckpt_path,
            latent_cache=2,
        )
        config.trainer.max_epochs = epochs
        return train_ldm(config, datamodule=data_for(CONDITIONS)).last_path

    one, other = read(run("whole", 2)), read(run("rest", 2, run("half", 1)))
    for key in ("state_dict", "latentite", "optimizer_states"):
        assert_same(one[key], other[key], key)


def test_an_adapted_model_is_a_base_again(base: Path, tmp_path: Path) -> None:
    first = train_ldm(finetune_config(tmp_path / "1", base, lora=LORA), datamodule=data_for()).last_path
    network = started(finetune_config(tmp_path / "2", first, lora=LORA), data_for())
    torch.testing.assert_close(output(network), output(load_ldm(first)[0]))


def test_frozen_parts_stay(base: Path, tmp_path: Path) -> None:
    config = finetune_config(tmp_path, base, freeze=["denoiser.blocks", "denoiser.t_embedder"])
    result = train_ldm(config, datamodule=data_for())
    before, after = load_ldm(base)[0].state_dict(), load_ldm(result.last_path)[0].state_dict()
    moved = {name.split(".")[1] for name in before if not before[name].equal(after[name])}
    assert moved == {"x_embedder", "final_layer"}
    with pytest.raises(ValueError, match=r"ldm_module\.freeze must hold beginnings .* got 'blocks'"):
        started(finetune_config(tmp_path, base, freeze=["blocks"]), data_for())


def test_conditions_of_the_base_are_kept_with_their_statistics(
    conditional_base: Path, tmp_path: Path
) -> None:
    options = ConditionModuleOptions(drop_probability=0.5)
    config = finetune_config(tmp_path, conditional_base, condition_module=options)
    result = train_ldm(config, datamodule=data_for(CONDITIONS))
    network, settings, _ = load_ldm(result.last_path)
    original = load_ldm(conditional_base)[0]
    assert network.condition_module is not None
    assert original.condition_module is not None
    assert network.condition_module.statistics == original.condition_module.statistics
    assert settings.condition_module is not None
    assert settings.condition_module.conditions[0].drop_probability == 0.5


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["composition"], {}, r"must be \[volume_per_atom, composition\], the conditions of the base"),
        ([*CONDITIONS, "num_atoms"], {}, r"got \[volume_per_atom, composition, num_atoms\]"),
        (
            CONDITIONS,
            {"volume_per_atom": ConditionOptions(unit="nm^3")},
            r"condition volume_per_atom must mean",
        ),
        (None, None, r"must be \[volume_per_atom, composition\].*got \[\]"),
    ],
)
def test_other_conditions_than_those_of_the_base_are_refused(
    names: list[str] | None,
    options: dict[str, ConditionOptions] | None,
    message: str,
    conditional_base: Path,
    tmp_path: Path,
) -> None:
    module = None if options is None else ConditionModuleOptions(conditions=options)
    config = finetune_config(tmp_path, conditional_base, condition_module=module)
    with pytest.raises(ValueError, match=message):
        train_ldm(config, datamodule=data_for(names))


def test_another_vae_than_that_of_the_base_is_refused(
    base: Path, vae_checkpoint: Path, tmp_path: Path
) -> None:
    other = tiny_config(tmp_path / "vae", seed=1, trainer__max_epochs=1)
    other.vae_module.augmentation = AugmentationConfig(rotate=False)
    path = train_vae(other, datamodule=tiny_datamodule()).last_path
    with pytest.raises(
        ValueError, match=r"vae_ckpt_path must be the VAE that .* was trained on, got another"
    ):
        started(finetune_config(tmp_path, base, vae_ckpt_path=str(path)), data_for())
    started(finetune_config(tmp_path, base, vae_ckpt_path=str(vae_checkpoint)), data_for())


def test_lora_and_freeze_need_a_base(vae_checkpoint: Path, tmp_path: Path) -> None:
    module = tiny_ldm_config(tmp_path, vae_checkpoint).ldm_module
    with pytest.raises(ValueError, match="ldm_ckpt_path must name the base to fine-tune where lora is given"):
        replace(module, lora=LORA)
    with pytest.raises(ValueError, match="where freeze is given"):
        replace(module, freeze=["denoiser"])
