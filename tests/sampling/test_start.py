"""Starting from structures, fixing some of their atoms; which sampled crystals cannot be."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from tiny_ldm import ALL_CONDITIONS, DDPM, FLOW, TRAIN_SIZES, build_asks, tiny_network

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize, canonicalize_with_order
from latentite.data.readers.checks import Limits
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs
from latentite.generators.latent.start import Start, start_from
from latentite.generators.sizes import plan_jobs
from latentite.objectives.ldm import DiffusionConfig
from latentite.sampling.window import GeometryLimits, RefusalKind, geometry_refusals

BOTH = pytest.mark.parametrize("diffusion", [DDPM, FLOW], ids=["ddpm", "flow"])


def jobs_from(network: object, start: Start, count: int = 6, **options: object) -> Jobs:
    """`count` crystals for each request."""
    asks = build_asks(network, train_sizes=TRAIN_SIZES, start=start, **options)  # type: ignore[arg-type]
    total = count * (asks[-1].request + 1)
    return plan_jobs(range(total), seed=0, sizes=TRAIN_SIZES, asks=asks, num_samples=count)


def test_the_order_of_a_canonical_form_leads_back_to_the_input(
    perovskite: CrystalArrays, rocksalt: CrystalArrays
) -> None:
    generator = np.random.default_rng(0)
    for numbers, coords, lattice in map(astuple, (perovskite, rocksalt)):
        shuffle = generator.permutation(len(numbers))
        moved = (coords[shuffle] + generator.uniform(size=3)) % 1.0
        # every atom of its own kind, so that only one order is right
        tagged = np.arange(len(numbers)) + 20
        (found, order), _ = canonicalize_with_order(
            [CrystalArrays(tagged, moved, lattice), CrystalArrays(numbers, coords, lattice)]
        )
        assert sorted(order.tolist()) == list(range(len(numbers)))
        assert tagged[order].tolist() == found.atomic_numbers.tolist()
        shuffled = CrystalArrays(numbers[shuffle], moved, lattice)
        given, places = canonicalize_with_order([shuffled])[0]
        assert (
            numbers[shuffle][places].tolist()
            == given.atomic_numbers.tolist()
            == canonicalize(CrystalArrays(numbers, coords, lattice)).atomic_numbers.tolist()
        )


@BOTH
def test_a_small_strength_stays_near_the_reconstruction_and_full_strength_forgets_the_start(
    diffusion: DiffusionConfig, perovskite: CrystalArrays, rocksalt: CrystalArrays
) -> None:
    network = tiny_network(diffusion)
    structures = CrystalBatch.from_arrays(
        [perovskite, CrystalArrays(rocksalt.atomic_numbers[:5], rocksalt.frac_coords[:5], rocksalt.lattice)]
    )
    config = SamplingConfig(steps=20, eta=0.0)

    def run(strength: float) -> tuple[CrystalBatch, CrystalBatch]:
        start = start_from(network, structures, strength=strength)
        jobs = jobs_from(network, start)
        sampled = sample_jobs(network, diffusion, jobs, seed=0, config=config, start=start).crystals
        rebuilt = network.decode(network.encode(start.crystals)).to_crystals().select(start.which(jobs))
        return sampled, rebuilt

    def distance(found: CrystalBatch, wanted: CrystalBatch) -> float:
        return float((found.lengths - wanted.lengths).abs().mean())

    near, middle, far = (distance(*run(strength)) for strength in (0.05, 0.4, 1.0))
    assert near < 0.3 * min(middle, far)
    # at full strength two structures with equally many atoms and the same noise give the same crystals
    full = [
        sample_jobs(
            network, diffusion, jobs_from(network, start), seed=0, config=config, start=start
        ).crystals
        for start in (start_from(network, structures.select(torch.tensor([i])), strength=1.0) for i in (0, 1))
    ]
    assert full[0].lattice.equal(full[1].lattice)
    assert full[0].frac_coords.equal(full[1].frac_coords)


@BOTH
def test_fixed_atoms_keep_their_latents_and_elements_through_the_change_of_order(
    diffusion: DiffusionConfig, perovskite: CrystalArrays
) -> None:
    network = tiny_network(diffusion, ALL_CONDITIONS)
    numbers, coords, lattice = astuple(perovskite)
    shuffle = np.array([3, 1, 4, 0, 2])
    given = CrystalArrays(numbers[shuffle], (coords[shuffle] + 0.21) % 1.0, lattice)
    structures = CrystalBatch.from_arrays([given])
    start = start_from(network, structures, fix_sites=[1, 4])  # Ti and an O of the input
    kept = start.crystals.atomic_numbers[start.fixed[0]].tolist()
    assert sorted(kept) == sorted(given.atomic_numbers[[1, 4]].tolist()) == [8, 22]
    # what is fixed is the very atom: same neighbours, hence the same distance to the other fixed one
    difference = start.crystals.frac_coords[start.fixed[0]].diff(dim=0)
    distance = (lat.wrapped_difference(difference, torch.zeros(1, 3)) @ start.crystals.lattice[0]).norm()
    wanted = lat.wrapped_difference(
        torch.tensor(given.frac_coords[1]), torch.tensor(given.frac_coords[4])
    ) @ torch.tensor(lattice)
    assert float(distance) == pytest.approx(float(wanted.norm()), abs=1e-4)

    jobs = jobs_from(network, start, formulas=["SrTiO3"])
    config = SamplingConfig(steps=5)
    seen = []
    handle = network.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    result = sample_jobs(network, diffusion, jobs, seed=0, config=config, start=start)
    handle.remove()
    atoms = start.fixed[0].repeat(len(jobs))
    decoded = (seen[-1] - network.latent_mean) / network.latent_std
    torch.testing.assert_close(decoded[atoms], start.latents[0][start.fixed[0]].repeat(len(jobs), 1))
    assert not decoded[~atoms].allclose(start.latents[0][~start.fixed[0]].repeat(len(jobs), 1))
    assert result.crystals.atomic_numbers[atoms].equal(torch.tensor(kept * len(jobs)))
    assert sorted(result.crystals.atomic_numbers[:5].tolist()) == [8, 8, 8, 22, 38]
    assert result.fixed_deviation is not None
    moved = lat.wrapped_difference(result.crystals.frac_coords[:5], start.crystals.frac_coords)
    worst = (moved @ start.crystals.lattice[0]).norm(dim=-1)[start.fixed[0]].max()
    assert float(result.fixed_deviation[0]) == pytest.approx(float(worst), abs=1e-5)


def test_fixed_species_are_all_atoms_of_an_element(
    perovskite: CrystalArrays, rocksalt: CrystalArrays
) -> None:
    network = tiny_network()
    start = start_from(network, CrystalBatch.from_arrays([perovskite]), fix_species="O", strength=0.5)
    assert start.crystals.atomic_numbers[start.fixed[0]].tolist() == [8, 8, 8]
    jobs = jobs_from(network, start, required="Ba")
    found = sample_jobs(network, DDPM, jobs, seed=0, config=SamplingConfig(steps=4), start=start).crystals
    for atomic_numbers in found.atomic_numbers.split(5):
        assert atomic_numbers[start.fixed[0]].tolist() == [8, 8, 8]
        assert 56 in atomic_numbers.tolist()
    with pytest.raises(
        ValueError, match="fix_species must be elements of the structure, got atomic number 8"
    ):
        start_from(network, CrystalBatch.from_arrays([perovskite, rocksalt]), fix_species=["O"])


def test_draws_of_the_posterior_differ_from_crystal_to_crystal_and_means_do_not(
    perovskite: CrystalArrays,
) -> None:
    network = tiny_network(FLOW)
    config = SamplingConfig(steps=10)
    for draw in (False, True):
        start = start_from(network, CrystalBatch.from_arrays([perovskite]), fix_sites=[0, 1, 2, 3], draw=draw)
        seen: list[torch.Tensor] = []
        handle = network.vae.post_quant_conv.register_forward_pre_hook(
            lambda _, a, seen=seen: seen.append(a[0])
        )
        sample_jobs(network, FLOW, jobs_from(network, start, 3), seed=0, config=config, start=start)
        handle.remove()
        first, second, _ = seen[-1].unflatten(0, (3, 5))[:, start.fixed[0]]
        assert first.allclose(second, atol=1e-4) != draw


def test_a_structure_prediction_model_keeps_the_elements_of_its_start(perovskite: CrystalArrays) -> None:
    network = tiny_network(FLOW, ALL_CONDITIONS, atom_type_predict=False)
    config = SamplingConfig(steps=4)
    start = start_from(network, CrystalBatch.from_arrays([perovskite]), strength=0.5, fix_species="Ti")
    for formulas in ([], ["TiSrO3"]):
        jobs = jobs_from(network, start, formulas=formulas)
        assert jobs.asked[0].conditions["chemical_system"] == ("O", "Ti", "Sr")
        found = sample_jobs(network, FLOW, jobs, seed=0, config=config, start=start).crystals
        assert found.atomic_numbers.equal(torch.tensor([8, 8, 8, 22, 38]).repeat(6))
    asks = build_asks(network, train_sizes=TRAIN_SIZES, formulas=["NaCl"])
    jobs = plan_jobs(range(5), seed=0, sizes=TRAIN_SIZES, asks=asks)
    found = sample_jobs(network, FLOW, jobs, seed=0, config=config).crystals
    assert set(found.atomic_numbers.tolist()) == {11, 17}
    with pytest.raises(ValueError, match="formula must be that of the structure"):
        jobs_from(network, start, formulas=["BaTiO3"])


def test_starts_that_cannot_be_are_refused(perovskite: CrystalArrays) -> None:
    network = tiny_network()
    structures = CrystalBatch.from_arrays([perovskite])
    for strength in (0.0, 1.1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
            start_from(network, structures, strength=strength)
    with pytest.raises(ValueError, match="fix_sites must be from 0 to 4 in this structure, got 5"):
        start_from(network, structures, fix_sites=[5])
    with pytest.raises(ValueError, match="must leave at least one atom"):
        start_from(network, structures, fix_species="Sr,Ti,O")
    with pytest.raises(ValueError, match="1 to 99, the networks' classes, got atomic number 100"):
        start_from(network, replace(structures, atomic_numbers=structures.atomic_numbers + 62))
    start = start_from(network, structures, fix_species="O")
    with pytest.raises(
        ValueError, match=r"formula and num_atoms must fit the structure .* has 5 atoms; got 2 or 4"
    ):
        jobs_from(network, start, formulas=["NaCl"])
    with pytest.raises(ValueError, match=r"formula must hold the fixed atoms \(O\), got NaCl4"):
        jobs_from(network, start, formulas=["NaCl4"])
    with pytest.raises(ValueError, match=r"must allow the fixed atoms \(O\)"):
        jobs_from(network, start, forbidden="O")
    with pytest.raises(ValueError, match="no more than the atoms that are not fixed"):
        jobs_from(network, start, required="Li,Na,K")
    with pytest.raises(ValueError, match="num_atoms must be that of the structure to start from"):
        start.which(Jobs.plain(torch.tensor([4])))


def one(coords: list[list[float]], cell: np.ndarray) -> CrystalArrays:
    return CrystalArrays(np.full(len(coords), 14), np.array(coords), cell)


def test_impossible_crystals_are_refused_with_kind_and_sentence() -> None:
    apart = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    flat = 4.0 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [30.0, 30.0, 0.02]])
    cases: list[tuple[CrystalArrays, RefusalKind | None, str]] = [
        (one(apart, 4.0 * np.eye(3)), None, ""),
        (
            one([[0.0, 0.0, 0.0], [0.0, 0.0, 0.05]], 4.0 * np.eye(3)),
            RefusalKind.OVERLAPPING_ATOMS,
            r"0\.200 Å apart",
        ),
        (
            one([[0.0, 0.0, 0.0]], np.diag([0.4, 9.0, 9.0])),
            RefusalKind.OVERLAPPING_ATOMS,
            "its own periodic image",
        ),
        (one(apart, 1.2 * np.eye(3)), RefusalKind.COLLAPSED_CELL, r"0\.864 Å\^3 per atom"),
        (one(apart, np.diag([400.0, 400.0, 1e-4])), RefusalKind.COLLAPSED_CELL, "lattice planes"),
        (one(apart, flat), RefusalKind.COLLAPSED_CELL, "lattice planes"),
        (one(apart, np.zeros((3, 3))), RefusalKind.COLLAPSED_CELL, "lattice planes"),
        (one(apart, 14.0 * np.eye(3)), RefusalKind.EXPLODED_CELL, r"1372 Å\^3 per atom"),
        (one([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]], 4.0 * np.eye(3)), RefusalKind.NOT_FINITE, "not finite"),
        (one(apart, np.full((3, 3), np.inf)), RefusalKind.NOT_FINITE, "not finite"),
    ]
    batch = CrystalBatch.from_arrays([crystal for crystal, _, _ in cases])
    for refusal, (_, kind, words) in zip(geometry_refusals(batch), cases, strict=True):
        if kind is None:
            assert refusal is None
            continue
        assert refusal is not None
        assert refusal.kind is kind
        assert words.replace("\\", "") in refusal.reason
    close = GeometryLimits(limits=Limits(max_atoms=None, min_distance=4.0))
    assert [refusal is None for refusal in geometry_refusals(batch, close)] == [False] * len(cases)
    assert geometry_refusals(CrystalBatch.from_arrays([])) == []
