"""A record's tensors and the network that they are for.

Comes after `record.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from latentite.checkpoint.record import CheckpointError, CheckpointRecord
from latentite.nn.adapters import LoraConfig, merged_state_dict
from latentite.plain import from_plain


def load_network_state(record: CheckpointRecord, network: nn.Module) -> None:
    """Loads the record's weights into the network, which must have exactly these tensors.

    Raises:
        CheckpointError: naming what is missing, superfluous or of another shape; the network is unchanged.
    """
    require_fit(record.state, network, record.path)
    network.load_state_dict(record.state)


def require_fit(state: Mapping[str, Tensor], network: nn.Module, path: Path) -> None:
    """Checks that the tensors of a file are those of the network, by name and shape.

    Raises:
        CheckpointError: naming what is missing, superfluous or of another shape.
    """
    wanted = network.state_dict()
    wrong = [f"{name} is missing ({list(wanted[name].shape)})" for name in wanted.keys() - state.keys()]
    wrong += [f"{name} is not in the network" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} is {list(state[name].shape)} in the file, {list(wanted[name].shape)} in the network"
        for name in wanted.keys() & state.keys()
        if wanted[name].shape != state[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise CheckpointError(f"{path} does not fit this {type(network).__name__}: {shown}")


def merge_adapters(record: CheckpointRecord) -> CheckpointRecord:
    """The record of a plain network with the same outputs; one without adapters (no config `lora`) as it is."""
    if record.config.get("lora") is None:
        return record
    lora = from_plain(LoraConfig, record.config["lora"], where="lora")
    return dataclasses.replace(
        record, config={**record.config, "lora": None}, state=merged_state_dict(record.state, lora)
    )
