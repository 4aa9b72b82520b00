"""Chemeleon2's checkpoints as ours: stage, config, tensors and EMA, from a file that is read, never executed.

What a network looks like is derived from the shapes of its tensors and from what the pickled modules say of
themselves; nothing is guessed, and a tensor too many or too few is an error that names it. Names of tensors are
ours already, but for `latent_std`, which is one number there and one per channel here. Two quirks matter for
equal results: the layout of the denoiser's output, with the spacing of DDIM (`Compatibility.CHEMELEON2`), and the
VAE's GELU, which was trained in its tanh form but is exact wherever torch's fast path for inference runs, hence
in all latents that the public models were trained and sampled with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentite.checkpoint import (
    LATENT_DIFFUSION,
    NETWORK_PREFIX,
    PAYLOAD_KEY,
    CheckpointError,
    Stage,
    Weights,
    build_payload,
    require_fit,
)
from latentite.interop import CONVERSION
from latentite.interop.architecture import (
    Shapes,
    condition_config,
    denoiser_config,
    diffusion_config,
    vae_config,
    vae_heads,
)
from latentite.interop.pickled import (
    DamagedPickleError,
    InertRecord,
    PickledFile,
    StoredTensor,
    UnsafePickleError,
    names_in,
    plain_value,
    read_pickled,
)
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import Pooling, PredictorConfig
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.objectives.ldm import LDMStageConfig

PACKAGE = ("src.vae_module.", "src.ldm_module.", "src.rl_module.", "src.predictor_module.")
"""Beginning of the names of the project's classes."""
PUBLIC_WIDTH, PUBLIC_HEADS = 512, 8
"""Of the VAE of all public checkpoints; those of later stages carry its tensors, but not its number of heads."""

FindVAE = Callable[[], Path | None]
"""Called where the VAE's own file is needed; None when it cannot be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A foreign checkpoint in our terms."""

    stage: Stage
    config: VAEConfig | LDMStageConfig | PredictorConfig
    state: dict[str, Tensor]
    """Raw weights, by our names."""
    ema: dict[str, Tensor] | None
    """Averaged weights that differ from the raw ones; None where the file has no EMA."""
    hyper_parameters: dict[str, Any]
    """The file's hyperparameters, as plain values."""


def is_chemeleon2(path: str | Path) -> bool:
    """True if a file's pickle names classes of that project; a look at its bytes, nothing is loaded."""
    return any(name.startswith(PACKAGE) for name in names_in(path))


def import_checkpoint(path: str | Path, *, find_vae: FindVAE = lambda: None) -> Imported:
    """Read a Chemeleon2 checkpoint.

    Args:
        path: the `.ckpt`.
        find_vae: where the checkpoint of the VAE is, for a file of a later stage that does not say enough of it
            and has not the VAE's file beside it.

    Raises:
        CheckpointError: when it asks to run code, is damaged, or is no model that can be represented here.
    """
    path = Path(path)
    file = read_content(path)
    tensors = stored_tensors(file)
    hyper = file.content.get("hyper_parameters")
    if not isinstance(hyper, dict):
        raise CheckpointError(f"{path} is no Chemeleon2 checkpoint: it has no hyper_parameters")
    shapes = Shapes(path=path, shapes={name: stored.shape for name, stored in tensors.items()})
    stage = _stage(path, tensors)
    statistics: dict[str, Tensor] = {}
    config: VAEConfig | LDMStageConfig | PredictorConfig
    if stage is Stage.LDM:
        config = _ldm_config(file, shapes, hyper, find_vae)
        statistics = ldm_statistics(file, tensors, plain_value(hyper.get("condition_module")), config)
        tensors = {name: stored for name, stored in tensors.items() if name != "latent_std"}
    elif stage is Stage.PREDICTOR:
        config = _predictor_config(file, shapes, hyper, find_vae)
        statistics = target_statistics(path, plain_value(hyper.get("target_conditions")), config)
    else:
        config = vae_config(shapes, "", *_heads_of(hyper.get("encoder"), hyper.get("decoder"), path))
    hollow = {name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()}
    require_fit(hollow | statistics, _skeleton(config), path)  # before hundreds of megabytes are read
    state = {name: load_tensor(file, stored) for name, stored in tensors.items()} | statistics
    return Imported(
        stage=stage,
        config=config,
        state=state,
        ema=ema_weights(file, state, list(tensors)),
        hyper_parameters=plain_value(hyper),
    )


def _stage(path: Path, tensors: Mapping[str, StoredTensor]) -> Stage:
    """Whose tensors these are: files of later stages carry those of the VAE as well."""
    marks = {
        "denoiser.x_embedder.weight": Stage.LDM,
        "proj.0.weight": Stage.PREDICTOR,
        "quant_conv.weight": Stage.VAE,
    }
    for name, stage in marks.items():
        if name in tensors:
            return stage
    raise CheckpointError(
        f"{path} has tensors of no stage of Chemeleon2, first {next(iter(tensors), 'none')}"
    )


