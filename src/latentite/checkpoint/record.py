"""The content of a checkpoint: stage, weights, config; what training adds to a file, and what every file must state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from latentite import __version__
from latentite.base.files import impostor
from latentite.base.plain import ConfigError
from latentite.checkpoint.data_card import DataCard

FORMAT = 1
PAYLOAD_KEY = "latentite"
NETWORK_PREFIX = "network."


class Stage(StrEnum):
    """The stages of training, in their order."""

    VAE = "vae"
    LDM = "ldm"
    RL = "rl"
    PREDICTOR = "predictor"


LATENT_DIFFUSION = "latent_diffusion"
"""Name of the generator that this package's latent diffusion models are (`generators.table.GENERATORS`)."""


class Weights(StrEnum):
    """The two sets of weights that a checkpoint may hold."""

    EMA = "ema"
    """The exponential moving average over training steps: what is validated, and what later stages use."""
    RAW = "raw"
    """As the optimizer left them."""


class CheckpointError(ValueError):
    """A file that is missing, damaged, dangerous, or not the checkpoint that was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CheckpointRecord:
    """A checkpoint in memory, without what only resuming needs."""

    path: Path
    """The file that holds the weights."""
    stage: Stage
    weights: Weights
    """The set of weights that `state` has."""
    config: dict[str, Any]
    """Plain values; `from_plain` makes the network's dataclass of it."""
    state: dict[str, Tensor]
    """The network's parameters and buffers, on the CPU."""
    data: DataCard
    """The data that the stage was trained on."""
    metrics: dict[str, Any]
    sha256: str
    """Of the file `path`."""
    generator: str | None = None
    """Name of the generator that it is; None where the file does not say, and for stages that generate nothing."""


def plain(value: Any, *, key: str = "") -> Any:
    """Converts to what JSON knows; `latentite.base.plain.to_plain`, but nothing foreign passes.

    Takes None, bool, int, float, str, StrEnum, Path, NumPy scalars, dataclasses, and mappings (with strings
    as keys), lists and tuples of these. The result shares nothing mutable with `value`.

    Args:
        value: what to convert.
        key: where it stands ("data.statistics"), for the error.

    Raises:
        TypeError: at the first value that is none of these, naming its key.
    """
    if isinstance(value, np.generic):  # first: np.float64 is also a float, np.str_ also a str
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, StrEnum | Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{key or 'the mapping'} must have strings as keys, got {name!r}")
        return {str(name): plain(item, key=f"{key}.{name}" if key else name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key=f"{key}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{key or 'the value'} must be a plain value (None, bool, int, float, str, list or dict of these), "
        f"got {type(value).__module__}.{type(value).__qualname__}"
    )


def build_payload(
    *,
    stage: Stage,
    config: Any,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
    default_weights: Weights | None = None,
    generator: str | None = None,
) -> dict[str, Any]:
    """The section "latentite" that a Lightning module adds to its checkpoint.

    Args:
        stage: which stage this is.
        config: dataclass or mapping from which the network can be built again.
        data: a data card's plain values.
        metrics: name -> number, as last validated.
        ema: averaged parameters by their names in the network (no "network." prefix), or None without EMA.
        default_weights: what a reader gets who does not choose; None for the EMA where there is one.
        generator: name of the generator that it is; None for what generates nothing.

    Raises:
        TypeError: something in it is not a plain value; the message names its key.
    """
    payload = {
        "format": FORMAT,
        "stage": Stage(stage).value,
        "config": plain(config, key="config"),
        "data": plain(data, key="data"),
        "metrics": plain(metrics, key="metrics"),
        "ema": None if ema is None else {name: tensor.detach() for name, tensor in ema.items()},
    }
    if generator is not None:
        payload["generator"] = generator
    return payload if default_weights is None else {**payload, "default_weights": default_weights.value}


def require_file(path: Path) -> None:
    """Refuses, with one sentence, a path at which no checkpoint can be."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .ckpt or .safetensors file inside it")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a .ckpt or .safetensors file")
    if (other := impostor(path)) is not None:
        raise CheckpointError(f"{path} is {other}")


def check_payload(payload: Any, path: Path) -> tuple[Stage, DataCard]:
    """Stage and data card of what a `.ckpt` and a portable card have in common, when all its sections are sound."""
    if not isinstance(payload, dict) or "format" not in payload:
        raise CheckpointError(f"{path} is not a checkpoint that Latentite wrote (it states no format)")
    if payload["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {payload['format']!r:.80}, but latentite {__version__} reads "
            f"format {FORMAT}; use the version of latentite that wrote it"
        )
    if payload.get("stage") not in list(Stage):
        raise CheckpointError(
            f"{path}: stage must be one of {', '.join(Stage)}, got {payload.get('stage')!r:.80}"
        )
    if not isinstance(payload.get("generator", ""), str):
        raise CheckpointError(
            f"{path}: generator must be the name of one, got {payload.get('generator')!r:.80}"
        )
    for section in ("config", "data", "metrics"):
        if not isinstance(payload.get(section), dict):
            raise CheckpointError(
                f"{path}: its section '{section}' must be a mapping, got {payload.get(section)!r:.80}"
            )
        try:
            plain(payload[section], key=section)
        except (TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a checkpoint that Latentite wrote: {error}") from error
    try:
        return Stage(payload["stage"]), DataCard.of(payload["data"])
    except ConfigError as error:
        raise CheckpointError(f"{path} is not a checkpoint that Latentite wrote: {error}") from error


def weights_of(value: Any, path: Path) -> Weights:
    """Checks a file's statement of its weights, or of those that it gives to who does not choose."""
    if value not in list(Weights):
        raise CheckpointError(f"{path}: weights must be one of {', '.join(Weights)}, got {value!r:.80}")
    return Weights(value)
