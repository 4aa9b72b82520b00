"""The portable form: `NAME.safetensors` and its card `NAME.json`, written and read.

Comes after `record.py`; `read.py` calls it.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from latentite import __version__
from latentite.checkpoint.record import (
    FORMAT,
    CheckpointError,
    CheckpointRecord,
    Weights,
    check_payload,
    plain,
    require_file,
)
from latentite.files import replacing, sha256_file, write_json


def write_portable(record: CheckpointRecord, out_stem: str | Path) -> tuple[Path, Path]:
    """Writes the pair of a record; the same record gives the same bytes.

    Each file is replaced atomically, the weights first; a card that does not fit its weights is noticed when
    the pair is read.

    Returns:
        The paths of the weights and of the card.
    """
    from safetensors.torch import save_file

    stem = Path(out_stem)
    weights_path, card_path = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    state = {name: tensor.contiguous() for name, tensor in record.state.items()}
    with replacing(weights_path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    card = {
        "format": FORMAT,
        "stage": record.stage.value,
        "weights": record.weights.value,
        "sha256": sha256_file(weights_path),
        "num_tensors": len(state),
        "num_values": sum(tensor.numel() for tensor in state.values()),
        "config": record.config,
        "data": record.data,
        "metrics": record.metrics,
        "source": {"file": record.path.name, "sha256": record.sha256},
        "versions": {
            "latentite": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    write_json(card_path, plain(card))
    return weights_path, card_path


def read_portable(path: str | Path) -> CheckpointRecord:
    """Reads a pair that `export_portable` wrote, by either of its two files, and checks the weights' hash."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    weights_path, card_path = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    for part, other in ((weights_path, card_path), (card_path, weights_path)):
        if not part.is_file():
            raise CheckpointError(f"{other} must have {part.name} beside it; copy both files of the pair")
        require_file(part)
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{card_path} is not a checkpoint's card: it is no valid JSON ({error})"
        ) from error
    stage = check_payload(card, card_path)
    digest = sha256_file(weights_path)
    if card.get("sha256") != digest:
        raise CheckpointError(
            f"{weights_path} does not belong to its card or is damaged: sha256 must be {card.get('sha256')}, "
            f"got {digest}; fetch or export both files again"
        )
    try:
        state = load_file(weights_path)
    except SafetensorError as error:
        raise CheckpointError(f"{weights_path} is not a safetensors file: {error}") from error
    return CheckpointRecord(
        path=weights_path,
        stage=stage,
        weights=Weights(card.get("weights", Weights.RAW)),
        config=card["config"],
        state=state,
        data=card["data"],
        metrics=card["metrics"],
        sha256=digest,
    )
