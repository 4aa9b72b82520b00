"""CHGNet behind our protocol: its own numbers, faster, and true in left-handed cells too."""

from __future__ import annotations

import socket
from dataclasses import astuple

import numpy as np
import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.potential import check_potential

pytest.importorskip("chgnet", reason="the extra `energy` is not installed")

from latentite.energy.chgnet import CHGNetPotential

GPA = 160.21766208


@pytest.fixture(scope="module")
def potential() -> CHGNetPotential:
    return CHGNetPotential()


@pytest.fixture
def crystals(rocksalt: CrystalArrays, perovskite: CrystalArrays) -> CrystalBatch:
    """Off their minimum, with atoms outside of the cell; the last has no bonds short enough for an angle."""
    rng = np.random.default_rng(0)
    arrays = [
        CrystalArrays(n, c + rng.normal(0, 0.02, c.shape) + 1.3, a @ (np.eye(3) + 0.03))
        for n, c, a in map(astuple, (rocksalt, perovskite))
    ]
    return CrystalBatch.from_arrays(
        [*arrays, CrystalArrays(np.array([55]), np.zeros((1, 3)), 5.5 * np.eye(3))]
    )


def test_numbers_are_those_of_chgnet_itself(potential: CHGNetPotential, crystals: CrystalBatch) -> None:
    from chgnet.model.model import CHGNet

    result = potential.compute(crystals)
    own = CHGNet.load(use_device="cpu", verbose=False)
    ends = crystals.num_atoms.cumsum(0).tolist()
    for k, structure in enumerate(crystals.to_structures()):
        expected = own.predict_structure(structure, task="efs")
        forces = result.forces[ends[k] - len(structure) : ends[k]]
        assert float(result.energy[k]) / len(structure) == pytest.approx(float(expected["e"]), abs=2e-5)
        np.testing.assert_allclose(forces.numpy(), expected["f"], atol=2e-4)
        np.testing.assert_allclose(result.stress[k].numpy(), expected["s"] / GPA, atol=2e-5)


def test_it_keeps_the_contract_also_in_left_handed_cells(crystals: CrystalBatch) -> None:
    """chgnet's own stress has the wrong sign where the determinant of the cell is negative."""
    left = CrystalBatch(
        atomic_numbers=crystals.atomic_numbers,
        frac_coords=crystals.frac_coords[:, [1, 0, 2]],
        lattice=crystals.lattice[:, [1, 0, 2]],
        num_atoms=crystals.num_atoms,
    )
    chosen = left.select(torch.tensor([1, 2]))
    assert float(torch.linalg.det(chosen.lattice).max()) < 0
    check_potential(CHGNetPotential(dtype=torch.float64), chosen, tolerance=1e-5)


def test_cutting_a_batch_changes_nothing(potential: CHGNetPotential, crystals: CrystalBatch) -> None:
    whole, cut = potential.compute(crystals), CHGNetPotential(max_atoms=6).compute(crystals)
    torch.testing.assert_close(whole.energy, cut.energy, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.forces, cut.forces, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.stress, cut.stress, atol=1e-5, rtol=0)


def test_energies_alone_are_the_same_numbers(potential: CHGNetPotential, crystals: CrystalBatch) -> None:
    alone = potential.compute_energy(crystals)
    torch.testing.assert_close(alone.energy, potential.compute(crystals).energy, atol=1e-4, rtol=0)
    assert not alone.energy.requires_grad
    assert alone.forces.shape == crystals.frac_coords.shape
    assert bool(alone.forces.isnan().all() and alone.stress.isnan().all())
    assert potential.compute_energy(CrystalBatch.from_arrays([])).energy.shape == (0,)


def test_an_empty_batch_gives_empty_tensors(potential: CHGNetPotential) -> None:
    result = potential.compute(CrystalBatch.from_arrays([]))
    assert (result.energy.shape, result.forces.shape, result.stress.shape) == ((0,), (0, 3), (0, 3, 3))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("CHGNet must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_the_card_says_what_it_is() -> None:
    card = CHGNetPotential().card
    assert (card.name, card.theory.is_corrected, card.cutoff) == ("CHGNet", True, 6.0)
    assert card.version.startswith("0.3.0 (chgnet ")
    assert card.sha256 is not None
    assert len(card.sha256) == 64
    assert card.elements == frozenset(range(1, 95))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of 0\.3\.0, r2scan, got '9'"):
        CHGNetPotential("9")
