"""Small crystals for the tests of energies."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays


def fcc(number: int, length: float, *, rattle: float = 0.0, seed: int = 0) -> CrystalArrays:
    """Four atoms of one element in a cube (Å), displaced by normal numbers (Å)."""
    coords = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    coords = coords + np.random.default_rng(seed).normal(0, rattle, coords.shape) / length
    return CrystalArrays(np.full(4, number), coords, length * np.eye(3))


def packed(arrays: list[CrystalArrays]) -> CrystalBatch:
    """In float64, which finite differences need."""
    batch = CrystalBatch.from_arrays(arrays)
    return CrystalBatch(
        atomic_numbers=batch.atomic_numbers,
        frac_coords=torch.from_numpy(np.concatenate([coords for _, coords, _ in map(astuple, arrays)])),
        lattice=torch.from_numpy(np.stack([lattice for _, _, lattice in map(astuple, arrays)])),
        num_atoms=batch.num_atoms,
    )


def argon() -> CrystalBatch:
    """Three crystals off their minimum, of one, four and two atoms, one of them in a skew, left-handed cell."""
    skew = np.array([[0.0, 2.9, 0.4], [3.1, 0.0, 0.0], [1.2, 0.3, 4.0]])
    assert np.linalg.det(skew) < 0
    return packed(
        [
            CrystalArrays(np.array([18]), np.array([[0.3, 0.2, 0.9]]), 2.7 * np.eye(3) + 0.1),
            fcc(18, 4.1, rattle=0.1),
            CrystalArrays(np.array([18, 36]), np.array([[0.1, 0.0, 0.0], [0.55, 0.5, 0.48]]), skew),
        ]
    )
