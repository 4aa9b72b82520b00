"""A trained checkpoint to a pair that travels with the repository: half precision, with a card for people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from latentite.base.files import parse_json
from latentite.base.plain import from_plain, to_plain
from latentite.checkpoint import (
    CheckpointRecord,
    StoredFormat,
    Weights,
    merge_adapters,
    read_checkpoint,
    read_portable,
    write_portable,
)
from latentite.hub.lookup import resolve
from latentite.hub.names import BUNDLE_PRECISION


@dataclass(kw_only=True, slots=True)
class ModelCard:
    """Facts about a model for people; the rest of its card is taken from the checkpoint."""

    trained_on: str
    """The data, in words."""
    licence: str
    """Of the data, and of the weights."""
    attribution: str
    """Whom to cite."""
    commands: list[str]
    """That trained it, in their order."""
    minutes: float
    """Of training, wall time."""
    hardware: str
    good_for: list[str]
    not_good_for: list[str]
    commit: str | None = None
    """Of the code that trained it; None takes that of `provenance.json` in the run's folder, if it is there."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Measured after training; those of the last validation are in the card anyway."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes must be more than 0, got {self.minutes}")
        for name in (
            "trained_on",
            "licence",
            "attribution",
            "hardware",
            "commands",
            "good_for",
            "not_good_for",
        ):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundled:
    """The files that were written."""

    weights: Path
    card: Path
    size: int
    """Bytes of both files."""
    borrowed: int
    """Tensors that stand in other pairs."""
    rounding: float
    """Root of the sum of squared changes by that of the squared weights."""


def bundle(
    checkpoint: str | Path,
    name: str,
    out: Path,
    *,
    precision: StoredFormat | str = BUNDLE_PRECISION,
    card: Path | None = None,
    borrow: Sequence[str] = (),
    weights: Weights | str | None = None,
) -> Bundled:
    """Writes `OUT/NAME.safetensors` and `OUT/NAME.json`, from which `resolve(NAME)` reads when OUT is a `ckpts` folder.

    Adapters are merged, unless weights are borrowed: then the base stands elsewhere, and adapters are small.

    Args:
        checkpoint: a file, or a name of `latentite hub list`.
        name: of the pair.
        out: the folder; made when missing.
        precision: of the matrices.
        card: a YAML file with the fields of `ModelCard`.
        borrow: names of pairs in `out` whose tensors are not to be written again.
        weights: which weights; None for the file's own choice.

    Raises:
        ValueError: for a name that is a path, a card that lacks something, a checkpoint that cannot be read.
    """
    if not name or Path(name).name != name or Path(name).suffix:
        raise ValueError(f"--name must be a name such as mp_20_biternary_ldm, got {name!r}")
    file = resolve(checkpoint)
    about = None if card is None else to_plain(read_model_card(card, file))
    record = read_checkpoint(file, weights=weights)
    if not borrow:
        record = merge_adapters(record)
    paths = write_portable(record, out / name, precision=StoredFormat(precision), lenders=borrow, about=about)
    written = read_portable(paths[0])
    loans = json.loads(paths[1].read_text(encoding="utf-8")).get("borrowed", {})
    return Bundled(
        weights=paths[0],
        card=paths[1],
        size=sum(path.stat().st_size for path in paths),
        borrowed=sum(len(loan["tensors"]) for loan in loans.values()),
        rounding=_rounding(record, written),
    )


def read_model_card(path: Path, checkpoint: Path) -> ModelCard:
    """A model card in YAML; the commit is taken from the run that left the checkpoint, where the card has none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the field that is missing, unknown or wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--card must be a YAML file, but {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold fields such as 'trained_on: ...', got {type(values).__name__}")
    model_card = from_plain(ModelCard, values, where=str(path))
    model_card.commit = model_card.commit or _provenance(checkpoint).get("commit")
    return model_card


def _provenance(checkpoint: Path) -> dict[str, Any]:
    """The provenance of the run that wrote `RUN/checkpoints/last.ckpt`; empty where it is not known."""
    path = checkpoint.parent.parent / "provenance.json"
    content = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _rounding(record: CheckpointRecord, written: CheckpointRecord) -> float:
    pairs = [(tensor.double(), written.state[name].double()) for name, tensor in record.state.items()]
    changes = sum(float((after - before).square().nansum()) for before, after in pairs)  # NaN stays NaN
    return math.sqrt(changes / max(sum(float(before.square().nansum()) for before, _ in pairs), 1e-300))
