"""Per-atom features: in the data set's order, tied to its content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset, attach_features, write_atom_features


def dataset_of(crystals: CrystalBatch, content_hash: str = "x") -> CrystalDataset:
    return CrystalDataset(
        crystals=crystals, ids=tuple(str(i) for i in range(len(crystals))), content_hash=content_hash
    )


def test_features_follow_their_atoms_into_batches(crystals: CrystalBatch, tmp_path: Path) -> None:
    dataset = dataset_of(crystals)
    features = torch.randn(crystals.total_atoms, 3)
    write_atom_features(tmp_path / "train.safetensors", dataset, features)
    read = attach_features(dataset, tmp_path / "train.safetensors")
    chosen = read.crystals.select(torch.tensor([4, 0]))
    parts = [features[crystals.crystal_index == i] for i in (4, 0)]
    assert chosen.atom_features is not None
    assert chosen.atom_features.equal(torch.cat(parts))


def test_features_of_something_else_are_refused(crystals: CrystalBatch, tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    dataset = dataset_of(crystals)
    with pytest.raises(ValueError, match="does not exist"):
        attach_features(dataset, path)
    with pytest.raises(ValueError, match="features must have one row per atom"):
        write_atom_features(path, dataset, torch.zeros(3, 4))
    write_atom_features(path, dataset, torch.zeros(crystals.total_atoms, 4))
    with pytest.raises(ValueError, match="atoms of the split other"):
        attach_features(dataset_of(crystals, "other"), path)
