"""Lattice maths against pymatgen, ASE-free linear algebra and known statistics."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice

from latentite import lattice as lat

LENGTH = st.floats(2.0, 30.0)
ANGLE = st.floats(60.0, 119.0)


@given(st.tuples(LENGTH, LENGTH, LENGTH), st.tuples(ANGLE, ANGLE, ANGLE))
def test_matrix_from_parameters_equals_pymatgen(lengths: tuple, angles: tuple) -> None:
    ours = lat.lattice_from_parameters(torch.tensor([lengths]).double(), torch.tensor([angles]).double())[0]
    theirs = Lattice.from_parameters(*lengths, *angles).matrix
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


@given(st.tuples(LENGTH, LENGTH, LENGTH), st.tuples(ANGLE, ANGLE, st.floats(75.0, 119.0)))
def test_parameters_survive_the_matrix_and_any_rotation(lengths: tuple, angles: tuple) -> None:
    given_lengths, given_angles = torch.tensor([lengths]).double(), torch.tensor([angles]).double()
    matrix = lat.lattice_from_parameters(given_lengths, given_angles)
    if lat.volume(matrix).item() < 0.1 * given_lengths.prod().item():
        return  # angles near the limit of what a cell can have
    rotation = lat.random_rotations(1, generator=torch.Generator().manual_seed(1)).double()
    for cell in (matrix, matrix @ rotation):
        found_lengths, found_angles = lat.parameters_from_lattice(cell)
        torch.testing.assert_close(found_lengths, given_lengths, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found_angles, given_angles, rtol=1e-5, atol=1e-4)


def test_volume_is_the_determinant() -> None:
    matrix = torch.randn(50, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(lat.volume(matrix), torch.linalg.det(matrix).abs())


def test_impossible_angles_stay_finite() -> None:
    matrix = lat.lattice_from_parameters(torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([[150.0, 20.0, 20.0]]))
    assert matrix.isfinite().all()


def test_wrap_never_gives_one() -> None:
    tiny = torch.tensor([[-1e-9, 1.0, 2.5]])
    wrapped = lat.wrap(tiny)
    assert (wrapped < 1.0).all()
    torch.testing.assert_close(wrapped, torch.tensor([[0.0, 0.0, 0.5]]))


@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(-4, 4))
def test_wrapped_difference_ignores_whole_cells_and_is_shortest(a: float, b: float, cells: int) -> None:
    first, second = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    difference = lat.wrapped_difference(first, second)
    other = lat.wrapped_difference(first + cells, second)
    best = min(abs(a - b + k) for k in range(-8, 9))
    assert abs(abs(difference.item()) - best) < 1e-9
    assert abs(abs(other.item()) - best) < 1e-9


def test_rotations_are_proper_and_have_no_preferred_direction() -> None:
    count = 40_000
    rotations = lat.random_rotations(count, generator=torch.Generator().manual_seed(0)).double()
    identity = torch.eye(3).double().expand(count, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, atol=1e-5, rtol=0.0)
    assert (torch.linalg.det(rotations) > 0.99).all()
    # Under the Haar measure every entry has mean 0 and variance 1/3; 5 standard errors.
    assert rotations.mean(0).abs().max() < 5 / (3 * count) ** 0.5
    assert (rotations.square().mean(0) - 1 / 3).abs().max() < 0.01
    # The trace 1 + 2 cos(angle) has mean 0 and variance 1 (orthogonality of characters).
    trace = rotations.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(trace.var().item() - 1.0) < 0.03


def test_scaled_lengths_invert() -> None:
    lengths, num_atoms = torch.tensor([[4.0, 5.0, 6.0]]), torch.tensor([8])
    scaled = lat.scaled_lengths(lengths, num_atoms)
    torch.testing.assert_close(scaled, lengths / 2.0)
    torch.testing.assert_close(lat.unscaled_lengths(scaled, num_atoms), lengths)
