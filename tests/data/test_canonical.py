"""The canonical form: one per crystal, whatever the cell setting; mirror images apart; Niggli; idempotent."""

from __future__ import annotations

import csv
import gzip
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentite import lattice as lat
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize, canonicalize_many
from latentite.data.niggli import TOLERANCE, niggli_transformations, reduced_bases
from latentite.data.readers.cif import parse_p1

SPECIAL = [0.0, 1 / 2, 1 / 4, 3 / 4, 1 / 3, 2 / 3, 1 / 6, 5 / 6, 1 / 8, 0.12345]


def rotation(generator: np.random.Generator) -> np.ndarray:
    matrix, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def unimodular(generator: np.random.Generator) -> np.ndarray:
    """A random integer matrix of determinant +1 or -1, with entries of up to about ten."""
    matrix = np.eye(3)[generator.permutation(3)] * generator.choice([-1, 1], size=(3, 1))
    for _ in range(6):
        row, other = generator.choice(3, size=2, replace=False)
        matrix[row] += generator.choice([-1, 1]) * matrix[other]
    return matrix


def other_setting(
    crystal: CrystalArrays, generator: np.random.Generator, *, noise: float = 0.0
) -> CrystalArrays:
    """The same crystal: rotated, translated, its atoms permuted, in another cell; noise in Å on the atoms."""
    numbers, coords, lattice = astuple(crystal)
    change = unimodular(generator)
    new_lattice = change @ lattice @ rotation(generator)
    new_coords = coords @ np.linalg.inv(change) + generator.random(3)
    new_coords = new_coords + generator.integers(-2, 3, size=coords.shape)
    new_coords = new_coords + noise * generator.normal(size=coords.shape) @ np.linalg.inv(new_lattice)
    order = generator.permutation(len(numbers))
    return CrystalArrays(numbers[order], new_coords[order], new_lattice)


def difference(first: CrystalArrays, second: CrystalArrays) -> float:
    """Largest difference in Å of atoms (on the torus) and of cell vectors; infinite if the atoms differ."""
    if not np.array_equal(first.atomic_numbers, second.atomic_numbers):
        return np.inf
    wrapped = first.frac_coords - second.frac_coords
    wrapped -= np.round(wrapped)
    return max(np.abs(wrapped @ first.lattice).max(), np.abs(first.lattice - second.lattice).max())


def lattice_of(kind: str, generator: np.random.Generator) -> np.ndarray:
    """A primitive cell of the given Bravais type (Å)."""
    a, b, c = generator.uniform(3.0, 7.0, size=3)
    angles = generator.uniform(70.0, 110.0, size=3)
    half = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    body = np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2
    lengths, degrees = {
        "cP": ((a, a, a), (90, 90, 90)),
        "tP": ((a, a, c), (90, 90, 90)),
        "oP": ((a, b, c), (90, 90, 90)),
        "hP": ((a, a, c), (90, 90, 120)),
        "hR": ((a, a, a), (angles[0],) * 3),
        "mP": ((a, b, c), (90, angles[1], 90)),
        "aP": ((a, b, c), tuple(angles)),
        "cF": ((a, a, a), (90, 90, 90)),
        "cI": ((a, a, a), (90, 90, 90)),
        "tI": ((a, a, c), (90, 90, 90)),
        "oF": ((a, b, c), (90, 90, 90)),
        "oI": ((a, b, c), (90, 90, 90)),
    }[kind]
    cell = lat.lattice_from_parameters(
        torch.tensor(lengths, dtype=torch.float64), torch.tensor(degrees, dtype=torch.float64)
    ).numpy()
    return {"F": half, "I": body}.get(kind[1], np.eye(3)) @ cell


KINDS = ["cP", "tP", "oP", "hP", "hR", "mP", "aP", "cF", "cI", "tI", "oF", "oI"]


def synthetic(generator: np.random.Generator) -> CrystalArrays:
    """Made to be ambiguous: lattice and positions symmetric or nearly so, sometimes a hidden translation."""
    lattice = lattice_of(str(generator.choice(KINDS)), generator)
    strain = generator.choice([0.0, 1e-8, 1e-6, 1e-4, 1e-3])
    lattice = lattice @ (np.eye(3) + strain * generator.normal(size=(3, 3)))
    num_atoms = int(generator.integers(1, 7))
    if generator.random() < 0.6:
        coords = np.unique(generator.choice(SPECIAL, size=(num_atoms, 3)), axis=0)
    else:
        coords = generator.random((num_atoms, 3))
    if generator.random() < 0.3:  # a hidden translation
        coords = np.concatenate([coords, coords + np.eye(3)[2]]) / [1.0, 1.0, 2.0]
        lattice = lattice * [[1.0], [1.0], [2.0]]
    coords = coords + generator.choice([0.0, 1e-8, 1e-4]) * generator.normal(size=coords.shape)
    return CrystalArrays(generator.choice([8, 26], size=len(coords)), coords, lattice)


