"""Properties from an exported model: `load_exported("model.pt2").predict(atoms)`, with torch, numpy and ASE alone.

The file holds a predictor at one fidelity, its baseline added back (`export.py` wrote it), and a card that says what
it predicts. Crystals are brought to the canonical form that it was trained on. `.pt2` and `.pt` files are programs
of torch: open only those that you trust. Needs none of the packages that training needs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from latentite.base.files import parse_json
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.elements import symbol_of
from latentite.energy.dispersion import Dispersion, dispersion_energy

if TYPE_CHECKING:
    from ase import Atoms

FORMAT = 1
CARD = "latentite.json"
"""Name of the card inside the file."""
SUFFIXES = {"pt2": ".pt2", "torchscript": ".pt", "safetensors": ".safetensors"}

Prediction = dict[str, float | str]
Padded = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class ExportedPredictor:
    """A model read from a file; crystals in, properties out."""

    model: Any
    """(atomic_numbers [crystal slot], frac_coords [crystal slot 3], lattice [crystal 3 3]) -> [crystal target]."""
    card: dict[str, Any]

    @property
    def targets(self) -> list[str]:
        """Names of what it predicts; `card["units"]` has their units."""
        return list(self.card["targets"])

    @overload
    def predict(self, atoms: Atoms) -> Prediction: ...
    @overload
    def predict(self, atoms: Sequence[Atoms], *, batch_size: int = ...) -> list[Prediction]: ...

    def predict(self, atoms: Any, *, batch_size: int = 64) -> Any:
        """Every target by name; of a categorical one the name of the likeliest class.

        Args:
            atoms: a periodic crystal in any cell, or several.
            batch_size: crystals at once; the result does not depend on it.

        Raises:
            ValueError: for what is no crystal, or naming an element that the model has no baseline for.
        """
        from ase import Atoms

        if isinstance(atoms, Atoms):
            return self.predict([atoms])[0]
        crystals = [_arrays(item, position, self.card) for position, item in enumerate(atoms)]
        canonical = canonicalize_many(crystals)
        rows: list[list[float]] = []
        with torch.no_grad():
            for start in range(0, len(canonical), batch_size):
                rows += self.model(*pad(canonical[start : start + batch_size])).double().tolist()
        return [self._named(row, item) for row, item in zip(rows, atoms, strict=True)]

    def _named(self, row: Sequence[float], atoms: Atoms) -> Prediction:
        classes = self.card["classes"]
        named: Prediction = {
            name: classes[name][int(value)] if name in classes else value
            for name, value in zip(self.targets, row, strict=True)
        }
        if (added := self.card["dispersion"]) is not None:
            energy = dispersion_energy(Dispersion(**added["d3bj"]), atoms)
            share = energy / len(atoms) if added["extent"] == "per_atom" else energy
            named[added["target"]] = float(named[added["target"]]) + share
        return named


def load_exported(path: str | Path) -> ExportedPredictor:
    """A model that `latentite export` wrote, on the CPU; the format is told by the ending.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no exported model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"an exported model must be an existing file, got {path}")
    readers = {".pt2": _read_pt2, ".pt": _read_torchscript, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"an exported model must end in {', '.join(readers)}, got {path}")
    try:
        if path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
            raise ValueError("no zip archive")
        model, text = readers[path.suffix](path)
        card = parse_json(text)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} must be a model written by `latentite export`, got {error!r}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{path} must be an exported model of format {FORMAT}; export it again")
    return ExportedPredictor(model, card)


def pad(crystals: Sequence[CrystalArrays]) -> Padded:
    """Input of a model: atomic number 0 in the slots that smaller crystals leave."""
    num_slots = max(crystal.num_atoms for crystal in crystals)
    atomic_numbers = torch.zeros(len(crystals), num_slots, dtype=torch.long)
    frac_coords = torch.zeros(len(crystals), num_slots, 3)
    for row, crystal in enumerate(crystals):
        atoms = slice(crystal.num_atoms)
        atomic_numbers[row, atoms] = torch.from_numpy(crystal.atomic_numbers.astype(np.int64))
        frac_coords[row, atoms] = torch.from_numpy(crystal.frac_coords.astype(np.float32))
    # 1 - 1e-9 is below one in float64 and one in float32.
    frac_coords = torch.where(frac_coords >= 1.0, frac_coords - 1.0, frac_coords)
    lattice = torch.from_numpy(np.stack([crystal.lattice for crystal in crystals]).astype(np.float32))
    return atomic_numbers, frac_coords, lattice


def _arrays(atoms: Atoms, position: int, card: dict[str, Any]) -> CrystalArrays:
    name = f"crystal {position} ({atoms.get_chemical_formula()})"
    cell, positions = np.asarray(atoms.cell, dtype=float), np.asarray(atoms.positions, dtype=float)
    if (
        not len(atoms)
        or not atoms.pbc.all()
        or not np.isfinite(positions).all()
        or not np.isfinite(cell).all()
    ):
        raise ValueError(
            f"{name} must be a crystal: atoms at finite places, periodic in all three directions"
        )
    if abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError(f"{name} must have a cell with a volume, got {cell.tolist()}")
    if unknown := sorted(set(atoms.numbers.tolist()) - set(card["elements"])):
        symbols = ", ".join(symbol_of(number) for number in unknown)
        raise ValueError(
            f"{name}: the model has no baseline for {symbols} at fidelity {card['fidelity']}; "
            "its training split had no such element"
        )
    coords = np.linalg.solve(cell.T, positions.T).T
    return CrystalArrays(np.asarray(atoms.numbers, dtype=np.int64), coords, cell)


def _read_pt2(path: Path) -> tuple[Any, str]:
    extra = {CARD: ""}
    return torch.export.load(path, extra_files=extra).module(), extra[CARD]


def _read_torchscript(path: Path) -> tuple[Any, str]:
    extra = {CARD: ""}
    return torch.jit.load(str(path), map_location="cpu", _extra_files=extra), extra[CARD]


def _read_safetensors(path: Path) -> tuple[Any, str]:
    """Weights alone: the network is built from the card's config, so this one needs our networks too."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from latentite.base.plain import from_plain
    from latentite.checkpoint import network_of
    from latentite.nn.fidelity_model import FidelityModel
    from latentite.nn.predictor import PropertyPredictor
    from latentite.nn.predictor_config import PredictorConfig

    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {})[CARD]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    card = parse_json(text)
    if not isinstance(card, dict):
        raise ValueError(f"its card must be an object, got {type(card).__name__}")
    settings, index = from_plain(PredictorConfig, card["config"]), card["fidelity_index"]
    if type(index) is not int or not 0 <= index < settings.num_fidelities:
        raise ValueError(f"fidelity_index must be the place of a fidelity, got {index!r}")
    model = network_of(load_file(path), lambda: FidelityModel(PropertyPredictor(settings), index), path)
    return model.eval(), text
