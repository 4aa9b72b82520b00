"""What a checkpoint of ours holds and how it is read safely.

Two forms say the same. Training leaves Lightning `.ckpt` files, with optimizer and loops, to resume from;
`export_portable` makes of one a pair `NAME.safetensors` + `NAME.json` (the card), to publish. Either is read
by `read_checkpoint` into a `CheckpointRecord`, and nothing in the file is ever executed: `.ckpt` files are
read with `torch.load(weights_only=True)`, and whatever that refuses is refused here with a sentence.

A `.ckpt` has Lightning's own keys, the raw weights in `state_dict` under the prefix "network.", and

    "latentite": {"format": 1, "stage": "vae", "config": {...}, "data": {...}, "metrics": {...},
                  "ema": {parameter name without prefix: tensor} or None,
                  "default_weights": "raw" or "ema", where it is not the EMA if there is one}

Comes after `plain.py` and `files.py`; `hub.py` finds the files.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import platform
import re
import zipfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentite import __version__
from latentite.files import impostor, replacing, sha256_file, write_json
from latentite.nn.adapters import LoraConfig, merged_state_dict
from latentite.plain import from_plain

FORMAT = 1
PAYLOAD_KEY = "latentite"
NETWORK_PREFIX = "network."
config_from_plain = from_plain  # the way back from `CheckpointRecord.config` to the network's dataclass

_CHEMELEON2 = re.compile(r"src\.(vae|ldm|rl|predictor)_module\.")


class Stage(StrEnum):
    """The stages of training, in their order."""

    VAE = "vae"
    LDM = "ldm"
    RL = "rl"
    PREDICTOR = "predictor"


class Weights(StrEnum):
    """Which of a checkpoint's two sets of weights."""

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
    """Which weights `state` has."""
    config: dict[str, Any]
    """Plain values; `config_from_plain` makes the dataclass of it."""
    state: dict[str, Tensor]
    """The network's parameters and buffers, on the CPU."""
    data: dict[str, Any]
    """Hashes and statistics of the data that the stage was trained on."""
    metrics: dict[str, Any]
    sha256: str
    """Of the file `path`."""


def plain(value: Any, *, key: str = "") -> Any:
    """Converts to what JSON knows; `latentite.plain.to_plain`, but nothing foreign passes.

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
) -> dict[str, Any]:
    """What a Lightning module adds to its checkpoint under the key "latentite".

    Args:
        stage: which stage this is.
        config: dataclass or mapping from which the network can be built again.
        data: content hash and statistics of the training data.
        metrics: name -> number, as last validated.
        ema: averaged parameters by their names in the network (no "network." prefix), or None without EMA.
        default_weights: what a reader gets who does not choose; None for the EMA where there is one.

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
    return payload if default_weights is None else {**payload, "default_weights": default_weights.value}


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
    _require_file(path)
    if path.suffix in (".safetensors", ".json"):
        record = read_portable(path)
        if weights is not None and record.weights != weights:
            raise CheckpointError(f"{path} holds {record.weights} weights only, got weights={weights!s}")
    else:
        record = _record_from_lightning(path, None if weights is None else Weights(weights))
    if stage is not None and record.stage != stage:
        raise CheckpointError(f"{path}: expected a {stage} checkpoint, got {record.stage}")
    return record


def export_portable(
    path_ckpt: str | Path, out_stem: str | Path, *, weights: Weights | str | None = None
) -> tuple[Path, Path]:
    """Writes `OUT_STEM.safetensors` and its card `OUT_STEM.json`; the same input gives the same bytes.

    Adapters are merged (`merge_adapters`): what is published is a plain network.

    Each file is replaced atomically, the weights first; a card that does not fit its weights is noticed when
    the pair is read.

    Returns:
        The paths of the weights and of the card.
    """
    from safetensors.torch import save_file

    record = merge_adapters(read_checkpoint(path_ckpt, weights=weights))
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
        _require_file(part)
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{card_path} is not a checkpoint's card: it is no valid JSON ({error})"
        ) from error
    stage = _check_payload(card, card_path)
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


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .ckpt or .safetensors file inside it")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a .ckpt or .safetensors file")
    if (other := impostor(path)) is not None:
        raise CheckpointError(f"{path} is {other}")


