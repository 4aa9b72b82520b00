"""The network that a predictor's run starts from: new on a VAE's encoder, or a trained predictor.

A trained one brings its VAE, targets, statistics and heads; fidelities may be added, which begin at the values of the
reference.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from latentite.base.plain import naming
from latentite.data.fidelities import material_key
from latentite.data.labels import require_numbers
from latentite.models import load_predictor, load_vae
from latentite.nn.baseline_fit import fit_baselines
from latentite.nn.lora import trainable_summary
from latentite.nn.predictor import FidelityHeads, PropertyPredictor
from latentite.nn.predictor_config import FidelityMode, PredictorConfig
from latentite.nn.vae import CrystalVAE
from latentite.objectives.predictor import labels_of
from latentite.predictor.module import PredictorTrainingModule, choose_trained
from latentite.predictor.rows import encode_inputs
from latentite.predictor.settings import PredictorModuleConfig
from latentite.training.conditions import UNITS
from latentite.training.datamodule import CrystalDataModule

log = logging.getLogger(__name__)

FEATURE_SAMPLE = 1024
"""Training crystals whose pooled features say what `standardise` needs to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorPlan:
    """The parts from which a run builds its network."""

    settings: PredictorConfig
    """From which a checkpoint of the run can build it again."""
    vae: CrystalVAE | None
    """The trained VAE of a new network; None where a trained predictor has it."""
    base: PropertyPredictor | None
    """The predictor that is trained further."""


def wanted_targets(config: PredictorModuleConfig) -> list[str]:
    """Names of the targets: as configured, else those of the predictor that is trained further."""
    if config.target_conditions or config.predictor_ckpt_path is None:
        return list(config.target_conditions)
    return load_predictor(config.predictor_ckpt_path).settings.targets


def plan_predictor(config: PredictorModuleConfig, data: CrystalDataModule) -> PredictorPlan:
    """Read what the network is made from.

    Raises:
        ValueError: when a checkpoint cannot be used, or VAE, predictor, targets and data do not fit together.
    """
    train = data.splits["train"]
    fidelities, reference = run_fidelities(data)
    if config.predictor_ckpt_path is not None:
        with naming("predictor_module.predictor_ckpt_path"):
            base = load_predictor(config.predictor_ckpt_path).network
        settings = _continued(config, base.config, data, fidelities)
        return PredictorPlan(settings=settings, vae=None, base=base)
    assert config.vae_ckpt_path is not None
    with naming("predictor_module.vae_ckpt_path"):
        vae = load_vae(config.vae_ckpt_path)
    labels_of(PredictorConfig(targets=config.target_conditions), train.crystals.properties)
    for name in config.target_conditions:
        if name in UNITS:
            require_numbers(train, name, use="a predictor")
    settings = config.architecture(
        vae.settings,
        classes={n: list(train.categories[n]) for n in config.target_conditions if n in train.categories},
        units=UNITS,
        fidelities=fidelities,
        reference=reference,
    )
    return PredictorPlan(settings=settings, vae=vae.network, base=None)


def build_predictor_module(
    config: PredictorModuleConfig, plan: PredictorPlan, data: CrystalDataModule, *, seed: int
) -> PredictorTrainingModule:
    """The training module with its network; what is new in that is drawn from torch's own generator."""
    network = PropertyPredictor(plan.settings)
    train = data.splits["train"].crystals
    if plan.base is None:
        assert plan.vae is not None
        network.vae.load_state_dict(plan.vae.state_dict())
        fit_baselines_of(network, data)
        fidelity = network.fidelity_of(train)
        network.fit_statistics(
            labels_of(plan.settings, train.properties),
            network.baseline(train, fidelity),
            fidelity == plan.settings.reference_index,
        )
        if plan.settings.standardise:
            sample = encode_inputs(network.eval(), train.select(_evenly(len(train), FEATURE_SAMPLE)))
            network.fit_feature_statistics(network.pooled(sample.inputs))
            network.train()
    else:
        start_from(plan.base, network, data)
    _check_baselines(network, data)
    choose_trained(network, config)
    log.info("predictor of %s: %s", ", ".join(plan.settings.targets), trainable_summary(network))
    return PredictorTrainingModule(config, network, seed=seed)


