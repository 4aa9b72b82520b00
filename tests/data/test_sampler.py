"""Batch plans: every crystal once, the same for a seed, fair over processes, little padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Int
from torch import Tensor

from latentite.data.sampler import BatchPlan, WeightedDraw, epoch_batches, seeded_generator

MP_20_FRACTIONS = [
    0.0022, 0.0211, 0.0198, 0.1527, 0.0471, 0.0846, 0.0211, 0.0781, 0.0343, 0.0973,
    0.0133, 0.0967, 0.0216, 0.0652, 0.0144, 0.0670, 0.0097, 0.0532, 0.0106, 0.0900,
]  # fmt: skip
"""Share of MP-20 crystals by number of atoms 1..20 (counted over its 45,229 public rows)."""


def padding_waste(num_atoms: Int[Tensor, " crystal"], batches: list[Int[Tensor, " selected"]]) -> float:
    """Share of token slots that hold no atom when each batch is padded to its largest crystal."""
    slots = sum(int(num_atoms[batch].max()) * len(batch) for batch in batches)
    atoms = sum(int(num_atoms[batch].sum()) for batch in batches)
    return 1.0 - atoms / slots if slots else 0.0


def mp_20_sizes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(torch.tensor(MP_20_FRACTIONS), count, replacement=True, generator=generator) + 1


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=120),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([None, 20, 64]),
    st.integers(0, 3),
)
def test_every_crystal_is_in_exactly_one_batch(
    sizes: list, batch_size: int, bucketed: bool, atoms: int | None, epoch: int
) -> None:
    num_atoms = torch.tensor(sizes)
    plan = BatchPlan(batch_size=batch_size, batch_atoms=atoms, bucketed=bucketed)
    batches = epoch_batches(num_atoms, plan, epoch=epoch)
    assert torch.cat(batches).sort().values.tolist() == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= batch_size
        if atoms is not None:
            padded = int(num_atoms[batch].max()) * len(batch)
            assert (padded if bucketed else int(num_atoms[batch].sum())) <= atoms


def test_bucketing_wastes_under_five_percent_on_mp_20_like_sizes() -> None:
    num_atoms = mp_20_sizes(10_000)
    bucketed = padding_waste(num_atoms, epoch_batches(num_atoms, BatchPlan(batch_size=256)))
    random = padding_waste(num_atoms, epoch_batches(num_atoms, BatchPlan(batch_size=256, bucketed=False)))
    assert bucketed < 0.05
    assert random > 0.4  # what bucketing saves


def test_a_plan_depends_on_seed_and_epoch_only() -> None:
    num_atoms = mp_20_sizes(500)
    plan = BatchPlan(batch_size=32, seed=0)
    first, again = epoch_batches(num_atoms, plan, epoch=3), epoch_batches(num_atoms, plan, epoch=3)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    for other in (
        epoch_batches(num_atoms, plan, epoch=4),
        epoch_batches(num_atoms, BatchPlan(batch_size=32, seed=1)),
    ):
        assert not torch.cat(first).equal(torch.cat(other))


@pytest.mark.parametrize("bucketed", [True, False])
def test_processes_share_each_global_batch_evenly(bucketed: bool) -> None:
    num_atoms = mp_20_sizes(1000)
    plan = BatchPlan(batch_size=64, bucketed=bucketed)
    whole = epoch_batches(num_atoms, plan, epoch=1)
    parts = [epoch_batches(num_atoms, plan, epoch=1, rank=r, world_size=2) for r in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.cat([left, right]).sort().values.equal(batch.sort().values)
        assert abs(len(left) - len(right)) <= 1


def test_a_crystal_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_atoms must be at least the largest crystal \(30 atoms\), got 20"
    ):
        epoch_batches(torch.tensor([3, 30]), BatchPlan(batch_atoms=20))


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        BatchPlan(batch_size=-1)


def test_generators_of_different_owners_differ() -> None:
    draws = {
        tuple(torch.rand(2, generator=seeded_generator(*owner)).tolist())
        for owner in [(0, 1), (1, 0), (0, 0), (0,)]
    }
    assert len(draws) == 4


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
    st.integers(0, 6),
)
def test_a_weighted_draw_has_the_shares_and_its_rows_take_turns(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    group = group[torch.randperm(len(group), generator=seeded_generator(seed))]
    used = tuple(weights[: len(sizes)])
    draw = WeightedDraw(group=group, weights=used, seed=seed)
    drawn = [draw.rows(epoch) for epoch in range(5)]
    for rows in drawn:
        assert len(rows) == len(group)
        counts = torch.bincount(group[rows], minlength=len(sizes)).tolist()
        exact = [len(group) * weight / sum(used) for weight in used]
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))
    # Over any number of epochs no row of a group is more than one turn ahead of another.
    for epochs in range(1, 6):
        times = torch.bincount(torch.cat(drawn[:epochs]), minlength=len(group))
        for position in range(len(sizes)):
            of_group = times[group == position]
            assert int(of_group.max() - of_group.min()) <= 1


def test_a_group_of_weight_zero_is_never_drawn_and_one_without_rows_is_refused() -> None:
    group = torch.tensor([0, 0, 1])
    assert set(WeightedDraw(group=group, weights=(1.0, 0.0)).rows(0).tolist()) == {0, 1}
    with pytest.raises(ValueError, match="group 2 must have rows to draw"):
        WeightedDraw(group=group, weights=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="not all 0"):
        WeightedDraw(group=group, weights=(0.0, 0.0))
