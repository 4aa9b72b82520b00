"""Our configs from Chemeleon2's: tensor shapes, pickled modules and hyperparameters in, dataclasses out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from latentite.checkpoint import CheckpointError
from latentite.diffusion.schedule import ScheduleKind, Target
from latentite.diffusion.steps import Variance
from latentite.interop.pickled import InertRecord
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import ConditionConfig, ConditionKind, Transform
from latentite.nn.conditions import AbsentPlace, ConditionModuleConfig
from latentite.nn.denoiser import SIZES, DenoiserConfig, DenoiserSize, OutputLayout, TokenIndex
from latentite.nn.encoders import EncoderConfig, EncoderFeatures, EncoderKind
from latentite.nn.predictor_config import HeadKind, Pooling, PredictorConfig
from latentite.nn.transformer import Gelu
from latentite.nn.vae import CoordinateHead, DecoderConfig, VAEConfig
from latentite.objectives.ldm import Compatibility, DiffusionConfig, DiffusionKind, LDMStageConfig

SCHEDULES = {"linear": ScheduleKind.LINEAR, "squaredcos_cap_v2": ScheduleKind.COSINE}
CONDITION_KINDS = {
    "float": ConditionKind.SCALAR,
    "composition": ConditionKind.COMPOSITION,
    "chemical_system": ConditionKind.CHEMICAL_SYSTEM,
}
"""Types of conditions that can be imported; classes are embedded in another way there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Shapes of a file's tensors by name."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, name: str, dimensions: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that must be there.

        Raises:
            CheckpointError: when it is not, or has another number of dimensions.
        """
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{self.path} cannot be imported: it has no tensor {name}")
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"{self.path} cannot be imported: {name} must have {dimensions} dimensions, got {list(shape)}"
            )
        return shape

    def count(self, prefix: str) -> int:
        """Number of numbered modules `prefix.0`, `prefix.1`, ..."""
        numbers = {name[len(prefix) :].split(".")[0] for name in self.shapes if name.startswith(prefix)}
        return len(numbers)


def vae_heads(module: Any) -> int | None:
    """Attention heads of a pickled encoder or decoder; None for one that is not Chemeleon2's transformer."""
    if not isinstance(module, InertRecord) or not module.kind.endswith(
        (".TransformerEncoder", ".TransformerDecoder")
    ):
        return None
    attention = module.submodule("transformer.layers.0.self_attn")
    return None if attention is None else _whole(attention.attributes.get("num_heads"))


def vae_config(shapes: Shapes, prefix: str, encoder_heads: int, decoder_heads: int) -> VAEConfig:
    """Architecture of the VAE whose tensors begin with `prefix`."""

    def size(part: str, heads: int) -> dict[str, Any]:
        width, d_model = shapes.of(f"{prefix}{part}.transformer.layers.0.linear1.weight")
        return {
            "d_model": d_model,
            "num_heads": heads,
            "dim_feedforward": width,
            "num_layers": shapes.count(f"{prefix}{part}.transformer.layers."),
            "gelu": Gelu.EXACT,  # see `chemeleon2.py`
        }

    return VAEConfig(
        encoder=_built(EncoderConfig, size("encoder", encoder_heads), shapes.path),
        decoder=_built(DecoderConfig, size("decoder", decoder_heads), shapes.path),
        latent_dim=shapes.of(f"{prefix}post_quant_conv.weight")[1],
        atom_type_predict=f"{prefix}decoder.atom_types_head.weight" in shapes.shapes,
    )


