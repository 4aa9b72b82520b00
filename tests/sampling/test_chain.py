"""The chain: guidance, subsets of conditions, independence of batches, trajectories, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_ldm import (
    ALL_CONDITIONS,
    DDPM,
    FLOW,
    NUM_ATOMS,
    TRAIN_SIZES,
    build_asks,
    counted_passes,
    some_jobs,
    tiny_network,
)

from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.samplers import SamplerKind, sample
from latentite.diffusion.steps import SamplerSettings, Variance
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.latent.chain import (
    SamplingConfig,
    SamplingPrecision,
    sample_jobs,
    sampling_schedule,
    size_batches,
)
from latentite.generators.sizes import NumAtoms, plan_jobs
from latentite.generators.told import told
from latentite.nn.conditions import Conditioning
from latentite.nn.denoiser import OutputLayout
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.vae import LatentBatch
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind

SAMPLERS = {
    SamplerKind.DDPM: DDPM,
    SamplerKind.DDIM: DDPM,
    SamplerKind.DPM_SOLVER: DDPM,
    SamplerKind.EULER: FLOW,
    SamplerKind.HEUN: FLOW,
    SamplerKind.FLOW_SDE: FLOW,
}


def asking(jobs: Jobs, *asks: Ask) -> Jobs:
    """The same jobs, the asks dealt out in turn."""
    return replace(jobs, asks=torch.arange(len(jobs)) % len(asks), asked=tuple(asks))


def by_hand(
    network: LatentDiffusion,
    diffusion: DiffusionConfig,
    jobs: Jobs,
    config: SamplingConfig,
    embedding: Conditioning | None,
) -> CrystalBatch:
    """One batch in the order of the jobs, the network told these conditions."""
    kind, schedule = sampling_schedule(diffusion, config)
    noise = CrystalNoise(jobs.seeds(3), num_atoms=jobs.num_atoms, num_channels=4)
    mask = LatentBatch.token_mask(jobs.num_atoms)
    found = sample(
        kind,
        lambda tokens, time: network.denoiser(tokens, time, mask, embedding),
        noise.start(),
        mask,
        schedule=schedule,
        noise=noise,
        settings=SamplerSettings(
            target=diffusion.target,
            variance=diffusion.variance if diffusion.learn_variance else Variance.FIXED_SMALL,
            eta=config.eta,
        ),
    )
    return network.decode(LatentBatch(tokens=found.latents, mask=mask)).to_crystals()


def assert_close(found: CrystalBatch, wanted: CrystalBatch, tolerance: float = 1e-4) -> None:
    """Same elements, coordinates and cells within the tolerance (Å)."""
    assert found.atomic_numbers.equal(wanted.atomic_numbers)
    difference = found.frac_coords - wanted.frac_coords
    moved = torch.einsum("ai,aij->aj", difference - difference.round(), wanted.lattice[wanted.crystal_index])
    assert float(moved.norm(dim=-1).max()) < tolerance
    torch.testing.assert_close(found.lattice, wanted.lattice, atol=tolerance, rtol=0.0)


def assert_equal(found: CrystalBatch, wanted: CrystalBatch) -> None:
    """The same bits."""
    for name in ("atomic_numbers", "frac_coords", "lattice", "num_atoms"):
        assert getattr(found, name).equal(getattr(wanted, name)), name


@pytest.mark.parametrize(("sampler", "diffusion"), SAMPLERS.items())
def test_no_guidance_is_the_unconditional_and_guidance_one_the_conditional_model_in_one_pass(
    sampler: SamplerKind, diffusion: DiffusionConfig
) -> None:
    network = tiny_network(diffusion, ALL_CONDITIONS)
    module = network.condition_module
    assert module is not None
    # sizes that stay in one batch, in the order in which the batch holds them
    plain = Jobs.plain(torch.tensor([4] * 6))
    jobs = asking(plain, Ask(conditions=module.parse("band_gap=1.5,chemical_system=Li-O")))
    with torch.no_grad():
        given = module(module.requested(jobs.asked[0].conditions, 6))
    results = {}
    for scale, embedding in ((0.0, module.absent(6)), (1.0, given)):
        config = SamplingConfig(sampler=sampler, steps=5, guidance=scale)
        with counted_passes(network) as rows:
            results[scale] = sample_jobs(network, diffusion, jobs, seed=3, config=config).crystals
        assert rows == [6] * (9 if sampler is SamplerKind.HEUN else 5)
        assert_equal(results[scale], by_hand(network, diffusion, jobs, config, embedding))
    unasked = sample_jobs(
        network, diffusion, plain, seed=3, config=SamplingConfig(sampler=sampler, steps=5)
    ).crystals
    assert_equal(results[0.0], unasked)
    assert not results[1.0].lattice.allclose(results[0.0].lattice)
    stronger = SamplingConfig(sampler=sampler, steps=5, guidance=2.0)
    with counted_passes(network) as rows:
        guided = sample_jobs(network, diffusion, jobs, seed=3, config=stronger).crystals
    assert set(rows) == {12}
    assert not guided.lattice.allclose(results[1.0].lattice)


def test_one_scale_for_each_condition_is_the_sum_of_their_pulls() -> None:
    network = tiny_network(FLOW, ALL_CONDITIONS)
    module = network.condition_module
    assert module is not None
    jobs = asking(some_jobs(6), Ask(conditions=module.parse("band_gap=1.5,chemical_system=Li-O")))
    only_gap = asking(some_jobs(6), Ask(conditions=module.parse("band_gap=1.5")))

    def run(chosen: Jobs, guidance: float | dict[str, float]) -> CrystalBatch:
        config = SamplingConfig(sampler=SamplerKind.EULER, steps=3, guidance=guidance)
        return sample_jobs(network, FLOW, chosen, seed=0, config=config).crystals

    assert_close(run(jobs, {"band_gap": 1.0, "chemical_system": 0.0}), run(only_gap, 1.0))
    both = run(jobs, {"band_gap": 1.0, "chemical_system": 1.0})
    assert not both.lattice.allclose(run(only_gap, 1.0).lattice)


def test_jobs_that_ask_different_things_share_a_batch_and_get_what_each_asked() -> None:
    network = tiny_network(DDPM, ALL_CONDITIONS)
    module = network.condition_module
    assert module is not None
    asks = (
        Ask(conditions=module.parse("band_gap=0.5")),
        Ask(conditions=module.parse("chemical_system=Na-Cl,spacegroup=225")),
        Ask(conditions=module.parse("band_gap=3.0,composition=LiFePO4")),
        Ask(),
    )
    jobs = asking(Jobs.plain(torch.tensor([4] * 8)), *asks)
    config = SamplingConfig(steps=4, guidance=1.5)
    mixed = sample_jobs(network, DDPM, jobs, seed=0, config=config).crystals
    for number in range(len(asks)):
        members = (jobs.asks == number).nonzero().flatten()
        alone = sample_jobs(network, DDPM, jobs.select(members), seed=0, config=config).crystals
        assert_close(mixed.select(members), alone)
    values, present = told(module, jobs)
    assert set(values) == {"band_gap", "chemical_system", "spacegroup", "composition"}
    assert present["band_gap"].tolist() == [True, False, True, False] * 2
    assert values["band_gap"][::2].tolist() == [0.5, 3.0] * 2


def test_a_model_that_knows_the_number_of_atoms_is_told_it() -> None:
    network = tiny_network(DDPM, (*ALL_CONDITIONS, NUM_ATOMS))
    module = network.condition_module
    assert module is not None
    jobs = Jobs.plain(torch.tensor([3, 3]))
    values, present = told(module, jobs)
    assert values["num_atoms"].tolist() == [3.0, 3.0]
    assert present["num_atoms"].tolist() == [True, True]
    config = SamplingConfig(steps=4, guidance=1.0)
    with torch.no_grad():
        embedding = module({"num_atoms": torch.tensor([3.0, 3.0])})
    found = sample_jobs(network, DDPM, jobs, seed=3, config=config).crystals
    assert_equal(found, by_hand(network, DDPM, jobs, config, embedding))


@pytest.mark.parametrize("diffusion", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_a_crystal_depends_neither_on_batch_size_nor_on_order_nor_on_what_else_is_sampled(
    diffusion: DiffusionConfig,
) -> None:
    network = tiny_network(diffusion, ALL_CONDITIONS)
    asks = build_asks(
        network,
        train_sizes=TRAIN_SIZES,
        formulas=["NaCl", "SrTiO3"],
        conditions="band_gap=2.0",
    )
    jobs = plan_jobs(range(24), seed=7, sizes=TRAIN_SIZES, asks=asks, num_samples=12)

    def run(chosen: Jobs, batch_size: int) -> CrystalBatch:
        config = SamplingConfig(steps=4, batch_size=batch_size)
        return sample_jobs(network, diffusion, chosen, seed=7, config=config).crystals

    together = run(jobs, 64)
    for batch_size in (1, 7):
        assert_close(run(jobs, batch_size), together)
    assert_equal(run(jobs, 64), together)
    some = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:9]
    assert_close(run(jobs.select(some), 7), together.select(some))


def test_a_layout_that_sees_padding_gets_none() -> None:
    """Outputs of imported Chemeleon2 checkpoints depend on the padded length of their batch."""
    network = tiny_network(layout=OutputLayout.CHEMELEON2)
    jobs = some_jobs(30)
    with counted_passes(network) as rows:
        together = sample_jobs(network, DDPM, jobs, seed=0, config=SamplingConfig(steps=4)).crystals
    assert len(rows) == 4 * len(jobs.num_atoms.unique())
    config = SamplingConfig(steps=4, batch_size=1)
    assert_close(sample_jobs(network, DDPM, jobs, seed=0, config=config).crystals, together)


def test_another_attempt_and_another_seed_give_other_crystals_of_the_same_job() -> None:
    network = tiny_network()
    jobs = some_jobs(6)
    again = replace(jobs, attempts=jobs.attempts + 1)
    config = SamplingConfig(steps=3)
    first, second = (sample_jobs(network, DDPM, j, seed=0, config=config).crystals for j in (jobs, again))
    other = sample_jobs(network, DDPM, jobs, seed=1, config=config).crystals
    assert first.num_atoms.equal(second.num_atoms)
    assert bool(((first.lattice - second.lattice).abs().amax(dim=(1, 2)) > 1e-3).all())
    assert bool(((first.lattice - other.lattice).abs().amax(dim=(1, 2)) > 1e-3).all())


@pytest.mark.parametrize("diffusion", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_a_trajectory_ends_in_the_result_and_keeps_the_formula_all_along(diffusion: DiffusionConfig) -> None:
    network = tiny_network(diffusion, ALL_CONDITIONS)
    asks = build_asks(network, train_sizes=TRAIN_SIZES, formulas=["NaCl"])
    jobs = plan_jobs(range(9), seed=0, sizes=TRAIN_SIZES, asks=asks)
    config = SamplingConfig(steps=5, batch_size=4)
    plain = sample_jobs(network, diffusion, jobs, seed=0, config=config)
    full = sample_jobs(network, diffusion, jobs, seed=0, config=config, trajectory=True)
    assert plain.trajectory is None
    assert full.trajectory is not None
    assert len(full.trajectory) == 6
    assert_equal(full.crystals, plain.crystals)
    assert_equal(full.trajectory[-1], full.crystals)
    assert not full.trajectory[0].lattice.allclose(full.crystals.lattice)
    for state in full.trajectory:
        assert state.num_atoms.equal(jobs.num_atoms)
        assert int((state.atomic_numbers == 11).sum()) == int((state.atomic_numbers == 17).sum())


def test_lower_precision_is_near_and_only_the_denoiser_uses_it() -> None:
    network = tiny_network(FLOW)
    config = SamplingConfig(steps=5)
    exact = sample_jobs(network, FLOW, some_jobs(8), seed=0, config=config).crystals
    seen = []
    handle = network.denoiser.x_embedder.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    low = sample_jobs(
        network, FLOW, some_jobs(8), seed=0, config=replace(config, precision=SamplingPrecision.BF16)
    )
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    assert low.crystals.lattice.dtype == torch.float32
    torch.testing.assert_close(low.crystals.lattice, exact.lattice, atol=0.05, rtol=0.05)


MP_20 = [0, 22, 211, 198, 1527, 471, 846, 211, 781, 343, 973, 133, 967, 216, 652, 144, 670, 97, 532, 106, 900]


@pytest.mark.parametrize(("count", "batch_size"), [(64, 256), (1000, 256), (4096, 256), (1000, 64), (300, 1)])
def test_batches_hold_every_crystal_once_and_waste_less_than_a_twentieth(count: int, batch_size: int) -> None:
    sizes = plan_jobs(range(count), seed=0, sizes=NumAtoms.from_histogram(MP_20)).num_atoms
    batches = size_batches(sizes, batch_size)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert max(map(len, batches)) <= batch_size
    padded = sum(len(batch) * int(sizes[batch].max()) for batch in batches)
    assert 1.0 - int(sizes.sum()) / padded < 0.05
    assert len(batches) <= count // batch_size + 12


def test_no_jobs_give_no_crystals() -> None:
    network = tiny_network()
    result = sample_jobs(network, DDPM, some_jobs(0), seed=0, config=SamplingConfig(steps=3), trajectory=True)
    assert len(result.crystals) == 0


def test_settings_that_cannot_be_are_refused() -> None:
    network = tiny_network()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        SamplingConfig(steps=0)
    with pytest.raises(ValueError, match="guidance must be finite"):
        SamplingConfig(guidance={"band_gap": float("nan")})
    with pytest.raises(ValueError, match="steps must be from 1 to the schedule's 20, got 50"):
        sample_jobs(network, DDPM, some_jobs(2), seed=0, config=SamplingConfig(steps=50))
    config = SamplingConfig(sampler=SamplerKind.EULER, steps=5)
    with pytest.raises(ValueError, match=r"sampler must be .* got euler"):
        sample_jobs(network, DDPM, some_jobs(2), seed=0, config=config)


def test_steps_and_their_spacing_follow_the_sampler_where_none_are_given() -> None:
    flow, ddpm = DiffusionConfig(kind=DiffusionKind.FLOW), DiffusionConfig()

    def levels(
        diffusion: DiffusionConfig, sampler: SamplerKind | None = None, steps: int | None = None
    ) -> int:
        return sampling_schedule(diffusion, SamplingConfig(sampler=sampler, steps=steps))[1].num_steps

    assert (levels(flow), levels(flow, SamplerKind.EULER), levels(ddpm)) == (25, 50, 50)
    assert levels(DiffusionConfig(num_steps=20)) == 20  # never more than there are
    assert levels(flow, steps=7) == 7
    spread = {}
    for sampler in (SamplerKind.DDIM, SamplerKind.DPM_SOLVER):
        schedule = sampling_schedule(ddpm, SamplingConfig(sampler=sampler, steps=10))[1]
        ratios = [schedule.at(step).log_alpha_over_sigma for step in range(10)]  # type: ignore[union-attr]
        gaps = torch.tensor(ratios).diff()
        spread[sampler] = float((gaps / gaps.mean()).std())
    assert spread[SamplerKind.DPM_SOLVER] < 0.3 < spread[SamplerKind.DDIM]
