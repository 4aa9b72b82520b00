"""HDF5 grouped by number of atoms: what is written comes back, and each wrong thing is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")

from latentite.crystal import CrystalBatch  # noqa: E402
from latentite.data.build import BuildOptions, build_split  # noqa: E402
from latentite.data.commands import register  # noqa: E402
from latentite.data.dataset import CrystalDataset  # noqa: E402
from latentite.data.hdf5 import read_hdf5, write_hdf5  # noqa: E402
from latentite.data.records import Record, Rejection  # noqa: E402
from latentite.data.table import Limits, read  # noqa: E402


@pytest.fixture
def dataset(crystals: CrystalBatch) -> CrystalDataset:
    labels = {
        "energy": torch.linspace(-5.0, 5.0, len(crystals)),
        "space_group": torch.arange(len(crystals)).float() % 2,
    }
    labels["energy"][3] = torch.nan
    labels["space_group"][4] = torch.nan
    return CrystalDataset(
        crystals=crystals.with_properties(labels),
        ids=tuple(f"mp-{k}" for k in range(len(crystals))),
        categories={"space_group": ("P1", "P-1")},
        content_hash="x",
    )


def test_what_is_written_comes_back_in_groups_of_equal_size(tmp_path: Path, dataset: CrystalDataset) -> None:
    path = tmp_path / "crystals.h5"
    write_hdf5(path, dataset)
    options = BuildOptions(
        canonical=False, properties=("energy", "space_group"), limits=Limits(max_atoms=None)
    )
    result = build_split(path, options=options, use_cache=False, workers=1)
    assert (result.num_in, result.rejections) == (16, ())
    order = dataset.crystals.num_atoms.argsort(stable=True)
    expected, found = dataset.crystals.select(order), result.dataset.crystals
    assert result.dataset.ids == tuple(dataset.ids[k] for k in order.tolist())
    assert found.atomic_numbers.equal(expected.atomic_numbers)
    difference = found.frac_coords - expected.frac_coords
    assert float((difference - difference.round()).abs().max()) < 1e-6
    assert torch.allclose(found.lattice, expected.lattice, atol=1e-6)
    assert torch.equal(found.properties["energy"].isnan(), expected.properties["energy"].isnan())
    assert torch.allclose(found.properties["energy"], expected.properties["energy"], equal_nan=True)
    names = np.array(["P1", "P-1", None])
    theirs = names[expected.properties["space_group"].nan_to_num(2).long()]
    ours = np.array([*result.dataset.categories["space_group"], None])
    assert (ours[found.properties["space_group"].nan_to_num(2).long()] == theirs).all()


def potential_file(path: Path) -> Path:
    """As other programs write it: forces, no ids, one molecule group, one absurd cell, one NaN coordinate."""
    with h5py.File(path, "w") as file:
        group = file.create_group("002")
        group["numbers"] = np.tile([11, 17], (4, 1))
        coord = np.zeros((4, 2, 3))
        coord[:, 1] = 2.0
        coord[2, 1, 0] = np.nan
        group["coord"] = coord
        cell = np.tile(4.0 * np.eye(3), (4, 1, 1))
        cell[1] = 0.0
        group["cell"] = cell
        group["energy"] = np.array([-1.0, -2.0, -3.0, np.nan])
        group["forces"] = np.zeros((4, 2, 3))
        molecule = file.create_group("003")
        molecule["numbers"], molecule["coord"] = np.tile([8, 1, 1], (2, 1)), np.ones((2, 3, 3))
    return path


def test_rows_that_are_no_crystals_are_rejected_with_file_group_and_row(tmp_path: Path) -> None:
    path = potential_file(tmp_path / "potential.h5")
    items = list(read(path, limits=Limits()))
    rejected = {(i.source, i.row): i.reason for i in items if isinstance(i, Rejection)}
    assert len(items) == 6
    assert set(rejected) == {
        (f"{path}::002", 1),
        (f"{path}::002", 2),
        (f"{path}::003", 0),
        (f"{path}::003", 1),
    }
    assert rejected[f"{path}::002", 1] == "absurd cell: its volume is zero or not a number"
    assert rejected[f"{path}::003", 0] == "no cell: not a periodic crystal"
    kept = [item for item in items if not isinstance(item, Rejection)]
    assert [item.id for item in kept] == ["002/0", "002/3"]
    assert [item.properties for item in kept] == [{"energy": -1.0}, {"energy": None}]
    assert np.allclose(kept[0].frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("coord", (4, 3, 3), r"002/coord must have the shape \[4, 2, 3\], got \[4, 3, 3\]"),
        ("cell", (4, 9), r"002/cell must have the shape \[4, 3, 3\]"),
        ("energy", (5,), "002/energy must have 4 rows as numbers has, got 5"),
        ("numbers", (8,), r"002/numbers must have the shape \[row atom\], got \[8\]"),
        ("coord", None, "002 must have the datasets coord and numbers, got none called coord"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_by_name(tmp_path: Path, name, shape, message) -> None:
    path = potential_file(tmp_path / "potential.h5")
    with h5py.File(path, "a") as file:
        del file["002"][name]
        if shape is not None:
            file["002"][name] = np.zeros(shape)
    with pytest.raises(ValueError, match=message):
        read_hdf5(path)


def test_a_broken_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = potential_file(tmp_path / "potential.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut\.h5 must be a whole HDF5 file"):
        read_hdf5(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(ValueError, match="must have groups with the datasets coord and numbers, got weights"):
        read_hdf5(tmp_path / "other.h5")


def test_a_file_without_groups_is_one_group(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["numbers"], file["coord"] = [[29]], np.zeros((1, 1, 3))
        file["cell"] = 2.5 * np.eye(3)[None]
    [item] = read_hdf5(tmp_path / "flat.h5")
    assert isinstance(item, Record)


def test_a_label_with_the_name_of_the_layout_is_not_written(tmp_path: Path, dataset: CrystalDataset) -> None:
    crystals = dataset.crystals.with_properties({"cell": dataset.crystals.properties["energy"]})
    with pytest.raises(ValueError, match="must not be called cell"):
        write_hdf5(tmp_path / "x.h5", replace(dataset, crystals=crystals))
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    path = potential_file(tmp_path / "potential.h5")
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    out = tmp_path / "again.h5"
    arguments = parser.parse_args(["data", "convert", str(path), "--out", str(out)])
    assert arguments.func(arguments) == 0
    assert "6 in = 2 accepted + 4 rejected" in capsys.readouterr().out
    assert len((tmp_path / "again.rejected.csv").read_text().splitlines()) == 5
    with h5py.File(out) as file:
        assert file["002/id"].asstr()[:].tolist() == ["002/0", "002/3"]
        assert file["002/coord"].shape == (2, 2, 3)


def test_data_of_other_files_and_absurd_sizes_are_refused(tmp_path: Path) -> None:
    """HDF5 can read any file of the machine as a dataset: the bytes of /etc/passwd were taken for atomic numbers."""
    (tmp_path / "secret").write_bytes(b"\x0b")

    def write(name: str, numbers: dict[str, object]) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            group = file.create_group("1")
            group.create_dataset("numbers", dtype="i1", **numbers)
            group.create_dataset("coord", shape=(*group["numbers"].shape, 3), dtype="f4", chunks=(1, 1, 3))
            group["cell"] = 4.0 * np.eye(3)[None]
        return tmp_path / name

    outside = write("a.h5", {"shape": (1, 1), "external": [(str(tmp_path / "secret"), 0, 1)]})
    with pytest.raises(ValueError, match=r"a\.h5::1/numbers must be in this file, got data of other files"):
        read(outside)
    good = write("b.h5", {"data": [[11]]})
    assert len(list(read(good))) == 1
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["1"] = h5py.ExternalLink(str(good), "/1")
    with pytest.raises(ValueError, match=r"c\.h5/1 must be in this file, got a link to another"):
        read(tmp_path / "c.h5")
    with pytest.raises(ValueError, match="at most 1,000,000 atoms in a row"):
        read(write("d.h5", {"shape": (1, 10**10), "chunks": (1, 10**6)}))