def _skeleton(config: VAEConfig | LDMStageConfig | PredictorConfig) -> torch.nn.Module:
    """The network without memory, for the names and shapes of its tensors."""
    with torch.device("meta"):
        if isinstance(config, LDMStageConfig):
            return LatentDiffusion(config)
        return PropertyPredictor(config) if isinstance(config, PredictorConfig) else CrystalVAE(config)


def _ldm_config(
    file: PickledFile, shapes: Shapes, hyper: Mapping[str, Any], find_vae: FindVAE
) -> LDMStageConfig:
    diffusion = diffusion_config(plain_value(hyper.get("diffusion_configs")), file.path)
    return LDMStageConfig(
        vae=vae_config(shapes, "vae.", *_carried_heads(file, shapes, hyper, find_vae)),
        denoiser=denoiser_config(shapes, hyper.get("denoiser"), diffusion),
        condition_module=condition_config(shapes, plain_value(hyper.get("condition_module"))),
        diffusion=diffusion,
    )


def _predictor_config(
    file: PickledFile, shapes: Shapes, hyper: Mapping[str, Any], find_vae: FindVAE
) -> PredictorConfig:
    vae = hyper.get("vae")
    if isinstance(vae, InertRecord):
        heads = _heads_of(vae.submodule("encoder"), vae.submodule("decoder"), file.path)
    else:
        heads = _carried_heads(file, shapes, hyper, find_vae)
    targets = plain_value(hyper.get("target_conditions"))
    reduce = plain_value(hyper.get("reduce", "mean"))
    known = (Pooling.MEAN, Pooling.SUM)
    if reduce not in known:
        raise CheckpointError(f"{file.path}: reduce must be {' or '.join(known)}, got {reduce!r}")
    return PredictorConfig(
        vae=vae_config(shapes, "vae.", *heads),
        targets=list(targets) if isinstance(targets, dict) else [],
        pooling=Pooling(reduce),
        use_encoder_features=bool(hyper.get("use_encoder_features", False)),
    )


def _heads_of(encoder: Any, decoder: Any, path: Path) -> tuple[int, int]:
    heads = vae_heads(encoder), vae_heads(decoder)
    if heads[0] is None or heads[1] is None:
        raise CheckpointError(
            f"{path}: its encoder and decoder must be Chemeleon2's transformers, got "
            f"{plain_value(encoder)} and {plain_value(decoder)}; others cannot be imported"
        )
    return heads[0], heads[1]


def _carried_heads(
    file: PickledFile, shapes: Shapes, hyper: Mapping[str, Any], find_vae: FindVAE
) -> tuple[int, int]:
    """Attention heads of a VAE of which only the tensors are in the file: as its own file says."""
    named = plain_value(hyper.get("vae_ckpt_path"))
    beside = None if not isinstance(named, str) else file.path.parent / Path(named).name
    vae = beside if beside is not None and beside.is_file() and beside != file.path else None
    if vae is None:
        if shapes.of("vae.encoder.atom_type_embedder.weight")[-1] == PUBLIC_WIDTH:
            return PUBLIC_HEADS, PUBLIC_HEADS
        vae = find_vae()
    if vae is None:
        raise CheckpointError(
            f"{file.path} does not say how many attention heads its VAE has; put the VAE's checkpoint "
            f"({named or 'vae_ckpt_path'}) beside it"
        )
    other = read_content(vae)
    own = {
        name.removeprefix("vae."): t for name, t in stored_tensors(file).items() if name.startswith("vae.")
    }
    theirs = stored_tensors(other)
    if own.keys() != theirs.keys() or not all(
        load_tensor(file, own[name]).equal(load_tensor(other, theirs[name])) for name in own
    ):
        raise CheckpointError(f"{vae} must be the VAE of {file.path}, but its weights are others")
    said = other.content.get("hyper_parameters", {})
    return _heads_of(said.get("encoder"), said.get("decoder"), vae)


MP_20_NUM_ATOMS = (
    *(0.0, 0.0022, 0.0211, 0.0198, 0.1527, 0.0471, 0.0846, 0.0211, 0.0781, 0.0343, 0.0973),
    *(0.0133, 0.0967, 0.0216, 0.0652, 0.0144, 0.0670, 0.0097, 0.0532, 0.0106, 0.0900),
)
"""Fraction of MP-20's crystals with 0, 1, ..., 20 atoms: what the public models are sampled with."""


