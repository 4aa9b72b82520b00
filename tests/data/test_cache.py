"""Dataset files: what is written is read, whole or not at all."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from latentite.crystal import CrystalBatch
from latentite.data.dataset import (
    CrystalDataset,
    content_hash,
    read_dataset,
    read_rejections,
    write_dataset,
)
from latentite.data.readers.records import Rejection


@pytest.fixture
def dataset(crystals: CrystalBatch) -> CrystalDataset:
    gap = torch.arange(len(crystals), dtype=torch.float32)
    gap[3] = math.nan
    crystals = crystals.with_properties({"z_gap": gap, "a_kind": gap % 2})
    ids = tuple(f'id "{k}",\n Å' for k in range(len(crystals)))
    categories = {"a_kind": ("metal", "salt")}
    digest = content_hash(crystals, ids, categories)
    return CrystalDataset(crystals=crystals, ids=ids, categories=categories, content_hash=digest)


def assert_equal(first: CrystalDataset, second: CrystalDataset) -> None:
    assert (first.ids, first.categories, first.content_hash) == (
        second.ids,
        second.categories,
        second.content_hash,
    )
    assert list(first.crystals.properties) == list(second.crystals.properties)
    for name in ("atomic_numbers", "frac_coords", "lattice", "num_atoms"):
        left, right = getattr(first.crystals, name), getattr(second.crystals, name)
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    for name, values in first.crystals.properties.items():
        torch.testing.assert_close(values, second.crystals.properties[name], equal_nan=True, rtol=0, atol=0)


def test_what_is_written_is_read(dataset: CrystalDataset, tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.safetensors"
    rejections = [Rejection(source="a.csv", row=3, id="x", reason="partial occupancy: Fe:0.5 on one site")]
    write_dataset(path, dataset, rejections=rejections, notes={"canonical_version": "1"})
    assert_equal(dataset, read_dataset(path))
    assert read_rejections(path) == rejections
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata()["canonical_version"] == "1"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_empty_dataset_is_written_and_read(tmp_path: Path) -> None:
    crystals = CrystalBatch.from_arrays([])
    empty = CrystalDataset(crystals=crystals, ids=(), content_hash=content_hash(crystals, (), {}))
    write_dataset(tmp_path / "a.safetensors", empty)
    assert_equal(empty, read_dataset(tmp_path / "a.safetensors"))


def test_dataset_files_have_the_permissions_of_the_user(dataset: CrystalDataset, tmp_path: Path) -> None:
    """safetensors makes files that only their owner can read; a shared cache would be useless."""
    write_dataset(tmp_path / "a.safetensors", dataset)
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "plain")}
    assert len(modes) == 1


def test_content_hash_changes_with_every_part(dataset: CrystalDataset) -> None:
    crystals, ids, categories = dataset.crystals, list(dataset.ids), dataset.categories
    moved = crystals.frac_coords.clone()
    moved[0, 0] += 1e-3
    variants = [
        content_hash(replace(crystals, frac_coords=moved), ids, categories),
        content_hash(crystals, ids[::-1], categories),
        content_hash(crystals, ids, {"a_kind": ("salt", "metal")}),
        content_hash(crystals.with_properties({"gap": crystals.properties["z_gap"]}), ids, categories),
    ]
    assert len({dataset.content_hash, *variants}) == 5


def test_reading_what_is_no_dataset_is_one_clear_error(dataset: CrystalDataset, tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    with pytest.raises(FileNotFoundError, match="latentite data build"):
        read_dataset(path)
    path.write_bytes(b"not a dataset")
    with pytest.raises(ValueError, match="must be a dataset written by latentite"):
        read_dataset(path)
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="must have dataset format"):
        read_dataset(path)
    write_dataset(path, dataset)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="must be a dataset written by latentite"):
        read_dataset(path)


KILLED = """
import os, sys, time
import torch
from latentite.crystal import CrystalBatch
from latentite.data.dataset import write_dataset
from latentite.data.dataset import CrystalDataset
import latentite.base.files

def hang(*_):
    print("written", flush=True)
    time.sleep(600)

latentite.base.files.os.replace = hang
crystals = CrystalBatch.from_arrays([])
write_dataset(sys.argv[1], CrystalDataset(crystals=crystals, ids=(), content_hash="x"))
"""


def test_kill_before_the_rename_leaves_nothing_under_the_name(
    dataset: CrystalDataset, tmp_path: Path
) -> None:
    path = tmp_path / "train.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert not path.exists()
    assert all(name.startswith(".") for name in os.listdir(tmp_path))
    write_dataset(path, dataset)
    assert_equal(dataset, read_dataset(path))


def test_replacing_a_dataset_does_not_disturb_those_who_have_it_open(
    dataset: CrystalDataset, tmp_path: Path
) -> None:
    path = tmp_path / "train.safetensors"
    write_dataset(path, dataset)
    opened = read_dataset(path)
    crystals = CrystalBatch.from_arrays([])
    write_dataset(path, CrystalDataset(crystals=crystals, ids=(), content_hash="x"))
    assert_equal(dataset, opened)
