"""Any checkpoint to its record, a record to the network that it describes, and a `.ckpt` to the portable pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from latentite.base.plain import from_plain
from latentite.checkpoint.lightning_file import record_from_lightning
from latentite.checkpoint.portable import read_portable, write_portable
from latentite.checkpoint.record import (
    CheckpointError,
    CheckpointRecord,
    Stage,
    Weights,
    require_file,
)
from latentite.nn.lora import LoraConfig, merged_state_dict

Network = TypeVar("Network", bound=nn.Module)


def network_of(state: Mapping[str, Tensor], build: Callable[[], Network], path: Path) -> Network:
    """The network of a file, with its weights.

    A config from elsewhere may announce any size. So the network is first built on the device "meta", which takes no
    memory, and no further than the file has numbers for it.

    Args:
        state: the file's tensors.
        build: makes the network of the file's config.
        path: the file, for errors.

    Raises:
        CheckpointError: for a config and tensors that do not fit each other.
    """
    with torch.device("meta"), _Undrawn(), _no_larger_than(state, path):
        require_fit(state, build(), path)
    network = build()
    network.load_state_dict(state)
    return network


class _Undrawn(TorchFunctionMode):
    """Inside, nothing is drawn from the normal distribution: on "meta" torch would import its compiler for that."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.init.normal_ and kwargs:
            return kwargs["tensor"]
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """Inside, building stops at the first parameter for which the file has no numbers."""
    left = sum(tensor.numel() for tensor in state.values())
    too_large = CheckpointError(
        f"{path} does not fit its config: that announces more than the {left:,} numbers of its tensors"
    )

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise too_large

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (
        RuntimeError,
        OverflowError,
        TypeError,
    ) as error:  # of torch, where a shape is beyond its integers
        raise too_large from error
    finally:
        hook.remove()


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


def read_checkpoint(
    path: str | Path, *, stage: Stage | str | None = None, weights: Weights | str | None = None
) -> CheckpointRecord:
    """Reads a `.ckpt`, or a portable pair by its `.safetensors` or `.json`, without executing anything in it.

    Args:
        path: the file.
        stage: the stage that it must be of; None for any.
        weights: which weights; None takes the EMA where there is one, else the raw weights, unless the file
            says otherwise (`default_weights`).

    Raises:
        CheckpointError: with one sentence on what is wrong with the file, by name.
    """
    path = Path(path)
    require_file(path)
    if path.suffix in (".safetensors", ".json"):
        record = read_portable(path)
        if weights is not None and record.weights != weights:
            raise CheckpointError(f"{path} holds {record.weights} weights only, got weights={weights!s}")
    else:
        record = record_from_lightning(path, None if weights is None else Weights(weights))
    if stage is not None and record.stage != stage:
        raise CheckpointError(f"{path}: expected a {stage} checkpoint, got {record.stage}")
    return record


def export_portable(
    path_ckpt: str | Path, out_stem: str | Path, *, weights: Weights | str | None = None
) -> tuple[Path, Path]:
    """Writes `OUT_STEM.safetensors` and its card `OUT_STEM.json`; the same input gives the same bytes.

    Adapters are merged (`merge_adapters`): what is published is a plain network.

    Returns:
        The paths of the weights and of the card.
    """
    return write_portable(merge_adapters(read_checkpoint(path_ckpt, weights=weights)), out_stem)
