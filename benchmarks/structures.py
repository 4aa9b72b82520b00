"""Speed of turning what the decoder says into pymatgen structures and ASE atoms.

python benchmarks/structures.py
"""

from __future__ import annotations

import json
import time

import torch
from vae import mp_20_like

from latentite import lattice as lat
from latentite.nn.vae import CoordinateHead, DecodedCrystals


def main() -> None:
    """Print one JSON line."""
    torch.set_num_threads(1)
    crystals = mp_20_like(4096)
    decoded = DecodedCrystals(
        num_atoms=crystals.num_atoms,
        element_logits=torch.randn(crystals.total_atoms, 100),
        coordinates=torch.randn(crystals.total_atoms, 6),
        coordinate_head=CoordinateHead.CIRCLE,
        scaled_lengths=lat.scaled_lengths(crystals.lengths, crystals.num_atoms),
        angles_radians=torch.deg2rad(crystals.angles),
    )
    rates = {}
    for name in ("to_structures", "to_atoms"):
        getattr(decoded.to_crystals().select(torch.arange(64)), name)()  # imports
        start = time.perf_counter()
        found = getattr(decoded.to_crystals(), name)()
        rates[f"{name}_per_s"] = round(len(found) / (time.perf_counter() - start))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
