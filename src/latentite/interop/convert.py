"""A Chemeleon2 checkpoint written once as a checkpoint of ours, which every stage reads.

What is written is a `.ckpt` as training leaves it (`checkpoint/`), with the raw weights and, where the file has
an EMA, that besides; whoever does not choose gets the raw ones, which the public project samples with. Comes
after `chemeleon2.py`; `hub/` keeps the result in the cache and its card beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentite.checkpoint import NETWORK_PREFIX, PAYLOAD_KEY, Weights, build_payload
from latentite.interop import CONVERSION
from latentite.interop.chemeleon2 import FindVAE, import_checkpoint

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
    found = import_checkpoint(path, find_vae=find_vae)
    source = {"format": "chemeleon2", "file": path.name, "sha256": sha256}
    data: dict[str, Any] = {"source": source, "hyper_parameters": found.hyper_parameters}
    if num_atoms is not None:
        data["splits"] = {"train": {"num_atoms_histogram": list(num_atoms)}}
    payload = build_payload(
        stage=found.stage,
        config=found.config,
        data=data,
        metrics={},
        ema=found.ema,
        default_weights=Weights.RAW,
    )
    state = {NETWORK_PREFIX + name: tensor for name, tensor in found.state.items()}
    with out.open("wb") as file:  # by path, torch writes the file's name into the file
        torch.save({"state_dict": state, PAYLOAD_KEY: payload}, file)
    return {
        "source": source,
        "conversion": CONVERSION,
        "stage": found.stage.value,
        "weights": [Weights.RAW.value] + ([Weights.EMA.value] if found.ema else []),
        "default_weights": Weights.RAW.value,
        "num_tensors": len(state),
        "num_values": sum(tensor.numel() for tensor in state.values()),
        "config": payload["config"],
        "hyper_parameters": found.hyper_parameters,
    }
