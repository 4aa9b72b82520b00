"""The data module: conditions, features, positions."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import tiny_split

from latentite.data.cache import write_dataset
from latentite.data.properties import derive
from latentite.training.datamodule import CrystalDataModule, DataConfig, attach_features, load


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("train", 1), ("val", 2)):
        write_dataset(tmp_path / f"{name}.safetensors", tiny_split(20, seed=seed))
    return tmp_path


def test_a_folder_is_taken_for_itself_or_for_the_folder_of_its_name_inside(folder):
    for data_dir, name in ((folder, "mine"), (folder.parent, folder.name)):
        splits = load(DataConfig(name=name, data_dir=data_dir))
        assert {key: len(split) for key, split in splits.items()} == {"train": 20, "val": 20}


def test_max_crystals_takes_the_first_and_changes_the_hash(folder):
    whole, part = (load(DataConfig(data_dir=folder, max_crystals=n))["train"] for n in (None, 5))
    assert part.ids == whole.ids[:5]
    assert part.crystals.num_atoms.equal(whole.crystals.num_atoms[:5])
    assert part.content_hash != whole.content_hash


def test_a_condition_that_is_no_label_is_refused(folder):
    with pytest.raises(ValueError, match="band_gap is not in train; there are none"):
        load(DataConfig(data_dir=folder, target_condition="band_gap"))


def test_what_can_be_computed_from_the_crystals_needs_no_label(folder):
    train = load(DataConfig(data_dir=folder, target_condition=["density", "space_group"]))["train"]
    crystals = train.crystals
    assert crystals.properties["density"].equal(derive("density", crystals))
    assert set(crystals.properties) == {"density", "space_group"}
    assert train.content_hash != load(DataConfig(data_dir=folder))["train"].content_hash


def test_features_follow_their_atoms(tmp_path):
    split = tiny_split(10, seed=1)
    features = torch.arange(split.crystals.total_atoms).float()[:, None]
    path = tmp_path / "train.safetensors"
    save_file({"features": features}, path, metadata={"content_hash": split.content_hash})
    chosen = attach_features(split, path).crystals.select(torch.tensor([7]))
    first = int(split.crystals.num_atoms[:7].sum())
    assert chosen.atom_features[:, 0].tolist() == list(range(first, first + int(chosen.num_atoms)))
    with pytest.raises(ValueError, match="of the split tiny-2, got"):
        attach_features(tiny_split(10, seed=2), path)


def test_a_loader_goes_on_where_it_was_only_in_the_same_epoch():
    config = DataConfig(name="tiny", batch_size=4)
    splits = {"train": tiny_split(20, seed=1)}
    loader = CrystalDataModule(config, splits=splits).train_dataloader()
    loader.set_epoch(2)
    walk = iter(loader)
    next(walk), next(walk)
    state = loader.state_dict()
    rest = [batch.atomic_numbers for batch in walk]

    again = CrystalDataModule(config, splits=splits).train_dataloader()
    again.load_state_dict(state)
    again.set_epoch(2)
    found = [batch.atomic_numbers for batch in again]
    assert len(found) == len(rest) == 3
    assert all(a.equal(b) for a, b in zip(found, rest, strict=True))
    again.load_state_dict(state)
    again.set_epoch(3)
    assert len(list(again)) == 5
