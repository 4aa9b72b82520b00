"""Text of sampled crystals: what is written is what pymatgen, ASE and our own readers take back."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import astuple, replace

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits
from latentite.data.readers.cif import parse_p1
from latentite.data.readers.rows import Row, read
from latentite.elements import SYMBOLS
from latentite.formulas import reduced_formulas
from latentite.sampling.window import geometry_refusals
from latentite.sampling.writers import (
    Sample,
    cif_text,
    extxyz_frame,
    file_stem,
    json_line,
    reads_back,
    sample_frame,
    wrapped,
)

THIRDS = 7e-5
"""pymatgen moves coordinates within 1e-4 (relative) of 1/3 and 2/3 there."""


def usable(crystals: list[CrystalArrays]) -> list[tuple[CrystalArrays, str]]:
    """Those that a run would write, with their CIFs."""
    batch = CrystalBatch.from_arrays(crystals)
    kept = []
    for arrays, formula, refusal in zip(
        batch.to_arrays(), reduced_formulas(batch), geometry_refusals(batch), strict=True
    ):
        text = cif_text(arrays, formula)
        if refusal is None and reads_back(text, arrays) is None:
            kept.append((arrays, text))
    return kept


def assert_pymatgen_reads(arrays: CrystalArrays, text: str) -> None:
    """Composition, cell and coordinates come back."""
    numbers, coords, lattice = astuple(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Structure.from_str(text, fmt="cif")
    assert found.composition == Composition.from_dict(
        {SYMBOLS[z - 1]: int((numbers == z).sum()) for z in set(numbers.tolist())}
    )
    wanted = Lattice(lattice)
    np.testing.assert_allclose(found.lattice.abc, wanted.abc, atol=1e-4, rtol=1e-6)
    np.testing.assert_allclose(found.lattice.angles, wanted.angles, atol=1e-4)
    # pymatgen groups the sites by element: each atom's own is the nearest of its element
    difference = coords[:, None] - found.frac_coords[None]
    difference = np.abs(difference - np.round(difference))
    is_other = numbers[:, None] != np.array(found.atomic_numbers)[None]
    site = (difference.max(axis=-1) + is_other).argmin(axis=1)
    assert sorted(site.tolist()) == list(range(len(numbers)))
    assert not is_other[np.arange(len(numbers)), site].any()
    difference = difference[np.arange(len(numbers)), site]
    near_thirds = np.abs(coords * 3.0 - np.round(coords * 3.0)) < 2e-4
    assert (difference <= np.where(near_thirds, THIRDS, 1e-5)).all()


def extreme_crystals(count: int, *, seed: int) -> list[CrystalArrays]:
    """Cells from tiny to huge, flat, long and skewed; coordinates at the edges; up to 99 elements."""
    generator = np.random.default_rng(seed)
    crystals: list[CrystalArrays] = []
    for number in range(count):
        num_atoms = int(generator.choice([1, 2, 3, 5, 8] if number % 50 else [100]))
        skew = generator.choice([0.05, 0.5, 3.0, 20.0])
        shape = np.eye(3) + skew * np.tril(generator.uniform(-1.0, 1.0, size=(3, 3)), -1)
        stretch = np.exp(generator.normal(size=3) * generator.choice([0.1, 1.0, 2.5]))
        lattice = shape * stretch[:, None]
        volume = np.exp(generator.uniform(np.log(1.2), np.log(900.0)))
        lattice *= (volume * num_atoms / abs(np.linalg.det(lattice))) ** (1.0 / 3.0)
        coords = generator.uniform(-1.0, 2.0, size=(num_atoms, 3))
        edges = generator.choice(
            [0.0, 1.0, 0.9999999, 0.99999999999, -1e-9, 1 / 3, 0.33332, 2 / 3, 0.5], coords.shape
        )
        coords = np.where(generator.uniform(size=coords.shape) < 0.4, edges, coords)
        is_all = num_atoms == 100
        numbers = (
            generator.permutation(100) % 99 + 1 if is_all else generator.integers(1, 100, size=num_atoms)
        )
        crystals.append(CrystalArrays(numbers, coords, lattice))
    return crystals


def test_every_cif_that_would_be_written_is_read_back_by_pymatgen(
    make_random_crystals: Callable[..., list[CrystalArrays]],
) -> None:
    crystals = extreme_crystals(600, seed=0) + make_random_crystals(50, max_atoms=12)
    kept = usable(crystals)
    assert len(kept) > 250  # many of the extremes are refused, and rightly
    assert {len(arrays.atomic_numbers) for arrays, _ in kept} >= {1, 2, 3, 5, 8}
    for arrays, text in kept:
        assert_pymatgen_reads(arrays, text)
        numbers, _, lattice = astuple(parse_p1(text) or pytest.fail("our own reader does not take it"))
        assert np.array_equal(numbers, arrays.atomic_numbers)
        assert (
            np.abs(lattice @ lattice.T - arrays.lattice @ arrays.lattice.T).max()
            <= 1e-5 * (arrays.lattice**2).sum()
        )


def test_a_cell_with_all_elements_comes_back() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(5) / 5] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:99]
    [(arrays, text)] = usable(
        [CrystalArrays(np.random.default_rng(0).permutation(99) + 1, grid, 12.0 * np.eye(3))]
    )
    assert_pymatgen_reads(arrays, text)


@given(st.lists(st.floats(-5.0, 5.0), min_size=3, max_size=3))
def test_wrapped_coordinates_are_written_below_one(xyz: list[float]) -> None:
    coords = wrapped(np.array([xyz]))
    assert ((coords >= 0.0) & (coords < 1.0)).all()
    assert "1.00000000" not in " ".join(f"{x:.8f}" for x in coords[0])
    assert np.abs(coords - xyz - np.round(coords - xyz)).max() < 1e-8


def test_what_readers_would_take_for_something_else_is_refused() -> None:
    lattice = np.diag([8000.0, 3.0, 3.0])
    near = np.array([[0.0, 0.0, 0.0], [1e-4, 0.0, 0.0]])  # 0.8 Å apart, one site for pymatgen
    crystal = CrystalArrays(np.array([1, 8]), near, lattice)
    assert "too close in fractional" in str(reads_back(cif_text(crystal, "HO"), crystal))
    other = replace(crystal, atomic_numbers=np.array([8, 1]))
    assert "other elements" in str(reads_back(cif_text(crystal, "HO"), other))
    assert reads_back("nonsense", crystal) is not None
    lost = replace(crystal, frac_coords=near * np.nan)
    assert reads_back(cif_text(lost, "HO"), crystal) is not None


def sample(arrays: CrystalArrays, **changes: object) -> Sample:
    values: dict[str, object] = {
        "index": 12,
        "attempt": 1,
        "seed": 7,
        "formula": "NaCl",
        "ask": 'NaCl x 4, "quoted" = \\ here',
        "conditions": "band_gap=2,chemical_system=Na-Cl",
        "arrays": arrays,
        "cif": "",
    }
    return Sample(**(values | changes))  # type: ignore[arg-type]  # plain values


def test_extxyz_is_read_by_ase_with_everything_in_its_info(rocksalt: CrystalArrays) -> None:
    found = ase.io.read(io.StringIO(sample_frame(sample(rocksalt, fixed_deviation=0.25))), format="extxyz")
    assert found.numbers.tolist() == rocksalt.atomic_numbers.tolist()
    np.testing.assert_allclose(found.cell.array, rocksalt.lattice, atol=1e-8)
    np.testing.assert_allclose(found.positions, rocksalt.frac_coords @ rocksalt.lattice, atol=1e-7)
    assert found.pbc.all()
    info = found.info
    assert (info["index"], info["attempts"], info["formula"], info["fixed_deviation"]) == (
        12,
        2,
        "NaCl",
        0.25,
    )
    assert info["ask"] == 'NaCl x 4, "quoted" = \\ here'
    assert info["conditions"] == "band_gap=2,chemical_system=Na-Cl"


def test_json_lines_are_read_by_our_readers_and_by_pymatgen(rocksalt: CrystalArrays, tmp_path) -> None:
    line = json_line(sample(rocksalt))
    (tmp_path / "structures.jsonl").write_text(line + json_line(sample(rocksalt, index=13)))
    rows = list(read(tmp_path / "structures.jsonl", limits=Limits()))
    assert [row.id for row in rows] == ["12", "13"]
    assert isinstance(rows[0], Row)
    assert rows[0].atomic_numbers.tolist() == rocksalt.atomic_numbers.tolist()
    np.testing.assert_allclose(rows[0].frac_coords, rocksalt.frac_coords, atol=1e-8)
    structure = Structure.from_dict(json.loads(line)["structure"])
    assert structure.composition.reduced_formula == "NaCl"
    np.testing.assert_allclose(structure.lattice.matrix, rocksalt.lattice)


def test_a_frame_that_is_not_finite_can_be_written(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    assert "nan" in extxyz_frame(CrystalArrays(numbers, coords * np.nan, lattice))


def test_names_of_files_sort_as_their_numbers() -> None:
    assert [file_stem(i, 100) for i in (0, 99)] == ["000000", "000099"]
    stems = [file_stem(i, 2_000_000) for i in (5, 999_999, 1_999_999)]
    assert stems == sorted(stems) == ["0000005", "0999999", "1999999"]
