"""A checkpoint of ours written with the names, shapes and hyperparameters of Chemeleon2's.

Possible for a VAE, a latent diffusion model or a predictor whose parts that project has; others are refused with the
setting that stands in the way. What the file says of training (loss weights, optimizer) is what an imported
checkpoint brought along, else that project's defaults.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentite.base.files import replacing
from latentite.base.plain import from_plain
from latentite.checkpoint import (
    CheckpointError,
    CheckpointRecord,
    Stage,
    Weights,
    merge_adapters,
    read_checkpoint,
    require_fit,
)
from latentite.diffusion.schedule import ScheduleKind, Target
from latentite.diffusion.steps import Variance
from latentite.interop.architecture import (
    CONDITION_KINDS,
    SCHEDULES,
    Demands,
    demand_ldm,
    demand_predictor,
    demand_vae,
)
from latentite.interop.modules import (
    denoiser_module,
    load_shared,
    save_named,
    training_module,
    vae_modules,
)
from latentite.nn.conditions import ConditionModuleConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.objectives.ldm import DiffusionConfig, LDMStageConfig

LIGHTNING_VERSION = "2.6.6"
"""Of the reference files; Lightning reads it to migrate older ones."""
TRAINING: dict[str, Any] = {
    "loss_weights": {
        "atom_types": 1.0,
        "lengths": 1.0,
        "angles": 10.0,
        "frac_coords": 10.0,
        "kl": 1e-5,
        "fa": 0.0,
    },
    "augmentation": {"translate": True, "rotate": True},
    "noise": {"ratio": 0.0, "corruption_scale": 0.1},
    "optimizer": {"class": "torch.optim.adamw.AdamW", "lr": 1e-4, "weight_decay": 0.0},
    "scheduler": {"class": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0},
}
"""Chemeleon2's defaults, for what a checkpoint of ours does not say in its words."""


PREDICTING: dict[str, Any] = {"optimizer": {**TRAINING["optimizer"], "lr": 1e-3}}
"""Differences for its predictors."""


def export_chemeleon2(
    path: str | Path,
    out: str | Path,
    *,
    weights: Weights | str | None = None,
    vae_ckpt_path: str | None = None,
) -> Path:
    """Write a checkpoint of ours as Chemeleon2 would.

    Args:
        path: a checkpoint of ours.
        out: the `.ckpt` to write.
        weights: which weights; None for those that readers get by default.
        vae_ckpt_path: where Chemeleon2 will find the VAE's own checkpoint, for a latent diffusion model; None for
            what an imported checkpoint said.

    Returns:
        `out`.

    Raises:
        CheckpointError: when the file cannot be read, or Chemeleon2 has no such network; the message names the
            setting.
    """
    record = merge_adapters(read_checkpoint(path, weights=weights))
    said = record.data.others.get("hyper_parameters")
    training = {**TRAINING, **(said if isinstance(said, dict) else {})}
    if record.stage is Stage.VAE:
        state, hyper = _vae(record, training)
    elif record.stage in (Stage.LDM, Stage.RL):
        state, hyper = _ldm(record, training, vae_ckpt_path)
    else:
        state, hyper = _predictor(record, training if isinstance(said, dict) else {**training, **PREDICTING})
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper,
    }
    with replacing(out) as temporary:
        save_named(content, temporary)
    return Path(out)


