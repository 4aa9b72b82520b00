"""Properties computed from the crystals themselves, on demand: density, space group, chemical system, ...

`derive` serves batches of tensors; `derive_rows` serves rows of arrays, without torch.
Both run the same functions on packed arrays.
"""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.elements import COMPOSITION_WIDTH, SYMBOLS
from latentite.formulas import Composition, alphabetical_formula, chemical_system, reduced

if TYPE_CHECKING:
    from spglib import SpglibDataset
    from torch import Tensor

    from latentite.crystal import CrystalBatch

logger = logging.getLogger(__name__)

SYMPREC = 0.1
"""Å; tolerance of the space group. The Materials Project's own value: with it 99.6 % of 900 rows of MP-20 got
the number in their column `spacegroup.number`, with 0.01 Å, the usual default of the libraries, 98.4 %."""

GRAMS_PER_CUBIC_CM = 1.66053906660
"""Density of 1 g/mol per Å^3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedArrays:
    """`CrystalBatch` without torch."""

    atomic_numbers: Int[np.ndarray, " atom"]
    frac_coords: Float[np.ndarray, "atom 3"]
    lattice: Float[np.ndarray, "crystal 3 3"]
    """Row vectors, Å."""
    num_atoms: Int[np.ndarray, " crystal"]

    @property
    def first_atom(self) -> Int[np.ndarray, " crystal"]:
        """Position of each crystal's first atom."""
        return np.cumsum(self.num_atoms) - self.num_atoms

    @property
    def volume(self) -> Float[np.ndarray, " crystal"]:
        """Å^3."""
        return np.abs(np.linalg.det(self.lattice))

    def species(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Crystal, atomic number and count of every element of every crystal, in that order."""
        crystal_index = np.repeat(np.arange(len(self.num_atoms)), self.num_atoms)
        keys, counts = np.unique(crystal_index * 1000 + self.atomic_numbers, return_counts=True)
        return keys // 1000, keys % 1000, counts


Values = Float[np.ndarray, " crystal"] | list[str]


def derive(name: str, crystals: CrystalBatch, *, symprec: float = SYMPREC) -> Tensor | list[str]:
    """One property of every crystal: a float32 tensor [crystal], or a list of strings.

    Args:
        name: one of `DERIVED`.
        crystals: on any device; the result is on the CPU.
        symprec: Å; tolerance of the space group.

    Raises:
        ValueError: for an unknown name, with near ones suggested.
    """
    import torch

    values = _function(name)(_packed(crystals), symprec)
    return values if isinstance(values, list) else torch.from_numpy(values.astype(np.float32))


def derive_rows(
    names: Sequence[str], crystals: Sequence[CrystalArrays], *, symprec: float = SYMPREC
) -> list[dict[str, float | str]]:
    """The named properties of each crystal, one dictionary per crystal.

    Raises:
        ValueError: for an unknown name, with near ones suggested.
    """
    functions = [_function(name) for name in names]
    if not crystals:
        return []
    packed = PackedArrays(
        atomic_numbers=np.concatenate([crystal.atomic_numbers for crystal in crystals]),
        frac_coords=np.concatenate([crystal.frac_coords for crystal in crystals]),
        lattice=np.stack([crystal.lattice for crystal in crystals]),
        num_atoms=np.array([crystal.num_atoms for crystal in crystals]),
    )
    columns = []
    for function in functions:
        values = function(packed, symprec)
        columns.append(values if isinstance(values, list) else values.tolist())
    if not columns:
        return [{} for _ in crystals]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def space_group_number(
    atomic_numbers: Int[np.ndarray, " atom"],
    frac_coords: Float[np.ndarray, "atom 3"],
    lattice: Float[np.ndarray, "3 3"],
    *,
    symprec: float = SYMPREC,
) -> int | None:
    """Space group of one crystal, 1 to 230; None where the search fails. Arguments: see `symmetry_dataset`."""
    dataset = symmetry_dataset(atomic_numbers, frac_coords, lattice, symprec=symprec)
    return None if dataset is None else int(dataset.number)


def symmetry_dataset(
    atomic_numbers: Int[np.ndarray, " atom"],
    frac_coords: Float[np.ndarray, "atom 3"],
    lattice: Float[np.ndarray, "3 3"],
    *,
    symprec: float = SYMPREC,
) -> SpglibDataset | None:
    """Symmetry of one crystal by spglib (Togo et al. 2024, Sci. Technol. Adv. Mater. Methods 4, 2384822); None where
    its search fails.

    moyopy is ten times as fast on relaxed crystals, but on generated ones at generous tolerances its search may
    never end and takes all memory (33 of 794 cells of random shape, and sound-looking samples of our own models, so
    no test of the cell can tell beforehand).

    Args:
        atomic_numbers: or any integers that tell the kinds of atoms apart.
        frac_coords: fractional coordinates.
        lattice: row vectors, Å.
        symprec: Å; how far an atom may be from its symmetric place.
    """
    import spglib

    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # else its C code writes to the terminal
    cell = (lattice.tolist(), frac_coords.tolist(), atomic_numbers.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's coming change from None to an exception
        try:
            return spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None


def composition_vectors(crystals: CrystalBatch) -> Tensor:
    """Fraction of the atoms that each element makes up: [crystal, COMPOSITION_WIDTH], hydrogen in column 0.

    Raises:
        ValueError: for an element beyond fermium.
    """
    import torch

    packed = _packed(crystals)
    crystal, numbers, counts = packed.species()
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= COMPOSITION_WIDTH:
        raise ValueError(
            f"atomic numbers must be 1 to {COMPOSITION_WIDTH}, got {numbers.min()} to {numbers.max()}"
        )
    vectors = torch.zeros(len(packed.num_atoms), COMPOSITION_WIDTH)
    fractions = counts / packed.num_atoms[crystal]
    vectors[torch.from_numpy(crystal), torch.from_numpy(numbers - 1)] = torch.from_numpy(fractions).float()
    return vectors


# ---------------------------------------------------------------------------------------- functions


def _num_elements(crystals: PackedArrays, symprec: float) -> Values:
    return np.bincount(crystals.species()[0], minlength=len(crystals.num_atoms)).astype(np.float64)


def _volume_per_atom(crystals: PackedArrays, symprec: float) -> Values:
    """Å^3."""
    return crystals.volume / crystals.num_atoms


def _density(crystals: PackedArrays, symprec: float) -> Values:
    """g/cm^3."""
    crystal, numbers, counts = crystals.species()
    masses = np.bincount(
        crystal, weights=_element_table()[0][numbers] * counts, minlength=len(crystals.num_atoms)
    )
    return masses / crystals.volume * GRAMS_PER_CUBIC_CM


def _electronegativity_difference(crystals: PackedArrays, symprec: float) -> Values:
    """Largest minus smallest Pauling electronegativity; NaN with an element that has none (He, Ne, Ar)."""
    crystal, numbers, _ = crystals.species()
    values = _element_table()[1][numbers]
    starts = np.searchsorted(crystal, np.arange(len(crystals.num_atoms)))
    if not len(starts):
        return np.zeros(0)
    return np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts)


def _space_group(crystals: PackedArrays, symprec: float) -> Values:
    """Number, 1 to 230; NaN where none is found."""
    groups = np.full(len(crystals.num_atoms), np.nan)
    for position, (start, count) in enumerate(zip(crystals.first_atom, crystals.num_atoms, strict=True)):
        atoms = slice(start, start + count)
        number = space_group_number(
            crystals.atomic_numbers[atoms],
            crystals.frac_coords[atoms],
            crystals.lattice[position],
            symprec=symprec,
        )
        if number is None:
            logger.warning("crystal %d has no space group at symprec %g Å", position, symprec)
        else:
            groups[position] = number
    return groups


def _chemical_system(crystals: PackedArrays, symprec: float) -> Values:
    """Symbols in alphabetical order, as in `Fe-Li-O`."""
    return [chemical_system(composition) for composition in _compositions(crystals)]


def _composition(crystals: PackedArrays, symprec: float) -> Values:
    """Reduced formula, the elements in alphabetical order, as in `FeLiO2`."""
    return [alphabetical_formula(composition) for composition in _compositions(crystals)]


DERIVED: dict[str, Callable[[PackedArrays, float], Values]] = {
    "num_elements": _num_elements,
    "density": _density,
    "volume_per_atom": _volume_per_atom,
    "space_group": _space_group,
    "chemical_system": _chemical_system,
    "composition": _composition,
    "electronegativity_difference": _electronegativity_difference,
}
"""Every property that `derive` knows: (crystals, symprec in Å) -> one value per crystal."""


def _function(name: str) -> Callable[[PackedArrays, float], Values]:
    function = DERIVED.get(name)
    if function is None:
        near = difflib.get_close_matches(name, DERIVED, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"take one of {', '.join(DERIVED)}"
        raise ValueError(f"a derived property must be one that Latentite computes, got {name!r}; {hint}")
    return function


def _compositions(crystals: PackedArrays) -> list[Composition]:
    crystal, numbers, counts = crystals.species()
    result: list[dict[int, int]] = [{} for _ in crystals.num_atoms]
    for owner, number, count in zip(crystal.tolist(), numbers.tolist(), counts.tolist(), strict=True):
        result[owner][number] = count
    return [reduced(count) for count in result]


def _packed(crystals: CrystalBatch) -> PackedArrays:
    return PackedArrays(
        atomic_numbers=crystals.atomic_numbers.cpu().numpy(),
        frac_coords=crystals.frac_coords.detach().cpu().double().numpy(),
        lattice=crystals.lattice.detach().cpu().double().numpy(),
        num_atoms=crystals.num_atoms.cpu().numpy(),
    )


@lru_cache(maxsize=1)
def _element_table() -> tuple[Float[np.ndarray, " number"], Float[np.ndarray, " number"]]:
    """Mass (g/mol) and Pauling electronegativity (NaN where there is none) by atomic number from 0 on."""
    from pymatgen.core import Element

    elements = [Element(symbol) for symbol in SYMBOLS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every element without a value
        negativities = [float(element.X) for element in elements]
    masses = [float(element.atomic_mass) for element in elements]
    return np.array([np.nan, *masses]), np.array([np.nan, *negativities])
