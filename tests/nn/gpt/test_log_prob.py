"""Teacher forcing of the crystal GPT."""

from __future__ import annotations

import pytest
import torch

from latentite.crystal_arrays import CrystalArrays
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.encode import encode, encode_p1
from latentite.symmetry.orbits import OrbitBatch


def tiny(*, dropout: float = 0.0) -> CrystalGPT:
    """An untrained network."""
    torch.manual_seed(0)
    size = GPTSize(d_model=32, num_layers=2, num_heads=2, dim_feedforward=64, dropout=dropout)
    return CrystalGPT(size, GPTLimits(max_atoms=24, max_orbits=24, max_elements=5)).eval()


def log_prob(model: CrystalGPT, batch: OrbitBatch) -> LogProbability:
    reductions = torch.from_numpy(minkowski_reductions(batch.primitive_lattices().numpy()))
    return model.log_prob(PaddedOrbits.of(batch), place_crystals(batch, reductions), None)


@pytest.fixture
def crystals(rocksalt: CrystalArrays, perovskite: CrystalArrays) -> OrbitBatch:
    return OrbitBatch.pack([encode(rocksalt), encode(perovskite), encode_p1(rocksalt)])


def test_a_crystal_has_the_same_probability_in_every_batch(crystals: OrbitBatch) -> None:
    model = tiny()
    together = log_prob(model, crystals).total
    for index in range(len(crystals)):
        alone = log_prob(model, crystals.select(torch.tensor([index]))).total
        assert torch.allclose(alone, together[index], atol=1e-4)


def test_decisions_add_up_to_the_parts(crystals: OrbitBatch) -> None:
    told = log_prob(tiny(), crystals)
    parts = told.group + told.letters + told.elements + told.cell + told.coords
    assert torch.allclose(told.total, parts)
    assert torch.allclose(told.decisions.sum(-1), parts, atol=1e-4)


def test_what_comes_later_does_not_change_earlier_decisions(crystals: OrbitBatch) -> None:
    model = tiny()
    orbits = PaddedOrbits.of(crystals)
    reductions = torch.from_numpy(minkowski_reductions(crystals.primitive_lattices().numpy()))
    placed = place_crystals(crystals, reductions)
    before = model.log_prob(orbits, placed, None)
    moved = orbits.cell.clone()
    moved[:, 0] += 0.3
    after = model.log_prob(
        PaddedOrbits(
            space_group=orbits.space_group,
            cell=moved,
            position=orbits.position,
            element=orbits.element,
            coords=orbits.coords,
            valid=orbits.valid,
        ),
        placed,
        None,
    )
    assert torch.equal(before.letters, after.letters)
    assert torch.equal(before.elements, after.elements)
    assert not torch.equal(before.cell, after.cell)


def test_the_sampled_places_of_training_estimate_the_probability_of_all(crystals: OrbitBatch) -> None:
    """Some cells stand for all of them; their mean over many draws comes near the exact value."""
    model = tiny()
    exact = log_prob(model, crystals).coords
    model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([log_prob(model, crystals).coords for _ in range(150)]).mean(0)
    assert float((drawn - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_more_atoms_than_any_crystal_of_training_have_no_probability(perovskite: CrystalArrays) -> None:
    model = tiny()
    model.limits.max_atoms = 4
    assert float(log_prob(model, OrbitBatch.pack([encode(perovskite)])).letters) == float("-inf")


def test_distances_are_exact_in_half_precision(crystals: OrbitBatch) -> None:
    """Products of coordinates in bfloat16 would move atoms by hundredths of an Å."""
    model = tiny()
    orbits = PaddedOrbits.of(crystals)
    reductions = torch.from_numpy(minkowski_reductions(crystals.primitive_lattices().numpy()))
    placed = place_crystals(crystals, reductions)
    exact, _ = model.environment_of(orbits, placed, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model.environment_of(orbits, placed, 0)
    assert torch.equal(exact, rough)