def _vae(record: CheckpointRecord, training: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = from_plain(VAEConfig, record.config)
    demands = Demands(path=record.path)
    demand_vae(demands, config, "")
    demands.settle()
    with torch.device("meta"):
        require_fit(record.state, CrystalVAE(config), record.path)
    modules = vae_modules(config)
    names = load_shared(modules, record.state)
    return OrderedDict((name, record.state[name]) for name in names), _vae_hyper(config, modules, training)


def _vae_hyper(
    config: VAEConfig, modules: Mapping[str, torch.nn.Module], training: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "encoder": modules["encoder"],
        "decoder": modules["decoder"],
        "latent_dim": config.latent_dim,
        "loss_weights": _mapping(training["loss_weights"]),
        "augmentation": _mapping(training["augmentation"]),
        "noise": _mapping(training["noise"]),
        "atom_type_predict": True,
        "structure_matcher": _structure_matcher(),
        **_optimisation(training),
    }


def _predictor(
    record: CheckpointRecord, training: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = from_plain(PredictorConfig, record.config)
    with torch.device("meta"):
        require_fit(record.state, PropertyPredictor(config), record.path)
    demands = Demands(path=record.path)
    demand_vae(demands, config.vae, "vae.")
    demand_predictor(demands, config)
    demands.settle()
    modules = vae_modules(config.vae)
    names = load_shared(modules, record.state, "vae.")
    names += [name for name in record.state if name.startswith("proj.")]
    mean, std = record.state["mean"].tolist(), record.state["std"].tolist()
    pairs = zip(config.targets, mean, std, strict=True)
    hyper = {
        "vae": training_module(modules, _vae_hyper(config.vae, modules, TRAINING), _structure_matcher()),
        "target_conditions": _mapping({name: {"mean": m, "std": s} for name, m, s in pairs}),
        "reduce": config.pooling.value,
        "use_encoder_features": config.use_encoder_features,
        **_optimisation(training),
    }
    return OrderedDict((name, record.state[name]) for name in names), hyper


def _ldm(
    record: CheckpointRecord, training: Mapping[str, Any], vae_ckpt_path: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config = from_plain(LDMStageConfig, record.config)
    with torch.device("meta"):
        require_fit(record.state, LatentDiffusion(config), record.path)
    demands = Demands(path=record.path)
    demand_vae(demands, config.vae, "vae.")
    demand_ldm(demands, config, record.state)
    demands.settle()
    path = vae_ckpt_path or training.get("vae_ckpt_path")
    if not path:
        raise CheckpointError(
            f"{record.path}: vae_ckpt_path must be given, the path at which Chemeleon2 will find the VAE's checkpoint"
        )
    denoiser = denoiser_module(config.denoiser)
    names = load_shared({"denoiser": denoiser}, record.state)
    names += load_shared(vae_modules(config.vae), record.state, "vae.")
    conditions = None
    if config.condition_module is not None:
        # Ours has the same tensors, and besides the statistics that stand in the hyperparameters there.
        own = [name for name in record.state if name.startswith("condition_module.")]
        names += [name for name in own if name.rpartition(".")[-1] not in ("mean", "std")]
        conditions = _condition_entries(config.condition_module, record.state)
    hyper = {
        "normalize_latent": True,
        "denoiser": denoiser,
        "augmentation": _mapping(training["augmentation"]),
        "diffusion_configs": _mapping(_diffusion_entries(config.diffusion)),
        **_optimisation(training),
        "condition_module": conditions,
        "vae_ckpt_path": path,
        "lora_configs": None,
    }
    std = {"latent_std": record.state["latent_std"][0].clone()}
    return OrderedDict([*std.items(), *((name, record.state[name]) for name in names)]), hyper


def _condition_entries(config: ConditionModuleConfig, state: Mapping[str, Tensor]) -> Any:
    types = {kind: name for name, kind in CONDITION_KINDS.items()}
    stats = {
        c.name: {key: float(state[f"condition_module.encoders.{c.name}.{key}"]) for key in ("mean", "std")}
        for c in config.conditions
        if f"condition_module.encoders.{c.name}.mean" in state
    }
    return _mapping(
        {
            "condition_type": {c.name: types[c.kind] for c in config.conditions},
            "stats": stats,
            "hidden_dim": config.hidden_size,
            "drop_prob": config.row_drop_probability,
        }
    )


def _diffusion_entries(config: DiffusionConfig) -> dict[str, Any]:
    names = {kind: name for name, kind in SCHEDULES.items()}
    named = {} if config.schedule is ScheduleKind.LINEAR else {"noise_schedule": names[config.schedule]}
    return {
        "timestep_respacing": "",
        **named,
        "predict_xstart": config.target is Target.X0,
        "rescale_learned_sigmas": True,
        "learn_sigma": config.variance is Variance.LEARNED_RANGE,
        "diffusion_steps": config.num_steps,
    }


def _optimisation(training: Mapping[str, Any]) -> dict[str, Any]:
    factories: dict[str, Callable[..., Any]] = {
        "optimizer": torch.optim.AdamW,
        "scheduler": torch.optim.lr_scheduler.ConstantLR,
    }
    settings = {}
    for name, factory in factories.items():
        said = training[name]
        is_same = isinstance(said, dict) and str(said.get("class", "")).endswith(f".{factory.__name__}")
        keywords = dict(said if is_same else TRAINING[name])
        del keywords["class"]
        settings[name] = partial(factory, **keywords)
    return settings


def _mapping(values: Mapping[str, Any]) -> Any:
    from omegaconf import DictConfig

    return DictConfig(dict(values), flags={"allow_objects": True})


def _structure_matcher() -> Any:
    from pymatgen.core.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
