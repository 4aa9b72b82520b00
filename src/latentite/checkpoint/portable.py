"""The portable form: `NAME.safetensors` and its card `NAME.json`, written and read.

Matrices may be stored in half precision; whoever reads gets float32. A tensor that another pair in the same folder
holds already, bit for bit, may be borrowed: the card names it, and the other pair by its hash.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentite import __version__
from latentite.base.files import parse_json, replacing, sha256_file, write_json
from latentite.checkpoint.record import (
    FORMAT,
    CheckpointError,
    CheckpointRecord,
    Weights,
    check_payload,
    plain,
    require_file,
    weights_of,
)


class StoredFormat(StrEnum):
    """Formats of the float32 matrices of a portable checkpoint; everything else is kept as it is."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


MAX_LENDERS = 8
"""Pairs in a row that borrow from each other."""

_DTYPES = {StoredFormat.FP16: torch.float16, StoredFormat.BF16: torch.bfloat16}


def write_portable(
    record: CheckpointRecord,
    out_stem: str | Path,
    *,
    precision: StoredFormat = StoredFormat.FP32,
    lenders: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Writes the pair of a record; the same record gives the same bytes.

    Each file is replaced atomically, the weights first; a card that does not fit its weights is noticed when
    the pair is read.

    Args:
        record: what to write.
        out_stem: path of the pair without suffix.
        precision: of the matrices.
        lenders: names of pairs in the same folder; a tensor that one of them holds is not written again.
        about: plain values for people, under the card's key "about".

    Returns:
        The paths of the weights and of the card.

    Raises:
        CheckpointError: for a lender that cannot be read, or weights that the precision cannot hold.
    """
    stem = Path(out_stem)
    weights_path, card_path = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    stored = {name: _rounded(name, tensor, precision) for name, tensor in record.state.items()}
    borrowed = _borrowable(stored, stem, lenders)
    lent = {name for loan in borrowed.values() for name in loan["tensors"]}
    state = {name: tensor for name, tensor in stored.items() if name not in lent}
    _write_weights(state, weights_path)
    card = _card(record, sha256=sha256_file(weights_path), state=state, precision=precision, about=about)
    write_json(card_path, plain(card | ({"borrowed": borrowed} if borrowed else {})))
    return weights_path, card_path


def _write_weights(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(state, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # safetensors lets only the owner read what it makes


def _card(
    record: CheckpointRecord,
    *,
    sha256: str,
    state: Mapping[str, Tensor],
    precision: StoredFormat,
    about: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The card beside the weights: which they are, their config, data and origin."""
    return {
        "format": FORMAT,
        "stage": record.stage.value,
        **({} if record.generator is None else {"generator": record.generator}),
        "weights": record.weights.value,
        "sha256": sha256,
        "num_tensors": len(state),
        "num_values": sum(tensor.numel() for tensor in state.values()),
        **({} if precision is StoredFormat.FP32 else {"precision": precision.value}),
        **({} if about is None else {"about": about}),
        "config": record.config,
        "data": record.data.to_plain(),
        "metrics": record.metrics,
        "source": {"file": record.path.name, "sha256": record.sha256},
        "versions": {
            "latentite": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _rounded(name: str, tensor: Tensor, precision: StoredFormat) -> Tensor:
    # Tables such as baselines by element are float64, and stay so.
    if precision is StoredFormat.FP32 or tensor.ndim < 2 or tensor.dtype != torch.float32:
        return tensor.contiguous()
    rounded = tensor.to(_DTYPES[precision]).contiguous()
    if bool(tensor.isfinite().all()) and not bool(rounded.isfinite().all()):
        raise CheckpointError(f"{name} has values that {precision} cannot hold; take bf16 or fp32")
    return rounded


def _unrounded(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _DTYPES.values() else tensor


def _borrowable(state: Mapping[str, Tensor], stem: Path, lenders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By lender: its hash, and which of our tensors is which of its."""
    if stem.name in lenders:
        raise CheckpointError(f"{stem.name} cannot borrow from itself; name another pair in {stem.parent}")
    ours = {name: _content(tensor) for name, tensor in state.items()}
    loans: dict[str, dict[str, Any]] = {}
    for lender in lenders:
        record = _read_pair(stem.with_name(lender), [stem.name])  # not one that borrows from this
        theirs = {_content(tensor): name for name, tensor in record.state.items()}
        taken = {name for loan in loans.values() for name in loan["tensors"]}
        tensors = {
            name: theirs[content] for name, content in ours.items() if content in theirs and name not in taken
        }
        if not tensors:
            raise CheckpointError(
                f"{record.path} holds none of the tensors of {stem.name}: nothing to borrow"
            )
        loans[lender] = {"sha256": record.sha256, "tensors": tensors}
    return loans


def _content(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    """The same for tensors that are equal once they are read."""
    values = _unrounded(tensor).contiguous().numpy()
    return tuple(tensor.shape), f"{values.dtype}{hashlib.sha256(values.tobytes()).hexdigest()}"


def read_portable(path: str | Path) -> CheckpointRecord:
    """Reads a pair that `export_portable` wrote, by either of its two files, and checks the weights' hash.

    Raises:
        CheckpointError: with one sentence on what is wrong with the pair, or with one that it borrows from.
    """
    path = Path(path)
    return _read_pair(path.with_suffix("") if path.suffix in (".safetensors", ".json") else path, [])


def _read_pair(stem: Path, borrowers: Sequence[str]) -> CheckpointRecord:
    """The pair of a stem; `borrowers` are the pairs that wait for what it lends."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights_path, card_path = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    if not (weights_path.is_file() or card_path.is_file()):
        raise CheckpointError(f"there is no pair {weights_path.name} and {card_path.name} in {stem.parent}")
    for part, other in ((weights_path, card_path), (card_path, weights_path)):
        if not part.is_file():
            raise CheckpointError(f"{other} must have {part.name} beside it; copy both files of the pair")
        require_file(part)
    try:
        card = parse_json(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{card_path} is not a checkpoint's card: it is no valid JSON ({error})"
        ) from error
    stage, data = check_payload(card, card_path)
    digest = sha256_file(weights_path)
    if card.get("sha256") != digest:
        raise CheckpointError(
            f"{weights_path} does not belong to its card or is damaged: sha256 must be {card.get('sha256')}, "
            f"got {digest}; fetch or export both files again"
        )
    try:
        state = {name: _unrounded(tensor) for name, tensor in load_file(weights_path).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{weights_path} is not a safetensors file: {error}") from error
    state |= _borrowed(card.get("borrowed", {}), card_path, [*borrowers, stem.name])
    return CheckpointRecord(
        path=weights_path,
        stage=stage,
        weights=weights_of(card.get("weights", Weights.RAW), card_path),
        config=card["config"],
        state=state,
        data=data,
        metrics=card["metrics"],
        sha256=digest,
        generator=card.get("generator"),
    )


def _borrowed(loans: Any, card_path: Path, borrowers: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that stand in other pairs of the same folder.

    Args:
        loans: as the card has them.
        card_path: the card.
        borrowers: names of the pairs that are waiting for this one, and its own.
    """
    state = {}
    for lender, loan in _checked_loans(loans, card_path).items():
        if Path(lender).name != lender:  # a card from elsewhere must not reach out of its folder
            raise CheckpointError(f"{card_path} must borrow from its own folder, got {lender!r}")
        if lender in borrowers:
            circle = " -> ".join([*borrowers[borrowers.index(lender) :], lender])
            raise CheckpointError(
                f"{card_path} borrows in a circle ({circle}); take the pairs from another place"
            )
        if len(borrowers) == MAX_LENDERS:
            raise CheckpointError(
                f"{card_path} borrows over more than {MAX_LENDERS} pairs, one from the other"
            )
        try:
            record = _read_pair(card_path.with_name(lender), borrowers)
        except CheckpointError as error:
            raise CheckpointError(f"{card_path} borrows from {lender}: {error}") from error
        if record.sha256 != loan["sha256"]:
            raise CheckpointError(
                f"{card_path} borrows from a {lender} with sha256 {loan['sha256']}, but {record.path} has "
                f"{record.sha256}; take both pairs from the same place"
            )
        for ours, theirs in loan["tensors"].items():
            if theirs not in record.state:
                raise CheckpointError(f"{card_path} borrows {theirs}, which {record.path} does not have")
            state[ours] = record.state[theirs]
    return state


def _checked_loans(loans: Any, card_path: Path) -> dict[str, dict[str, Any]]:
    """The section "borrowed" of a card, in its form."""
    if isinstance(loans, dict) and all(
        isinstance(loan, dict)
        and isinstance(loan.get("sha256"), str)
        and isinstance(loan.get("tensors"), dict)
        and all(isinstance(name, str) for name in loan["tensors"].values())
        for loan in loans.values()
    ):
        return loans
    raise CheckpointError(
        f"{card_path}: its section 'borrowed' must hold sha256 and tensors of each lender; fetch or export it again"
    )
