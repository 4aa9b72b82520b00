"""A data set by orbits: every crystal counted, the cache by content, the same result from any number of workers."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, content_hash
from latentite.symmetry import dataset as module
from latentite.symmetry.dataset import EncodedDataset, encode_dataset, encode_dataset_p1
from latentite.symmetry.orbits import OrbitBatch


@pytest.fixture
def crystals(rocksalt: CrystalArrays, perovskite: CrystalArrays) -> CrystalDataset:
    """Rock salt, two atoms on one site (which have no description), perovskite."""
    on_one_site = CrystalArrays(np.array([11, 17]), np.zeros((2, 3)), 4.0 * np.eye(3))
    batch = CrystalBatch.from_arrays([rocksalt, on_one_site, perovskite])
    batch = batch.with_properties({"band_gap": torch.tensor([5.0, float("nan"), 1.0])})
    ids = ("salt", "nothing", "perovskite")
    return CrystalDataset(crystals=batch, ids=ids, content_hash=content_hash(batch, ids, {}))


def assert_equal(first: EncodedDataset, second: EncodedDataset) -> None:
    for field in dataclasses.fields(OrbitBatch):
        one, other = getattr(first.orbits, field.name), getattr(second.orbits, field.name)
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
        else:
            assert torch.equal(one, other)
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.reductions, second.reductions)
    assert first.rejections == second.rejections
    assert first.content_hash == second.content_hash


def test_every_crystal_is_described_or_rejected_with_its_reason(
    crystals: CrystalDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encoded = encode_dataset(crystals, workers=1, cache_dir=tmp_path)
    assert encoded.rows.tolist() == [0, 2]
    assert encoded.orbits.space_group.tolist() == [225, 221]
    assert encoded.orbits.properties["band_gap"].tolist() == [5.0, 1.0]
    (rejection,) = encoded.rejections
    assert (rejection.row, rejection.id) == (1, "nothing")
    assert "moyopy finds no symmetry" in rejection.reason
    assert "3 crystals = 2 described by orbits + 1 rejected (1: moyopy" in caplog.text


def test_reductions_make_short_cells_of_the_primitive_ones(crystals: CrystalDataset, tmp_path: Path) -> None:
    encoded = encode_dataset(crystals, workers=1, cache_dir=tmp_path)
    reduced = encoded.reductions.double() @ encoded.orbits.primitive_lattices()
    assert torch.linalg.det(encoded.reductions.double()).abs().tolist() == [1.0, 1.0]
    np.testing.assert_allclose(reduced[0].norm(dim=1), 5.64 / np.sqrt(2), rtol=1e-6)


def test_what_is_encoded_comes_from_the_cache_the_next_time(
    crystals: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode_dataset(crystals, workers=1, cache_dir=tmp_path)
    monkeypatch.setattr(module, "encode_with_fallback", None)
    assert_equal(encode_dataset(crystals, workers=1, cache_dir=tmp_path), first)


def test_other_labels_and_names_of_the_same_crystals_encode_nothing(
    crystals: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels were in the key of the cache, so that another `data.target_condition` encoded all again, for minutes."""
    first = encode_dataset(crystals, workers=1, cache_dir=tmp_path)
    batch = crystals.crystals.with_properties({"density": torch.tensor([2.0, 3.0, 4.0])})
    ids = ("a", "b", "c")
    other = CrystalDataset(crystals=batch, ids=ids, content_hash=content_hash(batch, ids, {}))
    assert other.content_hash != crystals.content_hash
    monkeypatch.setattr(module, "encode_with_fallback", None)
    second = encode_dataset(other, workers=1, cache_dir=tmp_path)
    assert second.content_hash == first.content_hash
    assert second.orbits.coords.equal(first.orbits.coords)
    assert second.orbits.properties["density"].tolist() == [2.0, 4.0]
    assert [rejection.id for rejection in second.rejections] == ["b"]
    assert len(list((tmp_path / "orbits").iterdir())) == 1


def test_other_tolerances_modes_and_crystals_are_other_files(
    crystals: CrystalDataset, tmp_path: Path
) -> None:
    moved = dataclasses.replace(crystals.crystals, lattice=1.01 * crystals.crystals.lattice)
    encoded = [
        encode_dataset(crystals, workers=1, cache_dir=tmp_path),
        encode_dataset(crystals, symprec=0.05, workers=1, cache_dir=tmp_path),
        encode_dataset(crystals, fallback=None, workers=1, cache_dir=tmp_path),
        encode_dataset_p1(crystals, workers=1, cache_dir=tmp_path),
        encode_dataset(dataclasses.replace(crystals, crystals=moved), workers=1, cache_dir=tmp_path),
    ]
    assert len({one.content_hash for one in encoded}) == 5
    assert len(list((tmp_path / "orbits").iterdir())) == 5


def test_a_damaged_file_of_the_cache_is_made_again(
    crystals: CrystalDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode_dataset(crystals, workers=1, cache_dir=tmp_path)
    (file,) = (tmp_path / "orbits").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_equal(encode_dataset(crystals, workers=1, cache_dir=tmp_path), first)
    assert "is damaged and is made again" in caplog.text


def test_the_number_of_workers_changes_nothing(crystals: CrystalDataset, tmp_path: Path) -> None:
    batch = crystals.crystals.select(torch.arange(3).repeat(50))
    ids = tuple(map(str, range(150)))
    many = CrystalDataset(crystals=batch, ids=ids, content_hash="many")
    one = encode_dataset(many, workers=1, use_cache=False)
    assert_equal(encode_dataset(many, workers=2, use_cache=False), one)
    assert len(one.rejections) == 50


def test_a_tolerance_that_is_not_positive_is_refused(crystals: CrystalDataset) -> None:
    with pytest.raises(ValueError, match="symprec must be a positive number of Å, got 0"):
        encode_dataset(crystals, symprec=0.0, use_cache=False)
    with pytest.raises(ValueError, match="fallback must be a positive number of Å, got -1"):
        encode_dataset(crystals, fallback=-1.0, use_cache=False)


def test_without_symmetry_each_crystal_has_as_many_orbits_as_atoms(
    crystals: CrystalDataset, tmp_path: Path
) -> None:
    encoded = encode_dataset_p1(crystals, workers=1, cache_dir=tmp_path)
    assert encoded.orbits.num_orbits.tolist() == crystals.crystals.num_atoms.tolist()
    assert set(encoded.orbits.space_group.tolist()) == {1}


def test_orbits_are_packed_and_unpacked_without_a_change(crystals: CrystalDataset) -> None:
    orbits = encode_dataset(crystals, workers=1, use_cache=False).orbits
    again = OrbitBatch.pack(orbits.unpack())
    assert torch.equal(again.coords, orbits.coords)
    assert torch.equal(again.position, orbits.position)
    both = OrbitBatch.concatenate([orbits, orbits]).select(torch.tensor([3, 0]))
    assert both.space_group.tolist() == [221, 225]
    with pytest.raises(ValueError, match="at least one batch"):
        OrbitBatch.concatenate([])