def denoiser_config(shapes: Shapes, module: Any, diffusion: DiffusionConfig) -> DenoiserConfig:
    """Architecture of the DiT."""
    hidden_size, latent_dim = shapes.of("denoiser.x_embedder.weight")
    depth = shapes.count("denoiser.blocks.")
    attributes = module.attributes if isinstance(module, InertRecord) else {}
    num_heads = _whole(attributes.get("num_heads"))
    sizes = {shape[:2]: shape[2] for shape in SIZES.values()}
    if num_heads is None:
        num_heads = sizes.get((depth, hidden_size))
    if num_heads is None:
        raise CheckpointError(
            f"{shapes.path} does not say how many attention heads its denoiser has (num_heads), and "
            f"{depth} x {hidden_size} is no size of a known model"
        )
    named = [size for size, shape in SIZES.items() if shape == (depth, hidden_size, num_heads)]
    explicit = {} if named else {"depth": depth, "hidden_size": hidden_size, "num_heads": num_heads}
    width = shapes.of("denoiser.blocks.0.mlp.fc1.weight")[0]
    act = module.submodule("blocks.0.mlp.act") if isinstance(module, InertRecord) else None
    is_exact = act is not None and act.attributes.get("approximate") == "none"
    learn_variance = shapes.of("denoiser.final_layer.linear.weight")[0] == 2 * latent_dim
    if learn_variance != diffusion.learn_variance:
        raise CheckpointError(
            f"{shapes.path}: denoiser.final_layer.linear.weight must have "
            f"{(2 if diffusion.learn_variance else 1) * latent_dim} rows for learn_sigma={diffusion.learn_variance}"
        )
    settings = {
        "size": named[0] if named else DenoiserSize.CUSTOM,
        **explicit,
        "mlp_ratio": width / hidden_size,
        "latent_dim": latent_dim,
        "learn_variance": learn_variance,
        "gelu": Gelu.EXACT if is_exact else Gelu.TANH,
    }
    return _built(DenoiserConfig, settings, shapes.path)


def diffusion_config(said: Any, path: Path) -> DiffusionConfig:
    """The diffusion process, from the entry `diffusion_configs`."""
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: diffusion_configs must be a mapping, got {said!r}")
    schedule = said.get("noise_schedule", "linear")
    if schedule not in SCHEDULES:
        raise CheckpointError(f"{path}: noise_schedule must be {' or '.join(SCHEDULES)}, got {schedule!r}")
    steps = _whole(said.get("diffusion_steps", 1000))
    if steps is None:
        raise CheckpointError(
            f"{path}: diffusion_steps must be a number, got {said.get('diffusion_steps')!r}"
        )
    fixed = Variance.FIXED_SMALL if said.get("sigma_small", False) else Variance.FIXED_LARGE
    settings = {
        "schedule": SCHEDULES[schedule],
        "num_steps": steps,
        "target": Target.X0 if said.get("predict_xstart", False) else Target.EPSILON,
        "variance": Variance.LEARNED_RANGE if said.get("learn_sigma", True) else fixed,
        "compatibility": Compatibility.CHEMELEON2,
    }
    return _built(DiffusionConfig, settings, path)


def condition_config(shapes: Shapes, said: Any) -> ConditionModuleConfig | None:
    """The conditions, from the entry `condition_module`; None for an unconditional model."""
    has_tensors = any(name.startswith("condition_module.") for name in shapes.shapes)
    kinds = said.get("condition_type") if isinstance(said, dict) else None
    if not has_tensors:
        return None
    if not isinstance(kinds, dict) or not kinds:
        raise CheckpointError(
            f"{shapes.path} has tensors of a condition_module, but does not say which conditions"
        )
    unknown = [f"{name}: {kind}" for name, kind in kinds.items() if kind not in CONDITION_KINDS]
    if unknown:
        raise CheckpointError(
            f"{shapes.path}: conditions must be of type {', '.join(CONDITION_KINDS)} to be imported, got {unknown[0]}"
        )
    drop = said.get("drop_prob", 0.0)
    settings = {
        # One draw hides all conditions of a crystal there.
        "conditions": [
            ConditionConfig(name=name, kind=CONDITION_KINDS[kind], drop_probability=0.0)
            for name, kind in kinds.items()
        ],
        "hidden_size": shapes.of("condition_module.proj.2.weight")[0],
        "row_drop_probability": float(drop) if isinstance(drop, int | float) else 0.0,
        "absent": AbsentPlace.INPUT,
    }
    return _built(ConditionModuleConfig, settings, shapes.path)