def _evenly(count: int, wanted: int) -> Int[Tensor, " chosen"]:
    """At most `wanted` positions, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64).round().long()


def run_fidelities(data: CrystalDataModule) -> tuple[list[str], str | None]:
    """Names of the fidelities of the data in the order of their codes, and the reference; none for plain data."""
    return list(data.config.fidelities), data.config.reference


def fit_baselines_of(network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Fit the baselines per element to the training split, where a target has any."""
    if network.baselines is None:
        return
    config, table = network.config, network.baselines
    fitted, report = fit_baselines(
        data.splits["train"].crystals,
        targets=table.targets,
        extents=table.extents,
        fidelities=table.fidelities,
        reference=table.fidelities[config.reference_index],
        materials=[material_key(identifier) for identifier in data.splits["train"].ids],
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


def _check_baselines(network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Refuse now what validation or test would refuse after an epoch.

    Raises:
        ValueError: naming the split, and every element in it that has no baseline.
    """
    for split, dataset in data.splits.items():
        crystals = dataset.crystals
        if network.baselines is None or not len(crystals):
            continue
        if missing := network.baselines.missing(crystals, network.fidelity_of(crystals)):
            raise ValueError(f"{split}: {'; '.join(missing)}")


def start_from(base: PropertyPredictor, network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Load a trained predictor into a network that may have more fidelities; those begin at its reference's values.

    Args:
        base: the trained predictor.
        network: with the base's settings but for the fidelities.
        data: to whose training split the baselines of new fidelities are fitted.
    """
    state = base.state_dict()
    shared = {
        name: value for name, value in state.items() if not name.startswith(("fidelity_heads.", "baselines."))
    }
    loaded = network.load_state_dict(shared, strict=False)
    assert not loaded.unexpected_keys, "a network that goes on has all that its base has"
    if network.fidelity_heads is not None:
        _start_fidelities(base, network, network.fidelity_heads)
    if network.baselines is not None:
        _start_baselines(base, network, data)


def _start_fidelities(base: PropertyPredictor, network: PropertyPredictor, heads: FidelityHeads) -> None:
    """Heads of known fidelities as in the base, those of new ones so that they say what the reference says.

    Residual heads do so by themselves: their last layer is zero.
    """
    known = base.config.fidelities
    for position, name in enumerate(network.config.fidelities):
        source = known.index(name) if name in known else None
        if heads.embedding is not None and base.fidelity_heads is not None:
            assert base.fidelity_heads.embedding is not None
            row = base.config.reference_index if source is None else source
            heads.embedding.weight.data[position] = base.fidelity_heads.embedding.weight.data[row]
        for member, trunk in enumerate((network.proj, *network.ensemble)):
            if heads.embedding is not None or position == heads.reference:
                continue
            own = heads.head(member, position)
            if source is not None and base.fidelity_heads is not None:
                own.load_state_dict(base.fidelity_heads.head(member, source).state_dict())
            elif heads.mode is FidelityMode.INDEPENDENT:
                assert isinstance(trunk, nn.Sequential)
                own.load_state_dict(trunk[-1].state_dict())


def _start_baselines(base: PropertyPredictor, network: PropertyPredictor, data: CrystalDataModule) -> None:
    """Baselines of known fidelities as in the base; of new ones its reference's and the fitted change.

    The heads were trained on top of the base's own baselines, so only the difference of two fitted ones is taken.
    """
    assert base.baselines is not None
    assert network.baselines is not None
    old, new = base.config, network.config
    added = [name for name in new.fidelities if name not in old.fidelities]
    if not old.fidelities:  # its one fidelity is the reference
        added = [name for name in added if name != new.fidelities[new.reference_index]]
    table, reference = network.baselines.values, base.baselines.values[old.reference_index]
    if added and new.fidelities[new.reference_index] in data.config.fidelities:
        fit_baselines_of(network, data)
    fitted = table.clone()
    for position, name in enumerate(new.fidelities or [""]):
        if name not in added:
            row = old.fidelities.index(name) if name in old.fidelities else old.reference_index
            table[position] = base.baselines.values[row]
            continue
        change = (fitted[position] - fitted[new.reference_index]).nan_to_num(0.0)
        table[position] = torch.where(reference.isnan(), fitted[position], reference + change)


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
        classes = list(train.categories.get(name, ()))
        if classes != base.classes.get(name, []):
            raise ValueError(
                f"{name} must have the classes of predictor_ckpt_path, {base.classes.get(name, [])}, got {classes}"
            )
    others = [name for name in base.fidelities if name not in fidelities]
    reference = base.reference or next(iter(base.fidelities), None) or data.config.reference
    return replace(
        base,
        dropout=config.dropout,
        fidelities=[*fidelities, *others],
        reference=reference,
        fidelity_mode=base.fidelity_mode if base.num_fidelities > 1 else config.fidelity_mode,
    )
