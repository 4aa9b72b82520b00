"""A checkpoint is read as what it was written as, or refused with a sentence; nothing in it runs."""

from __future__ import annotations

from pathlib import Path

import torch

from fuzz.case import Case
from fuzz.oracles import LONGEST_MESSAGE, Outcome, place_of, problems_of_words, run_command
from latentite.checkpoint import CheckpointRecord


def judge_checkpoint(case: Case, source: Path, out: Path) -> tuple[list[str], dict[str, int]]:
    """Reads the file as a library's user and with a command."""
    found, findings = read(source)
    if case.is_same and found is not None:
        right, others = read(source.parent / "right" / source.name)
        findings += [f"right file: {other}" for other in others]
        if right is not None and (wrong := _difference(found, right)):
            findings.append(f"misread: {wrong}")
    outcome = run_command(_command(case.arguments[0], source, out))
    findings += problems_of_words(outcome)
    return findings, {"read": int(found is not None), "used": int(outcome.code == 0)}


def read(path: Path) -> tuple[CheckpointRecord | None, list[str]]:
    """The record, and what is wrong with the way in which it is refused."""
    from latentite import hub
    from latentite.checkpoint import read_checkpoint

    try:
        return read_checkpoint(hub.resolve(path)), []
    except Exception as error:  # noqa: BLE001  whatever comes out is judged
        outcome = Outcome(code=None, error=f"{type(error).__name__}: {error}", place=place_of(error))
        is_ours = type(error).__module__.startswith("latentite") or type(error) is ValueError
        if not isinstance(error, ValueError) or not is_ours:
            return None, problems_of_words(outcome)
        if "\n" in str(error) or len(str(error)) > LONGEST_MESSAGE or not str(error):
            return None, [f"message: must be one sentence, got {outcome.error:.300}"]
        return None, []


def _difference(found: CheckpointRecord, right: CheckpointRecord) -> str | None:
    for name in ("stage", "weights", "config", "metrics"):
        if getattr(found, name) != getattr(right, name):
            return f"{name} is {getattr(found, name)!r:.200} instead of {getattr(right, name)!r:.200}"
    ours, theirs = _without_origin(found), _without_origin(right)
    if ours != theirs:
        return f"data is {ours!r:.200} instead of {theirs!r:.200}"
    if found.state.keys() != right.state.keys():
        return f"other tensors: {sorted(found.state.keys() ^ right.state.keys())[:3]}"
    for name, tensor in found.state.items():
        other = right.state[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype or not torch.equal(tensor, other):
            return f"tensor {name} has other values"
    return None


def _without_origin(record: CheckpointRecord) -> dict[str, object]:
    """A file of other bytes, such as another date in its table of contents, has another hash."""
    data = record.data.to_plain()
    source = {name: value for name, value in data.get("source", {}).items() if name != "sha256"}
    return {**data, "source": source}


def _command(use: str, source: Path, out: Path) -> list[str]:
    crystals = str(source.parent / "crystals")
    if use == "predict":
        return ["predict", str(source), crystals, "--out", str(out / "table.csv"), "--device", "cpu"]
    if use == "sample":
        return ["sample", "--ckpt", str(source), "--out", str(out), "--num-samples", "2", "--steps", "2"]
    if use == "reconstruct":
        return ["vae", "reconstruct", str(source), crystals, "--out", str(out), "--device", "cpu"]
    return ["hub", "export", str(source), str(out / "weights.safetensors")]
