"""Teacher forcing of the crystal GPT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentite.crystal_arrays import CrystalArrays
from latentite.nn.gpt.cell import LatticeDensity
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.nn.gpt.wishes import Wish, possible_groups
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.encode import encode, encode_p1
from latentite.symmetry.orbits import OrbitBatch


def tiny(*, dropout: float = 0.0, lattice_density: LatticeDensity = LatticeDensity.AR) -> CrystalGPT:
    """An untrained network."""
    torch.manual_seed(0)
    size = GPTSize(d_model=32, num_layers=2, num_heads=2, dim_feedforward=64, dropout=dropout)
    limits = GPTLimits(max_atoms=24, max_orbits=24, max_elements=5)
    return CrystalGPT(size, limits, lattice_density=lattice_density).eval()


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


def test_crystals_of_more_orbits_than_64_have_a_probability(rocksalt: CrystalArrays) -> None:
    """Places of orbits were told apart up to the 64th, whatever the limits said."""
    cells = np.array(list(np.ndindex(5, 2, 4)), dtype=np.float64) / (5, 2, 4)
    many = CrystalArrays(
        atomic_numbers=np.repeat(rocksalt.atomic_numbers[:2], len(cells)),
        frac_coords=np.concatenate([cells, cells + np.array([0.1, 0.25, 0.125])]),
        lattice=np.diag([25.0, 10.0, 20.0]),
    )
    batch = OrbitBatch.pack([encode_p1(many)])
    size = GPTSize(d_model=32, num_layers=1, num_heads=2, dim_feedforward=64, dropout=0.0)
    model = CrystalGPT(size, GPTLimits(max_atoms=80, max_orbits=80, max_elements=2)).eval()
    assert int(batch.num_orbits) == 80
    assert log_prob(model, batch).total.isfinite().all()


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


@pytest.mark.parametrize("density", LatticeDensity)
def test_the_cell_is_told_in_full_precision_under_autocast(
    crystals: OrbitBatch, density: LatticeDensity
) -> None:
    """The head ran in bfloat16: means had two digits, where widths are a few thousandths of a unit."""
    if density is LatticeDensity.FLOW:
        pytest.importorskip("zuko")
    model = tiny(lattice_density=density)
    seen: list[torch.dtype] = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
        for layer in model.cell_head.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        told = log_prob(model, crystals)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {torch.float32}
    assert told.cell_components.dtype == torch.float32


def test_more_orbits_than_any_crystal_of_training_have_no_probability_and_the_end_needs_none(
    rocksalt: CrystalArrays,
) -> None:
    """Sampling ends a skeleton at the most orbits; teacher forcing still gave probability to further ones."""
    model = tiny()
    salt = OrbitBatch.pack([encode(rocksalt)])
    model.limits.max_orbits = 1
    assert float(log_prob(model, salt).letters) == float("-inf")
    model.limits.max_orbits = 2
    assert float(log_prob(model, salt).letter_choices[0, 2]) == 0.0


def test_groups_that_have_no_room_have_no_probability(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    model = tiny()
    both = OrbitBatch.pack([encode(rocksalt), encode(perovskite)])
    whole = log_prob(model, both).group
    model.limits.max_atoms = 5
    told = log_prob(model, both).group
    possible = possible_groups(Wish(), 5, model.limits.max_orbits)
    assert 0 < len(possible) < 230
    assert (told > whole).all()
    roomless = min(set(range(1, 231)) - set(possible))
    other = replace(both, space_group=torch.full((2,), roomless))
    with torch.no_grad():
        group, *_ = model.skeleton_log_prob(
            PaddedOrbits.of(other),
            torch.zeros(2, 2 + int(both.num_orbits.max()), 32),
            torch.ones(2, 3).long(),
        )
    assert (group == float("-inf")).all()
