"""Size of a crystal GPT, and the bounds of what it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class GPTSize:
    """Size of the network."""

    d_model: int = 192
    num_layers: int = 6
    num_heads: int = 6
    dim_feedforward: int = 768
    dropout: float = 0.1
    num_mixtures: int = 8
    """Gaussians of the cell; not for `lattice_density: flow`."""
    num_coord_mixtures: int = 16
    """Components of each coordinate on the circle; not for `coord_density: bins`."""


@dataclass(kw_only=True, slots=True)
class GPTLimits:
    """Bounds of what the network may say: the ranges of its training data."""

    max_atoms: int = 52
    max_orbits: int = 52
    max_elements: int = 7