def real_crystals(folder: Path, name: str, split: str, count: int) -> list[CrystalArrays]:
    """The first rows of a CDVAE-style table."""
    with gzip.open(folder / name / f"{split}.csv.gz", "rt", newline="") as handle:
        crystals = [
            parse_p1(row["cif"]) for row, _ in zip(csv.DictReader(handle), range(count), strict=False)
        ]
    assert len(crystals) == count
    return [crystal for crystal in crystals if crystal is not None]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_every_cell_setting_gives_the_same_canonical_crystal(seed: int) -> None:
    generator = np.random.default_rng(seed)
    crystal = synthetic(generator)
    assert difference(canonicalize(crystal), canonicalize(other_setting(crystal, generator))) < 1e-5


@pytest.mark.parametrize(("name", "count"), [("mp_20_biternary", 500), ("mpts_52", 200)])
def test_real_rows_have_one_canonical_form(shared_data: Path, name: str, count: int) -> None:
    generator = np.random.default_rng(0)
    crystals = real_crystals(shared_data, name, "val", count)
    first = canonicalize_many(crystals)
    for noise in (0.0, 1e-6):  # Å
        second = canonicalize_many([other_setting(c, generator, noise=noise) for c in crystals])
        worst = [difference(one, two) for one, two in zip(first, second, strict=True)]
        assert max(worst) < 1e-4, (noise, np.argmax(worst))
    again = canonicalize_many(first)
    assert max(difference(one, two) for one, two in zip(first, again, strict=True)) < 1e-10


def test_the_matcher_of_pymatgen_sees_no_change(shared_data: Path) -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1, primitive_cell=False, scale=False)
    crystals = real_crystals(shared_data, "mp_20_biternary", "test", 30)
    for before, after in zip(crystals, canonicalize_many(crystals), strict=True):
        structures = [Structure(Lattice(m), z.tolist(), x) for z, x, m in map(astuple, (before, after))]
        assert matcher.fit(*structures)
        distances = [np.sort(s.distance_matrix, axis=None) for s in structures]
        np.testing.assert_allclose(distances[0], distances[1], atol=1e-6)


def test_many_at_once_and_one_by_one_agree_bit_for_bit() -> None:
    generator = np.random.default_rng(1)
    crystals = [synthetic(generator) for _ in range(40)]
    for one, many in zip([canonicalize(c) for c in crystals], canonicalize_many(crystals), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(astuple(one), astuple(many), strict=True))
    assert canonicalize_many([]) == []


def test_the_input_is_untouched_and_the_types_are_fixed() -> None:
    crystal = synthetic(np.random.default_rng(2))
    copies = astuple(crystal)  # deep ones
    numbers, coords, lattice = astuple(canonicalize(crystal))
    assert all(np.array_equal(a, b) for a, b in zip(astuple(crystal), copies, strict=True))
    assert (numbers.dtype, coords.dtype, lattice.dtype) == (np.int64, np.float64, np.float64)


@given(st.integers(0, 2**32 - 1))
def test_the_form_itself(seed: int) -> None:
    """Standard orientation, right-handed, wrapped, sorted by species, a rarest atom at the origin."""
    crystal = synthetic(np.random.default_rng(seed))
    numbers, coords, lattice = astuple(canonicalize(crystal))
    lengths, angles = lat.parameters_from_lattice(torch.from_numpy(lattice))
    np.testing.assert_allclose(lattice, lat.lattice_from_parameters(lengths, angles).numpy(), atol=1e-9)
    assert np.linalg.det(lattice) == pytest.approx(abs(np.linalg.det(crystal.lattice)))
    assert ((coords >= 0.0) & (coords < 1.0)).all()
    assert (np.diff(numbers) >= 0).all()
    species, counts = np.unique(numbers, return_counts=True)
    rarest = species[counts == counts.min()].min()
    assert (coords[numbers == rarest] == 0.0).all(axis=1).any()


