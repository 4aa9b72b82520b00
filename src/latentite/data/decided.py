"""Labels that were decided on, kept in the cache: who asks for what was asked for before has them at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from latentite.data.cache import save_tensors, take, to_bytes
from latentite.data.labels import DecidedLabels

log = logging.getLogger(__name__)

FORMAT = 2
"""Raised whenever the same cells are decided on in another way."""


def request_key(keys: Mapping[str, str], request: Mapping[str, Any]) -> str:
    """sha256 over all that labels depend on: the crystals of every split (by key), and what is asked for."""
    parts = {"splits": dict(keys), "request": request, "format": FORMAT}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_decided(path: Path, decided: DecidedLabels) -> None:
    """Write them as one file, atomically."""
    about = {
        "names": {split: list(labels) for split, labels in decided.properties.items()},
        "categories": decided.categories,
        "left_out": decided.left_out,
        "remarks": decided.remarks,
    }
    tensors = {
        f"{split}.{name}": values
        for split, labels in decided.properties.items()
        for name, values in labels.items()
    }
    save_tensors(path, tensors | {"about": to_bytes(about)}, {"latentite.decided": str(FORMAT)})


def read_decided(path: Path) -> DecidedLabels | None:
    """The labels of a file of `write_decided`; None where there is no such file, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            if (handle.metadata() or {}).get("latentite.decided") != str(FORMAT):
                raise ValueError(f"it must have the format {FORMAT}")
            about = json.loads(take(handle, "about").numpy().tobytes())
            return DecidedLabels(
                properties={
                    split: {name: take(handle, f"{split}.{name}") for name in names}
                    for split, names in about["names"].items()
                },
                categories={name: tuple(values) for name, values in about["categories"].items()},
                left_out=about["left_out"],
                remarks=tuple(about["remarks"]),
            )
    except (SafetensorError, KeyError, ValueError) as error:
        log.warning("%s in the cache is damaged and is made again: %s", path, error)
        return None
