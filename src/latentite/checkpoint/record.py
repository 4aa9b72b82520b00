"""The content of a checkpoint: stage, weights, config, the data it was trained on; and what every file must state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from latentite import __version__
from latentite.base.files import impostor
from latentite.base.plain import ConfigError, from_plain, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCard:
    """One split of a data set; None for what the file does not say."""

    content_hash: str | None = None
    """sha256 of its crystals and labels; what was left out of it is said behind the 64 digits."""
    num_crystals: int | None = None
    num_atoms_histogram: list[int | float] | None = None
    """Number of crystals (of an imported model: their share) with 0, 1, 2, ... atoms per cell."""
    num_rejected: int | None = None
    """Crystals that have no description by orbits, and are not among those above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityCard:
    """One level of theory of the labels; None for what the file does not say."""

    num_in: int | None = None
    num_rejected: int | None = None
    rows: dict[str, int] | None = None
    """By split."""
    moved: dict[str, int] | None = None
    """Rows that another fidelity's split took along, as `train -> test`."""
    without_label: dict[str, int] | None = None
    """Rows that lack a property, by property."""
    dispersion: bool | None = None
    """True where the energies contain dispersion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitCard:
    """The description of the crystals by orbits, and the largest of the training split; None for what is not said."""

    mode: str | None = None
    """`symmetry`, or `p1` where every atom is an orbit."""
    symprec: float | None = None
    """Å."""
    fallback: float | None = None
    """Å; tolerance of crystals that the first one describes wrongly."""
    max_orbits: int | None = None
    """Of one crystal."""
    max_elements: int | None = None
    """Different ones of one crystal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCard:
    """The training data: names, hashes, counts, sizes, labels; None or empty for what the file does not say."""

    name: str | None = None
    """Of the data set."""
    splits: dict[str, SplitCard] = field(default_factory=dict)
    """`train`, `val`, `test`."""
    categories: dict[str, list[str]] | None = None
    """Names behind the codes of each label that is a class."""
    properties: list[str] | None = None
    """Labels of the training split."""
    fidelities: dict[str, FidelityCard] = field(default_factory=dict)
    """Levels of theory by name."""
    reference_fidelity: str | None = None
    """The one that the others are compared with."""
    elements: list[str] | None = None
    """Symbols of the elements of the training split."""
    orbits: OrbitCard | None = None
    """Of models that are trained on orbits."""
    others: dict[str, Any] = field(default_factory=dict)
    """Everything else in the section, as it stands there; an imported model has its `source` and `hyper_parameters`."""

    @staticmethod
    def of(data: Mapping[str, Any]) -> DataCard:
        """The card of a checkpoint's section `data`.

        Raises:
            ConfigError: when something in it is not what its key announces, naming the key.
        """
        known = {item.name for item in fields(DataCard)} - {"others"}
        stated = {key: value for key, value in data.items() if key in known}
        others = {key: value for key, value in data.items() if key not in known}
        return from_plain(DataCard, {**stated, "others": others}, where="data")

    def to_plain(self) -> dict[str, Any]:
        """The section `data`: what is not said is left out."""
        said = _without_none(to_plain(self))
        said |= said.pop("others")
        return {key: value for key, value in said.items() if value or key not in ("splits", "fidelities")}

    def with_model_of(self, base: DataCard) -> DataCard:
        """This card with all that another says of the crystals that its model makes: sizes, elements, orbits."""
        train = replace(self.split("train"), num_atoms_histogram=base.train_sizes)
        return replace(
            self, splits={**self.splits, "train": train}, elements=base.elements, orbits=base.orbits
        )

    def split(self, name: str) -> SplitCard:
        """One of the splits; one of which nothing is said where the file does not have it."""
        return self.splits.get(name, SplitCard())

    @property
    def train_sizes(self) -> list[int | float] | None:
        """Numbers (or shares) of training crystals with 0, 1, 2, ... atoms; None where the file does not say."""
        return self.split("train").num_atoms_histogram

    @property
    def largest_cell(self) -> int:
        """Atoms of the largest training crystal; 0 where the file does not say."""
        return max(0, len(self.train_sizes or []) - 1)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


FORMAT = 1
PAYLOAD_KEY = "latentite"
NETWORK_PREFIX = "network."


class Stage(StrEnum):
    """The stages of training. The first four build on each other in their order; a crystal GPT stands alone."""

    VAE = "vae"
    LDM = "ldm"
    RL = "rl"
    PREDICTOR = "predictor"
    GPT = "gpt"


LATENT_DIFFUSION = "latent_diffusion"
"""Name of the generator that this package's latent diffusion models are (`generators.table.GENERATORS`)."""
CRYSTAL_GPT = "gpt"
"""Name of the generator that the crystal GPTs are."""


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