def _record_from_lightning(path: Path, weights: Weights | None) -> CheckpointRecord:
    content = _load_plain_zip(path)
    if not isinstance(content, dict) or not isinstance(content.get(PAYLOAD_KEY), dict):
        kind = "a checkpoint" if isinstance(content, dict) and "state_dict" in content else "a torch file"
        raise CheckpointError(
            f"{path} is {kind}, but not one that Latentite wrote (it has no key 'latentite')"
        )
    payload = content[PAYLOAD_KEY]
    stage = _check_payload(payload, path)
    raw = {
        name.removeprefix(NETWORK_PREFIX): tensor
        for name, tensor in content.get("state_dict", {}).items()
        if name.startswith(NETWORK_PREFIX)
    }
    if not raw:
        raise CheckpointError(
            f"{path} has no weights: nothing in its state_dict starts with '{NETWORK_PREFIX}'"
        )
    ema = payload.get("ema")
    if weights is None:
        weights = Weights(payload.get("default_weights") or (Weights.EMA if ema else Weights.RAW))
    if weights is Weights.EMA:
        if not ema:
            raise CheckpointError(f"{path} has no EMA weights (trained without EMA); ask for weights=raw")
        if unknown := sorted(ema.keys() - raw.keys()):
            raise CheckpointError(f"{path}: its EMA has {unknown[0]}, which its network has not")
        raw = {**raw, **ema}  # buffers are not averaged: they come from the raw state
    return CheckpointRecord(
        path=path,
        stage=stage,
        weights=weights,
        config=payload["config"],
        # The file is memory-mapped: a copy of what is used lets go of the optimizer's share.
        state={name: tensor.detach().clone() for name, tensor in raw.items()},
        data=payload["data"],
        metrics=payload["metrics"],
        sha256=sha256_file(path),
    )


def _check_payload(payload: Any, path: Path) -> Stage:
    """Checks format, stage and sections of what a `.ckpt` and a card have in common."""
    if not isinstance(payload, dict) or "format" not in payload:
        raise CheckpointError(f"{path} is not a checkpoint that Latentite wrote (it states no format)")
    if payload["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {payload['format']!r}, but latentite {__version__} reads "
            f"format {FORMAT}; use the version of latentite that wrote it"
        )
    if payload.get("stage") not in list(Stage):
        raise CheckpointError(
            f"{path}: stage must be one of {', '.join(Stage)}, got {payload.get('stage')!r}"
        )
    for section in ("config", "data", "metrics"):
        if not isinstance(payload.get(section), dict):
            raise CheckpointError(
                f"{path}: its section '{section}' must be a mapping, got {payload.get(section)!r}"
            )
    return Stage(payload["stage"])


def _load_plain_zip(path: Path) -> Any:
    """The content of a file by `torch.save`, if it is whole and holds only tensors and plain values."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:1] == b"\x80":  # the first opcode of every binary pickle
        raise CheckpointError(
            f"{path} is a bare Python pickle, which can run code when it is read, so it was not opened; "
            "our checkpoints are zip files of tensors and plain values"
        )
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint (neither a torch zip file nor a portable pair)")
    if not zipfile.is_zipfile(path):  # the table of contents stands at the end
        raise CheckpointError(f"{path} is truncated: its end is missing; copy or download it again")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise CheckpointError(f"{path} is a zip file, but not a checkpoint (it has no data.pkl)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        # what the restricted unpickler and the zip reader raise on bytes that are not what they expect
        raise CheckpointError(f"{path} is damaged and cannot be read; copy or download it again") from error


def _refusal(path: Path) -> CheckpointError:
    """Says, from a static look at the pickle, what it wanted to import; nothing of it has been executed."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        names = []
    if any(_CHEMELEON2.match(name) for name in names):
        return CheckpointError(
            f"{path} is a Chemeleon2 checkpoint; `latentite.hub.resolve` gives it in our format, as every command "
            "that takes a checkpoint does (nothing in the file was executed)"
        )
    asked = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return CheckpointError(
        f"{path} asks to run code when it is loaded ({asked or 'objects that are not plain values'}), so it "
        "was refused and nothing in it was executed; our checkpoints hold tensors and plain values only"
    )
