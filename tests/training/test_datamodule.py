"""The data module: conditions, features, positions."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import tiny_split

from latentite.data.dataset import attach_features, write_dataset
from latentite.data.fidelities import FidelityConfig
from latentite.data.properties import derive
from latentite.training.datamodule import CrystalDataModule, load
from latentite.training.settings import BatchBy, DataConfig


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


def test_max_atoms_leaves_larger_crystals_of_a_built_folder_out_and_says_how_many(folder, caplog):
    """A folder that was built with other limits was taken whole, whatever the setting said."""
    whole = load(DataConfig(data_dir=folder))["train"]
    sizes = whole.crystals.num_atoms
    with caplog.at_level(logging.WARNING, logger="latentite"):
        part = load(DataConfig(data_dir=folder, max_atoms=3))["train"]
    count = int((sizes > 3).sum())
    assert 0 < count < 20
    assert part.crystals.num_atoms.equal(sizes[sizes <= 3])
    assert part.ids == tuple(name for name, size in zip(whole.ids, sizes.tolist(), strict=True) if size <= 3)
    assert part.content_hash != whole.content_hash
    assert f"train: {count} of 20 crystals have more than data.max_atoms=3 atoms" in caplog.text
    assert load(DataConfig(data_dir=folder, max_atoms=6))["train"].content_hash == whole.content_hash


def test_max_atoms_that_leaves_nothing_is_refused(folder, tmp_path):
    large = tiny_split(40, seed=1)
    kept = large.crystals.num_atoms.argsort()[-3:]
    write_dataset(
        folder / "train.safetensors",
        replace(large, crystals=large.crystals.select(kept), ids=("a", "b", "c")),
    )
    with pytest.raises(ValueError, match=r"data\.max_atoms must be at least 6, .* split train, got 2"):
        load(DataConfig(data_dir=folder, max_atoms=2))


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


@pytest.fixture
def three_fidelities(tmp_path):
    """Folders of 400, 60 and 20 training rows; the labels say which fidelity they are of."""
    paths = {}
    for position, (name, count) in enumerate({"PBE": 400, "HSE": 60, "experiment": 20}.items()):
        split = tiny_split(count, seed=1)
        labels = {"energy": torch.full((count,), float(position))}
        ids = tuple(f"mp-{i}" for i in range(count))
        dataset = replace(split, crystals=split.crystals.with_properties(labels), ids=ids)
        write_dataset(tmp_path / name / "train.safetensors", dataset)
        paths[name] = tmp_path / name
    return paths


def fidelity_config(paths, **changes):
    weights = (3.0, 1.0, 0.5)
    fidelities = {
        name: FidelityConfig(path=path, weight=weight)
        for (name, path), weight in zip(paths.items(), weights, strict=True)
    }
    return DataConfig(properties=["energy"], fidelities=fidelities, reference_fidelity="PBE", **changes)


@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"bucketed": False}, {"batch_by": BatchBy.ATOMS}])
def test_an_epoch_draws_each_fidelity_by_its_weight(three_fidelities, changes):
    loader = CrystalDataModule(fidelity_config(three_fidelities, **changes)).train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        drawn = Counter()
        for batch in loader:
            labels = batch.properties
            assert labels["energy"].equal(labels["fidelity"])
            drawn.update(labels["fidelity"].tolist())
            if "batch_by" in changes:
                assert int(batch.num_atoms.max()) * len(batch) <= 4096
        assert drawn == {0.0: 320, 1.0: 107, 2.0: 53}  # 480 rows in shares of 6, 2 and 1 ninths


def test_the_processes_of_a_run_draw_the_weights_together(three_fidelities):
    module = CrystalDataModule(fidelity_config(three_fidelities, batch_size=16))
    loader = module.train_dataloader()
    whole = [index.tolist() for index in loader.batches(1)]
    loader.world_size, parts = 2, []
    for rank in range(2):
        loader.rank, loader._planned = rank, None
        parts.append([index.tolist() for index in loader.batches(1)])
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


def test_a_weighted_epoch_goes_on_exactly_where_it_was(three_fidelities):
    def loader():
        return CrystalDataModule(fidelity_config(three_fidelities, batch_size=16)).train_dataloader()

    first, again = loader(), loader()
    first.set_epoch(5)
    walk = iter(first)
    for _ in range(7):
        next(walk)
    again.load_state_dict(first.state_dict())
    again.set_epoch(5)
    for one, other in zip(walk, again, strict=True):
        assert one.frac_coords.equal(other.frac_coords)
        assert one.properties["fidelity"].equal(other.properties["fidelity"])


def test_without_weights_every_row_comes_once(three_fidelities):
    config = fidelity_config(three_fidelities)
    for fidelity in config.fidelities.values():
        fidelity.weight = None
    loader = CrystalDataModule(config).train_dataloader()
    assert torch.cat(loader.batches(0)).sort().values.tolist() == list(range(480))


def test_the_data_card_of_a_run_names_its_fidelities(three_fidelities):
    card = CrystalDataModule(fidelity_config(three_fidelities)).data_card()
    assert list(card.fidelities) == ["PBE", "HSE", "experiment"]
    assert card.reference_fidelity == "PBE"
    assert card.fidelities["HSE"].rows == {"train": 60, "val": 0, "test": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference_fidelity": "SCAN"},
            "must be one of data.fidelities \\(PBE, HSE, experiment\\), got 'SCAN'",
        ),
        ({"split_fractions": {"train": 0.5}}, "must sum to 1"),
        ({"split_seed": -1}, "split_seed must be 0 or more"),
    ],
)
def test_settings_of_fidelities_that_cannot_be_are_refused(three_fidelities, changes, message):
    fidelities = {name: FidelityConfig(path=path) for name, path in three_fidelities.items()}
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"fidelities": fidelities, **changes})
    with pytest.raises(ValueError, match="path must be an existing"):
        FidelityConfig(path=three_fidelities["PBE"] / "nowhere")
    with pytest.raises(ValueError, match="must not all have the weight 0"):
        DataConfig(fidelities={"PBE": FidelityConfig(path=three_fidelities["PBE"], weight=0.0)})
