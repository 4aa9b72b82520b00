"""A trained predictor at one fidelity as one file that runs elsewhere: `latentite export`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from latentite import __version__
from latentite.base.files import replacing
from latentite.checkpoint import CheckpointRecord, plain
from latentite.data.canonical import CANONICAL_VERSION
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.energy.dispersion import d3bj
from latentite.nn.baselines import Extent
from latentite.nn.fidelity_model import FidelityModel
from latentite.nn.predictor import PropertyPredictor
from latentite.predictor.exported import CARD, FORMAT, SUFFIXES

_HAS_DISPERSION = re.compile(r"d[234]\b|d[34]\(|vdw|vv10|mbd|-ts\b|experiment|\bexp\b", re.IGNORECASE)
_NO_TOTAL = re.compile(r"formation|hull|gap|cohesive|atomi[sz]ation", re.IGNORECASE)


def export_predictor(
    network: PropertyPredictor,
    record: CheckpointRecord,
    out: str | Path,
    *,
    format: str,
    fidelity: str | None = None,
    dispersion: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one file, atomically.

    Args:
        network: of `load_predictor`.
        record: of the same checkpoint.
        out: the file; its ending must be that of the format.
        format: `pt2` (torch.export), `torchscript` (a trace) or `safetensors` (weights and config).
        fidelity: whose labels the model gives; None for the reference.
        dispersion: of `plan_dispersion`; None for none.

    Returns:
        The card that stands in the file.

    Raises:
        ValueError: for an unknown fidelity or format, another ending, or a network that cannot be exported.
    """
    out = Path(out)
    if format not in SUFFIXES or out.suffix != SUFFIXES[format]:
        wanted = ", ".join(f"{name} ({suffix})" for name, suffix in SUFFIXES.items())
        raise ValueError(
            f"format and ending of the file must be one of {wanted}, got {format} and {out.name}"
        )
    model = FidelityModel(network, _index(network, fidelity))
    card = _card(network, record, model, dispersion)
    example = _example()
    text = json.dumps(card, ensure_ascii=False)
    writers: dict[str, Callable[[Path], None]] = {
        "pt2": lambda path: _write_pt2(model, example, path, text),
        "torchscript": lambda path: _write_torchscript(model, example, path, text),
        "safetensors": lambda path: _write_safetensors(model, path, text),
    }
    with replacing(out) as temporary:
        named = temporary.with_suffix(out.suffix)  # torch tells the format by the ending
        try:
            writers[format](named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    return card


def plan_dispersion(
    network: PropertyPredictor,
    record: CheckpointRecord,
    *,
    method: str,
    target: str,
    fidelity: str | None = None,
    labels_have_none: bool = False,
) -> dict[str, Any]:
    """What of D3(BJ) is added to which target, where that makes sense.

    Args:
        network: of `load_predictor`.
        record: of the same checkpoint, which says whether the labels contain dispersion.
        method: functional, as dftd3 spells it.
        target: a total energy.
        fidelity: None for the reference.
        labels_have_none: the user's word that the labels contain no dispersion, where the checkpoint does not say.

    Raises:
        ValueError: when the labels contain dispersion or nobody says that they do not, for a target that is no
            total energy, or for a functional without parameters.
    """
    if target not in network.config.targets:
        raise ValueError(f"a target must be one of {', '.join(network.config.targets)}, got {target!r}")
    extent = network.config.extent(target)
    if _NO_TOTAL.search(target) or target in network.config.classes or extent is Extent.NONE:
        raise ValueError(
            f"D3 adds to total energies only, got {target}: in differences such as formation energies the "
            "dispersion of the other side would be missing (and a total energy has an extent, per_atom or total)"
        )
    name = _name(network, _index(network, fidelity))
    fidelity_card = record.data.fidelities.get(name)
    said = None if fidelity_card is None else fidelity_card.dispersion
    if said or _HAS_DISPERSION.search(name):
        raise ValueError(f"the labels of {name} contain dispersion already; adding D3 would count it twice")
    if said is None and not labels_have_none:
        raise ValueError(
            f"nobody says whether the labels of {name} contain dispersion; train with "
            f"data.fidelities.{name}.dispersion=false, or give --labels-without-dispersion"
        )
    return {"target": target, "extent": extent.value, "d3bj": asdict(d3bj(method))}


def _index(network: PropertyPredictor, fidelity: str | None) -> int:
    known = network.config.fidelities
    if fidelity is None:
        return network.config.reference_index
    if fidelity not in known:
        raise ValueError(
            f"fidelity must be one of {', '.join(known) or 'none: it has one only'}, got {fidelity!r}"
        )
    return known.index(fidelity)


def _name(network: PropertyPredictor, index: int) -> str:
    return network.config.fidelities[index] if network.config.fidelities else "labels"


def _card(
    network: PropertyPredictor,
    record: CheckpointRecord,
    model: FidelityModel,
    dispersion: dict[str, Any] | None,
) -> dict[str, Any]:
    config = network.config
    has_all = model.baseline.isfinite().all(dim=1)
    elements = [number for number in range(1, NUM_ELEMENT_CLASSES) if bool(has_all[number])]
    return plain(
        {
            "format": FORMAT,
            "targets": config.targets,
            "units": config.units,
            "classes": config.classes,
            "fidelity": _name(network, model.fidelity),
            "fidelity_index": model.fidelity,
            "elements": elements,
            "dispersion": dispersion,
            "canonical_version": CANONICAL_VERSION,
            "source": {"file": record.path.name, "sha256": record.sha256},
            "versions": {"latentite": __version__, "torch": str(torch.__version__)},
            "config": record.config,
        }
    )


def _example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two crystals of two and three atoms: sizes that no constant of the network has."""
    numbers = torch.tensor([[1, 8, 0], [3, 8, 8]])
    coords = torch.linspace(0.0, 0.9, 18).reshape(2, 3, 3)
    return numbers, coords, torch.stack([3.0 * torch.eye(3), 4.0 * torch.eye(3)])


def _write_pt2(model: FidelityModel, example: tuple[torch.Tensor, ...], path: Path, card: str) -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        model, example, dynamic_shapes=({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto})
    )
    torch.export.save(program, path, extra_files={CARD: card})


def _write_torchscript(
    model: FidelityModel, example: tuple[torch.Tensor, ...], path: Path, card: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated is said in docs/fidelities.md
        traced = torch.jit.trace(model, example, check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={CARD: card})


def _write_safetensors(model: FidelityModel, path: Path, card: str) -> None:
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # the user's own; safetensors would let nobody else read the file
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, path, {"format": "pt", CARD: card})
    path.chmod(mode)