def convert(
    path: Path,
    out: Path,
    *,
    sha256: str,
    num_atoms: Sequence[float] | None = None,
    find_vae: FindVAE = lambda: None,
) -> dict[str, Any]:
    """Write `out` from a Chemeleon2 checkpoint; the same file gives the same bytes.

    Args:
        path: the Chemeleon2 checkpoint.
        out: where ours is written.
        sha256: of `path`, for the record.
        num_atoms: fraction of crystals of 0, 1, 2, ... atoms in the training set, where it is known.
        find_vae: see `import_checkpoint`.

    Returns:
        The card: what was made of what.

    Raises:
        CheckpointError: when the file cannot be imported.
    """
    imported = import_checkpoint(path, find_vae=find_vae)
    source = {"format": "chemeleon2", "file": path.name, "sha256": sha256}
    data: dict[str, Any] = {"source": source, "hyper_parameters": imported.hyper_parameters}
    if num_atoms is not None:
        data["splits"] = {"train": {"num_atoms_histogram": list(num_atoms)}}
    payload = build_payload(
        stage=imported.stage,
        config=imported.config,
        data=data,
        metrics={},
        ema=imported.ema,
        default_weights=Weights.RAW,
        generator=LATENT_DIFFUSION if imported.stage is Stage.LDM else None,
    )
    state = {NETWORK_PREFIX + name: tensor for name, tensor in imported.state.items()}
    with out.open("wb") as file:  # by path, torch writes the file's name into the file
        torch.save({"state_dict": state, PAYLOAD_KEY: payload}, file)
    return {
        "source": source,
        "conversion": CONVERSION,
        "stage": imported.stage.value,
        "weights": [Weights.RAW.value] + ([Weights.EMA.value] if imported.ema else []),
        "default_weights": Weights.RAW.value,
        "num_tensors": len(state),
        "num_values": sum(tensor.numel() for tensor in state.values()),
        "config": payload["config"],
        "hyper_parameters": imported.hyper_parameters,
    }


def read_content(path: Path) -> PickledFile:
    """A file with a state_dict.

    Raises:
        CheckpointError: when it asks to run code, is damaged, or is no checkpoint.
    """
    try:
        file = read_pickled(path)
    except (UnsafePickleError, DamagedPickleError) as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(file.content, dict) or not isinstance(file.content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is no Chemeleon2 checkpoint: it has no state_dict")
    return file


def stored_tensors(file: PickledFile) -> dict[str, StoredTensor]:
    """The tensors of its state_dict, in order, not yet read."""
    tensors = {}
    for name, stored in file.content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(stored, StoredTensor):
            raise CheckpointError(
                f"{file.path}: its state_dict must hold tensors by name, but {name!r} is none"
            )
        if "lora_" in name:
            raise CheckpointError(
                f"{file.path} has LoRA adapters ({name}); merge them in Chemeleon2 and save again, then import"
            )
        tensors[name] = stored
    return tensors


def load_tensor(file: PickledFile, stored: StoredTensor) -> Tensor:
    """One tensor's numbers."""
    try:
        return file.tensor(stored)
    except DamagedPickleError as error:
        raise CheckpointError(str(error)) from error


def ldm_statistics(
    file: PickledFile, tensors: Mapping[str, StoredTensor], conditions: Any, config: LDMStageConfig
) -> dict[str, Tensor]:
    """Our statistics: of the latents, where theirs have no mean, and of numeric conditions."""
    channels = config.vae.latent_dim
    std = torch.ones(())
    if "latent_std" in tensors:
        std = load_tensor(file, tensors["latent_std"]).float()
        if std.numel() not in (1, channels):
            raise CheckpointError(
                f"{file.path}: latent_std must have 1 or {channels} numbers, got {std.numel()}"
            )
    statistics = {
        "latent_mean": torch.zeros(channels),
        "latent_std": std.flatten().expand(channels).clone(),
    }
    module = config.condition_module
    names = [] if module is None else [c.name for c in module.conditions if c.kind == "scalar"]
    for name in names:
        mean, scale = _statistics(file.path, conditions.get("stats"), name)
        statistics[f"condition_module.encoders.{name}.mean"] = torch.tensor(mean)
        statistics[f"condition_module.encoders.{name}.std"] = torch.tensor(scale)
    return statistics


def target_statistics(path: Path, targets: Any, config: PredictorConfig) -> dict[str, Tensor]:
    """Mean and standard deviation of a predictor's targets."""
    pairs = [_statistics(path, targets, name) for name in config.targets]
    mean, std = torch.tensor(pairs, dtype=torch.float32).unbind(-1)
    return {"mean": mean.clone(), "std": std.clone()}


def _statistics(path: Path, entries: Any, name: str) -> tuple[float, float]:
    entry = entries.get(name) if isinstance(entries, dict) else None
    values = [entry.get(key) if isinstance(entry, dict) else None for key in ("mean", "std")]
    mean, std = (float(v) if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values)
    if mean is None or std is None or not std > 0:
        raise CheckpointError(f"{path}: {name} must have a mean and a positive std, got {entry}")
    return mean, std


def ema_weights(file: PickledFile, state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor] | None:
    """`ema_state`: a list in the order of the parameters, which is that of the state_dict."""
    ema = file.content.get("ema_state")
    if ema is None:
        return None
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(item, StoredTensor) for item in shadow):
        raise CheckpointError(f"{file.path}: ema_state must have a list of tensors, shadow_params")
    if len(shadow) != len(names):
        raise CheckpointError(
            f"{file.path}: ema_state must have one tensor for each of the {len(names)} parameters, got {len(shadow)}"
        )
    averaged = {}
    for name, stored in zip(names, shadow, strict=True):
        if stored.shape != tuple(state[name].shape):
            raise CheckpointError(
                f"{file.path}: the EMA of {name} must be {list(state[name].shape)}, got {list(stored.shape)}"
            )
        values = load_tensor(file, stored)
        if not values.equal(state[name]):
            averaged[name] = values
    return averaged or None
