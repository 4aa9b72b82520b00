"""Precomputed per-atom features of a foundation model, for the alignment loss of the VAE.

Compute them for `dataset.crystals.to_structures()`, whose atoms stand in the order of the data set, and keep them
with `write_atom_features`; `data.atom_features_path` names the folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from latentite.base.files import replacing
from latentite.data.dataset import CrystalDataset


def write_atom_features(path: Path, dataset: CrystalDataset, features: Float[Tensor, "atom feature"]) -> None:
    """Write features of every atom of a split, in its order, for `attach_features`.

    Atoms without features are given NaN, which the alignment loss leaves out.

    Args:
        path: `SPLIT.safetensors` in the folder of `data.atom_features_path`.
        dataset: the split.
        features: one row per atom.

    Raises:
        ValueError: when there are not as many rows as atoms.
    """
    from safetensors.torch import save_file

    if len(features) != dataset.crystals.total_atoms:
        raise ValueError(
            f"features must have one row per atom ({dataset.crystals.total_atoms}), got {len(features)}"
        )
    with replacing(path) as temporary:
        save_file(
            {"features": features.contiguous()}, temporary, metadata={"content_hash": dataset.content_hash}
        )


def attach_features(dataset: CrystalDataset, path: Path) -> CrystalDataset:
    """A split with the per-atom features of a file made by `write_atom_features`.

    Raises:
        ValueError: if the file is missing or was made for something else.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"atom_features_path must hold {path.name}, but {path} does not exist")
    with safe_open(path, framework="pt") as file:
        made_for = (file.metadata() or {}).get("content_hash")
        features = file.get_tensor("features").float()
    if made_for != dataset.content_hash or len(features) != dataset.crystals.total_atoms:
        raise ValueError(
            f"{path} must hold features of {dataset.crystals.total_atoms} atoms of the split "
            f"{dataset.content_hash}, got {len(features)} atoms of {made_for}; compute them again"
        )
    return replace(dataset, crystals=replace(dataset.crystals, atom_features=features))
