"""The network that a predictor's run starts from: new on a VAE's encoder, or a trained predictor.

A trained one brings its VAE, targets, statistics and heads; fidelities may be added, which begin at the values of
the reference. Comes after `predictor.py`; `stages.py` calls `plan_predictor` and, when the run is seeded,
`build_predictor_module`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from latentite import hub
from latentite.checkpoint import CheckpointRecord, Stage, load_network_state, read_checkpoint
from latentite.nn.adapters import trainable_summary
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.nn.vae import VAEConfig
from latentite.objectives.predictor import labels_of
from latentite.plain import from_plain
from latentite.predictor_checkpoint import load_predictor
from latentite.training.conditions import UNITS
from latentite.training.datamodule import CrystalDataModule
from latentite.training.predictor import PredictorModuleConfig, PredictorTrainingModule, choose_trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorPlan:
    """What a run needs to build its network."""

    settings: PredictorConfig
    """From which a checkpoint of the run can build it again."""
    vae: CheckpointRecord | None
    """The trained VAE of a new network; None where a trained predictor has it."""
    base: PropertyPredictor | None
    """What is trained further."""


def wanted_targets(config: PredictorModuleConfig) -> list[str]:
    """Names of the targets: as configured, else those of the predictor that is trained further."""
    if config.target_conditions or config.predictor_ckpt_path is None:
        return list(config.target_conditions)
    record = read_checkpoint(hub.resolve(config.predictor_ckpt_path), stage=Stage.PREDICTOR)
    return from_plain(PredictorConfig, record.config).targets


def plan_predictor(config: PredictorModuleConfig, data: CrystalDataModule) -> PredictorPlan:
    """Read what the network is made from.

    Raises:
        ValueError: when a checkpoint cannot be used, or VAE, predictor, targets and data do not fit together.
    """
    train = data.splits["train"]
    fidelities, reference = run_fidelities(data)
    if config.predictor_ckpt_path is not None:
        base, _ = load_predictor(config.predictor_ckpt_path)
        settings = _continued(config, base.config, data, fidelities)
        return PredictorPlan(settings=settings, vae=None, base=base)
    assert config.vae_ckpt_path is not None
    record = read_checkpoint(hub.resolve(config.vae_ckpt_path), stage=Stage.VAE)
    labels_of(PredictorConfig(targets=config.target_conditions), train.crystals.properties)
    settings = config.architecture(
        from_plain(VAEConfig, record.config),
        classes={n: list(train.categories[n]) for n in config.target_conditions if n in train.categories},
        units=UNITS,
        fidelities=fidelities,
        reference=reference,
    )
    return PredictorPlan(settings=settings, vae=record, base=None)


def build_predictor_module(
    config: PredictorModuleConfig, plan: PredictorPlan, data: CrystalDataModule, *, seed: int
) -> PredictorTrainingModule:
    """The training module with its network; what is new in that is drawn from torch's own generator."""
    network = PropertyPredictor(plan.settings)
    train = data.splits["train"].crystals
    if plan.base is None:
        assert plan.vae is not None
        load_network_state(plan.vae, network.vae)
        fit_baselines_of(network, data)
        fidelity = network.fidelity_of(train)
        network.fit_statistics(
            labels_of(plan.settings, train.properties),
            network.baseline(train, fidelity),
            fidelity == plan.settings.reference_index,
        )
    else:
        start_from(plan.base, network, data)
    choose_trained(network, config)
    log.info("predictor of %s: %s", ", ".join(plan.settings.targets), trainable_summary(network))
    return PredictorTrainingModule(config, network, seed=seed)


def run_fidelities(data: CrystalDataModule) -> tuple[list[str], str | None]:
    """Names of the fidelities of the data in the order of their codes, and the reference; none for plain data."""
    return list(data.config.fidelities), data.config.reference


def fit_baselines_of(network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Fit the baselines per element to the training split, where a target has any."""
    from latentite.nn.baseline_fit import fit_baselines

    if network.baselines is None:
        return
    config, table = network.config, network.baselines
    fitted, report = fit_baselines(
        data.splits["train"].crystals,
        targets=table.targets,
        extents=table.extents,
        fidelities=table.fidelities,
        reference=table.fidelities[config.reference_index],
    )
    table.load_state_dict(fitted.state_dict())
    for fit in report:
        log.info(
            "baseline of %s%s: %d elements, mean absolute residual %.4g of a spread of %.4g per atom",
            fit.target,
            f" at {fit.fidelity}" if config.fidelities else "",
            len(fit.fitted),
            fit.residual_mae,
            fit.label_std,
        )


def start_from(base: PropertyPredictor, network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Load a trained predictor into a network that may have more fidelities, which begin at its reference's values."""
    old, new = base.config, network.config
    renamed = _renamed_state(base, network)
    found = network.load_state_dict(renamed, strict=False)
    assert not found.unexpected_keys, "a network that goes on has all that its base has"
    if added := [name for name in new.fidelities if name not in old.fidelities][bool(not old.fidelities) :]:
        log.info("new fidelities: %s", ", ".join(added))
        _add_baselines(base, network, data)


def _renamed_state(base: PropertyPredictor, network: PropertyPredictor) -> dict[str, torch.Tensor]:
    """The base's tensors by the network's names: fidelities stand at other positions there."""
    return {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("baselines.")}


def _add_baselines(base: PropertyPredictor, network: PropertyPredictor, data: CrystalDataModule) -> None:
    raise NotImplementedError


def _continued(
    config: PredictorModuleConfig, base: PredictorConfig, data: CrystalDataModule, fidelities: list[str]
) -> PredictorConfig:
    """The base's settings with the fidelities of the data.

    Raises:
        ValueError: when targets or classes are others than the base's.
    """
    if config.target_conditions and config.target_conditions != base.targets:
        raise ValueError(
            f"predictor_module.target_conditions must be [{', '.join(base.targets)}], the targets of "
            f"predictor_ckpt_path, got [{', '.join(config.target_conditions)}]; leave it out to take them over"
        )
    train = data.splits["train"]
    labels_of(base, train.crystals.properties)
    for name in base.targets:
        found = list(train.categories.get(name, ()))
        if found != base.classes.get(name, []):
            raise ValueError(
                f"{name} must have the classes of predictor_ckpt_path, {base.classes.get(name, [])}, got {found}"
            )
    return replace(base, dropout=config.dropout)
