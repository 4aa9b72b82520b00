"""HDF5 grouped by number of atoms: what is written comes back, and each wrong thing is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")

from latentite.commands.data import register  # noqa: E402
from latentite.crystal import CrystalBatch  # noqa: E402
from latentite.data.build import build_split  # noqa: E402
from latentite.data.dataset import CrystalDataset  # noqa: E402
from latentite.data.options import BuildOptions  # noqa: E402
from latentite.data.readers.checks import Limits  # noqa: E402
from latentite.data.readers.hdf5 import read_hdf5, write_hdf5  # noqa: E402
from latentite.data.readers.records import Record, Rejection  # noqa: E402
from latentite.data.readers.rows import read  # noqa: E402


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
    register(parser)
    out = tmp_path / "again.h5"
    arguments = parser.parse_args(["convert", str(path), "--out", str(out)])
    assert arguments.func(arguments) == 0
    assert "6 in = 2 accepted + 4 rejected" in capsys.readouterr().out
    assert len((tmp_path / "again.rejected.csv").read_text().splitlines()) == 5
    with h5py.File(out) as file:
        assert file["002/id"].asstr()[:].tolist() == ["002/0", "002/3"]
        assert file["002/coord"].shape == (2, 2, 3)


def one_group(path: Path) -> Path:
    """Three crystals of two atoms."""
    with h5py.File(path, "w") as file:
        group = file.create_group("002")
        group["numbers"] = np.tile([11, 17], (3, 1))
        group["coord"] = np.tile([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], (3, 1, 1))
        group["cell"] = np.tile(4.0 * np.eye(3), (3, 1, 1))
        group["energy"] = np.array([-1.0, -2.0, -3.0])
    return path


@pytest.mark.parametrize("member", ["coord", "numbers", "cell", "energy", "more"])
@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/nowhere"), h5py.SoftLink("/002")]
)
def test_a_link_in_an_hdf5_file_is_refused_not_followed(tmp_path: Path, member: str, link: object) -> None:
    """A fuzzed file ended in an AttributeError, a KeyError or a RuntimeError, or read another file's numbers."""
    path = one_group(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        if member in file["002"]:
            del file["002"][member]
        file["002"][member] = link
    with pytest.raises(ValueError, match=rf"x\.h5::002/{member} must be data of the file itself, got a link"):
        read_hdf5(path)


def test_numbers_that_stand_in_another_file_are_refused(tmp_path: Path) -> None:
    """`external=` makes HDF5 read any file's bytes as numbers: here 72 bytes of a secret were taken as positions."""
    (tmp_path / "secret").write_bytes(np.full((3, 2, 3), 0.25).tobytes())
    for kind in ("external", "virtual"):
        path = one_group(tmp_path / f"{kind}.h5")
        with h5py.File(path, "r+") as file:
            group = file["002"]
            del group["coord"]
            if kind == "external":
                secret = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
                group.create_dataset("coord", shape=(3, 2, 3), dtype="f8", external=secret)
            else:
                layout = h5py.VirtualLayout(shape=(3, 2, 3), dtype="f8")
                layout[:] = h5py.VirtualSource("other.h5", "x", shape=(3, 2, 3))
                group.create_virtual_dataset("coord", layout, fillvalue=0.5)
        with pytest.raises(ValueError, match="coord must hold its numbers itself"):
            read_hdf5(path)


@pytest.mark.parametrize("name", ["numbers", "coord", "cell", "energy"])
@pytest.mark.parametrize("chunks", [None, 1])
def test_numbers_that_were_never_written_are_refused_not_read_as_zeros(
    tmp_path: Path, name: str, chunks: int | None
) -> None:
    """HDF5 gives zeros for what a run that was cut off had only declared: an energy of 0 eV is no energy."""
    path = one_group(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        group = file["002"]
        shape, kind = group[name].shape, group[name].dtype
        values = group[name][()]
        del group[name]
        step = None if chunks is None else (chunks, *shape[1:])
        dataset = group.create_dataset(name, shape=shape, dtype=kind, chunks=step)
        if chunks is not None:
            dataset[:2] = values[:2]  # the third chunk stays unwritten
    with pytest.raises(ValueError, match=rf"{name} declares \d+ values that were not all written"):
        read_hdf5(path)


def test_a_small_file_that_declares_a_billion_rows_is_refused_at_once(tmp_path: Path) -> None:
    """It was read row by row for hours: each of its zeros was an atom that is no element."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for name, shape in (("numbers", (10**9, 2)), ("coord", (10**9, 2, 3)), ("cell", (10**9, 3, 3))):
            file.create_dataset(f"002/{name}", shape=shape, dtype="f8", chunks=(1024, *shape[1:]))
    with pytest.raises(ValueError, match=r"cell declares 9000000000 values that were not all written"):
        read_hdf5(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("002/numbers", shape=(1, 2), maxshape=(None, 2), dtype="i4", chunks=(10**8, 2))
        file["002/coord"] = np.zeros((1, 2, 3))
    with pytest.raises(ValueError, match="must have chunks of at most"):
        read_hdf5(path)


def test_one_large_chunk_is_unpacked_once_not_for_every_block(tmp_path: Path) -> None:
    """A data set of one compressed chunk was unpacked anew for every 1,024 rows: 20 s for a file of 200 kB."""
    path, count = tmp_path / "x.h5", 40_000
    with h5py.File(path, "w") as file:
        for name, shape in (("numbers", (count, 8)), ("coord", (count, 8, 3)), ("cell", (count, 3, 3))):
            file.create_dataset(f"008/{name}", data=np.zeros(shape), chunks=shape, compression="gzip")
    reads = []
    original = h5py.Dataset.__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", lambda self, key: reads.append(key) or original(self, key))
        items = list(read_hdf5(path))
    assert len(items) == count
    assert len(reads) == 3
    assert all(isinstance(item, Rejection) for item in items)


@pytest.mark.parametrize("values", [[11.5, 17.0], [np.nan, 17.0], [np.inf, 17.0], [11.0, 1e300]])
def test_atomic_numbers_that_are_no_whole_numbers_are_rejected_not_cut_off(
    tmp_path: Path, values: list[float]
) -> None:
    """11.5 was read as sodium."""
    path = one_group(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file["002/numbers"]
        file["002/numbers"] = np.array([[11.0, 17.0], values, [11.0, 17.0]])
    items = list(read(path))
    assert [isinstance(item, Rejection) for item in items] == [False, True, False]
    assert items[1].reason == "atomic numbers that are no whole numbers"


@pytest.mark.parametrize("kind", ["S4", "complex128", [("x", "f8")]])
def test_geometry_that_is_no_numbers_is_named(tmp_path: Path, kind: object) -> None:
    path = one_group(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file["002/coord"]
        file["002/coord"] = np.zeros((3, 2, 3), dtype=kind)
    with pytest.raises(ValueError, match=r"002/coord must be a dataset of numbers, got a dataset of "):
        read_hdf5(path)


def test_what_is_no_number_or_text_per_row_is_no_label(tmp_path: Path) -> None:
    path = one_group(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        group = file["002"]
        group["compound"] = np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])
        group["complex"] = np.ones(3, dtype=complex)
        group.create_dataset("reference", data=[group.ref] * 3, dtype=h5py.ref_dtype)
        group["empty"] = h5py.Empty("f8")
        group["type"] = np.dtype("f8")
        group["self"] = group
    records = list(read_hdf5(path))
    assert all(isinstance(item, Record) and set(item.properties) == {"energy"} for item in records)