def test_a_clear_niggli_cell_equals_moyopys() -> None:
    """Away from every border, as triclinic cells are, one basis is reduced, and it is the reducer's."""
    generator = np.random.default_rng(3)
    lattices = np.stack([lattice_of("aP", generator) for _ in range(200)])
    expected = niggli_transformations(lattices) @ lattices
    is_clear = np.bincount(reduced_bases(expected).owners) == 1
    assert is_clear.sum() > 190
    found = canonicalize_many(
        [CrystalArrays(np.array([1]), np.zeros((1, 3)), lattice) for lattice in lattices]
    )
    for one, other in zip(expected[is_clear], np.stack([c.lattice for c in found])[is_clear], strict=True):
        np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "count"), [("cP", 24), ("cF", 24), ("cI", 24), ("hP", 12), ("tP", 8), ("oP", 4), ("aP", 1)]
)
def test_a_symmetric_lattice_has_as_many_bases_as_proper_rotations(kind: str, count: int) -> None:
    lattice = lattice_of(kind, np.random.default_rng(4))[None]
    reduced = niggli_transformations(lattice) @ lattice
    bases = reduced_bases(reduced)
    clear = bases.violation < 1e-9
    assert clear.sum() == count
    assert (bases.violation - bases.violation.min() <= TOLERANCE).all()
    np.testing.assert_allclose(np.linalg.det(bases.matrices), 1.0)


def test_the_known_niggli_cells_come_out() -> None:
    """Hexagonal gives 120 degrees, face-centred 60, body-centred 109.47 (International Tables A, 3.1.3)."""
    for kind, expected in (("hP", [90, 90, 120]), ("cF", [60, 60, 60]), ("cI", [109.4712206] * 3)):
        lattice = lattice_of(kind, np.random.default_rng(5))
        found = canonicalize(CrystalArrays(np.array([1]), np.zeros((1, 3)), lattice)).lattice
        angles = lat.parameters_from_lattice(torch.from_numpy(found))[1]
        if kind == "hP":  # c may be longer or shorter than a
            angles = angles.sort().values
        np.testing.assert_allclose(angles.numpy(), expected, atol=1e-6)


def test_mirror_images_stay_apart_unless_they_are_one_crystal() -> None:
    # Selenium, three-fold screw: P3_1 21 and its mirror image P3_2 21.
    lattice = np.array([[4.37, 0.0, 0.0], [-2.185, 4.37 * np.sqrt(0.75), 0.0], [0.0, 0.0, 4.96]])
    helix = np.array([[0.225, 0.0, 1 / 3], [0.0, 0.225, 2 / 3], [-0.225, -0.225, 0.0]])
    numbers = np.array([34, 34, 34])
    mirror = np.diag([1.0, 1.0, -1.0])
    right, left = (canonicalize(CrystalArrays(numbers, helix, lattice @ m)) for m in (np.eye(3), mirror))
    assert difference(right, left) > 0.1
    # Rock salt equals its mirror image.
    face_centred = 2.82 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    salt = (np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]))
    assert (
        difference(
            canonicalize(CrystalArrays(*salt, face_centred)),
            canonicalize(CrystalArrays(*salt, face_centred @ mirror)),
        )
        < 1e-9
    )


def test_a_number_just_below_one_is_written_as_zero() -> None:
    coords = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, -1e-13]])
    found = canonicalize(CrystalArrays(np.array([8, 26]), coords, np.diag([3.0, 4.0, 5.0]))).frac_coords
    assert found[1].tolist() == [0.5, 0.5, 0.0]


def test_an_extremely_skew_cell_is_reduced_too() -> None:
    generator = np.random.default_rng(6)
    for _ in range(20):
        numbers, coords, lattice = astuple(synthetic(generator))
        change = np.eye(3)
        while np.abs(change).max() < 1e4:
            change = unimodular(generator) @ change
        skew = CrystalArrays(numbers, coords @ np.linalg.inv(change), change @ lattice)
        assert difference(canonicalize(CrystalArrays(numbers, coords, lattice)), canonicalize(skew)) < 1e-4


def test_what_has_no_canonical_form_is_refused_by_its_position() -> None:
    good = CrystalArrays(np.array([1]), np.zeros((1, 3)), np.eye(3))
    flat = CrystalArrays(np.array([1]), np.zeros((1, 3)), np.diag([1.0, 1.0, 0.0]))
    lost = CrystalArrays(np.array([1]), np.full((1, 3), np.nan), np.eye(3))
    with pytest.raises(ValueError, match="the lattice of crystal 1 cannot be reduced"):
        canonicalize_many([good, flat])
    with pytest.raises(ValueError, match="the coordinates of crystal 2 must be finite"):
        canonicalize_many([good, good, lost])
    with pytest.raises(ValueError, match="crystal 0 must have at least one atom"):
        canonicalize_many([CrystalArrays(np.zeros(0, dtype=int), np.zeros((0, 3)), np.eye(3))])
