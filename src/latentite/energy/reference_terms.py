"""What the difference between a potential's energies and a table's is made of: the columns of the fit."""

from __future__ import annotations

import warnings
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float

from latentite.crystal import CrystalBatch
from latentite.elements import ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS
from latentite.nn.segment import segment_count

_ANIONS = tuple(ATOMIC_NUMBER[s] for s in ["N", "O", "F", "Si", "S", "Cl", "Se", "Br", "Sb", "Te", "I"])
_U_METALS = tuple(ATOMIC_NUMBER[s] for s in ["V", "Cr", "Mn", "Fe", "Co", "Ni", "Mo", "W"])
_U_ANIONS = tuple(ATOMIC_NUMBER[s] for s in ["O", "F"])


class ReferenceTerms(StrEnum):
    """What the difference between potential and table depends on."""

    ELEMENTS = "elements"
    """The fraction of each element."""
    CORRECTIONS = "corrections"
    """Also the fraction of the most electronegative element where MP2020 corrects it, and of V, Cr, Mn, Fe, Co,
    Ni, Mo and W in oxides and fluorides; for a potential that predicts uncorrected energies."""


def features(crystals: CrystalBatch, terms: ReferenceTerms) -> Float[np.ndarray, "crystal term"]:
    """Fractions of the elements, and of what the corrections act on."""
    count = len(crystals)
    index, numbers = crystals.crystal_index.cpu(), crystals.atomic_numbers.cpu()
    amounts = segment_count(index * NUM_ELEMENTS + numbers - 1, count * NUM_ELEMENTS)
    fractions = amounts.reshape(count, NUM_ELEMENTS).double() / crystals.num_atoms.cpu()[:, None]
    if terms == ReferenceTerms.ELEMENTS:
        return fractions.numpy()
    strength = torch.from_numpy(_electronegativities())
    leader = torch.where(fractions > 0, strength, -1.0).argmax(1) + 1
    is_compound = (fractions > 0).sum(1) > 1
    anions = [
        fractions[:, n - 1] * ((leader == n) & is_compound) for n in _ANIONS
    ]  # an element alone is not an anion
    metals = [
        fractions[:, n - 1] * ((leader == anion) & is_compound) for anion in _U_ANIONS for n in _U_METALS
    ]
    return torch.cat([fractions, torch.stack([*anions, *metals], dim=1)], dim=1).numpy()


def _electronegativities() -> Float[np.ndarray, " element"]:
    """Pauling's; 0 where there is none."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each element without
        return np.nan_to_num(np.array([float(Element(symbol).X) for symbol in SYMBOLS]))