def _built(kind: Any, settings: Mapping[str, Any], path: Path) -> Any:
    """A config, or the sentence of its refusal with the file's name."""
    try:
        return kind(**settings)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be imported: {error}") from error


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(kw_only=True, slots=True)
class Demands:
    """Demands on a network for Chemeleon2 to have it."""

    path: Path
    unmet: list[str] = field(default_factory=list)

    def equal(self, name: str, value: object, wanted: object) -> None:
        """A setting must have this value."""
        if value != wanted:
            self.unmet.append(f"{name} must be {wanted}, got {value}")

    def settle(self) -> None:
        """Raise what is unmet, as one CheckpointError."""
        if self.unmet:
            raise CheckpointError(f"{self.path} cannot be written for Chemeleon2: {'; '.join(self.unmet)}")


def demand_vae(demands: Demands, config: VAEConfig, prefix: str) -> None:
    """Of a VAE; `prefix` is what its settings begin with."""
    demands.equal(f"{prefix}atom_type_predict", config.atom_type_predict, True)
    demands.equal(f"{prefix}encoder.kind", config.encoder.kind, EncoderKind.TRANSFORMER)
    demands.equal(f"{prefix}encoder.features", config.encoder.features, EncoderFeatures.PLAIN)
    demands.equal(f"{prefix}decoder.coordinate_head", config.decoder.coordinate_head, CoordinateHead.LINEAR)
    for part, size in (("encoder", config.encoder), ("decoder", config.decoder)):
        demands.equal(f"{prefix}{part}.index_embedding", size.index_embedding, True)


def demand_ldm(demands: Demands, config: LDMStageConfig, state: Mapping[str, Tensor]) -> None:
    """Of a latent diffusion model besides its VAE."""
    denoiser, diffusion = config.denoiser, config.diffusion
    demands.equal("diffusion.kind", diffusion.kind, DiffusionKind.DDPM)
    demands.equal("denoiser.learn_variance", denoiser.learn_variance, True)
    demands.equal("denoiser.output_layout", denoiser.output_layout, OutputLayout.CHEMELEON2)
    demands.equal("denoiser.index", denoiser.index, TokenIndex.SINUSOIDAL)
    demands.equal("denoiser.qk_norm", denoiser.qk_norm, False)
    demands.equal("denoiser.gelu", denoiser.gelu, Gelu.TANH)
    if diffusion.target is Target.V:
        demands.unmet.append("diffusion.target must be epsilon or x0, got v")
    if bool((state["latent_mean"] != 0).any()):
        demands.unmet.append("latent_mean must be zero, as Chemeleon2 only scales latents")
    if len(state["latent_std"].unique()) != 1:
        demands.unmet.append("latent_std must be one number for all channels")
    for condition in () if config.condition_module is None else config.condition_module.conditions:
        if condition.kind not in CONDITION_KINDS.values():
            demands.unmet.append(f"condition {condition.name} must not be of kind {condition.kind}")
        demands.equal(f"condition {condition.name}: transform", condition.transform, Transform.NONE)
    if config.condition_module is not None:
        demands.equal("condition_module.absent", config.condition_module.absent, AbsentPlace.INPUT)


def demand_predictor(demands: Demands, config: PredictorConfig) -> None:
    """Of a predictor besides its VAE."""
    demands.equal("head", config.head, HeadKind.POINT)
    demands.equal("ensemble", config.ensemble, 1)
    demands.equal("number of fidelities", config.num_fidelities, 1)
    demands.equal("dropout", config.dropout, 0.1)
    demands.equal("composition", config.composition, False)
    demands.equal("standardise", config.standardise, False)
    standard = [config.num_features // 4, config.num_features // 2]
    demands.equal("hidden", config.hidden_widths, standard)
    if config.pooling is Pooling.ATTENTION:
        demands.unmet.append(f"pooling must be mean or sum, got {config.pooling}")
    for name in config.targets:
        demands.equal(f"kind of target {name}", "classes" if name in config.classes else "numbers", "numbers")
        demands.equal(f"transforms.{name}", config.transform(name), Transform.NONE)
        demands.equal(f"extents.{name}", config.extent(name), Extent.NONE)
