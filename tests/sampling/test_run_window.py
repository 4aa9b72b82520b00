"""Windows of a run: replacement, shards, memory, and batches that do not fit."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import fake_draw
from tiny_ldm import TRAIN_SIZES

from latentite.crystal import CrystalBatch
from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Advance, Drawn
from latentite.generators.sizes import plan_jobs
from latentite.sampling.folder import Counts, Format, RunFolder
from latentite.sampling.run import Origin, Run, run_in_memory, run_to_folder
from latentite.sampling.window import (
    BatchSize,
    RefusalKind,
    Window,
    draw_window,
    is_out_of_memory,
    shard_range,
    window_size,
    windows,
)


def plan(indices: Sequence[int]) -> Jobs:
    return plan_jobs(indices, seed=0, sizes=TRAIN_SIZES)


def window_of(first: int, stop: int, *, max_attempts: int = 20, share_bad: float = 0.2) -> Window:
    return draw_window(
        first,
        stop,
        plan=plan,
        draw=fake_draw(share_bad=share_bad),
        batch_size=BatchSize(8),
        max_attempts=max_attempts,
    )


def test_crystal_i_is_its_first_usable_attempt_whatever_its_window() -> None:
    whole = window_of(0, 60)
    assert whole.jobs.indices.tolist() == list(range(60))
    parts = [window_of(a, b) for a, b in ((0, 1), (1, 17), (17, 60))]
    assert Jobs.concatenate([part.jobs for part in parts]).attempts.equal(whole.jobs.attempts)
    assert tuple(text for part in parts for text in part.cifs) == whole.cifs
    assert tuple(item for part in parts for item in part.rejected) == whole.rejected
    # every attempt before the usable one was refused, and none after it was made
    refused = {(item.index, item.attempt) for item in whole.rejected}
    wanted = {(i, k) for i, last in enumerate(whole.jobs.attempts.tolist()) for k in range(last)}
    assert refused == wanted
    assert len(refused) > 5
    again = fake_draw()(whole.jobs, 8, lambda count: None).crystals
    assert again.frac_coords.equal(whole.crystals.frac_coords)
    assert whole.is_verified.all()


def test_without_replacement_a_crystal_that_cannot_be_used_is_counted_and_left_out() -> None:
    replaced, kept = window_of(0, 60), window_of(0, 60, max_attempts=1)
    assert kept.num_failed == len(kept.rejected) > 0
    assert kept.jobs.attempts.eq(0).all()
    missing = set(range(60)) - set(kept.jobs.indices.tolist())
    assert missing == {item.index for item in kept.rejected} == {item.index for item in replaced.rejected}
    assert {item.refusal.kind for item in kept.rejected} == {RefusalKind.COLLAPSED_CELL}


def test_a_crystal_without_a_usable_attempt_is_failed_and_never_silently() -> None:
    window = window_of(0, 10, max_attempts=4, share_bad=1.1)
    assert (len(window.jobs), window.num_failed, len(window.rejected)) == (0, 10, 40)
    assert [(item.index, item.attempt) for item in window.rejected] == [
        (i, k) for i in range(10) for k in range(4)
    ]


def test_counts_say_what_was_replaced_and_what_failed() -> None:
    counts = Counts()
    counts.add(window_of(0, 50, max_attempts=2, share_bad=0.5))
    assert counts.done == counts.written + counts.failed == 50
    assert counts.failed > 0
    assert sum(counts.rejected.values()) - sum(counts.replaced.values()) == counts.failed
    assert counts.verified == counts.written


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 70))
def test_windows_cut_at_multiples_and_leave_nothing_out(first: int, length: int, size: int) -> None:
    parts = list(windows(first, first + length, size))
    assert [i for a, b in parts for i in range(a, b)] == list(range(first, first + length))
    assert all(a % size == 0 for a, _ in parts[1:])
    assert all(b - a <= size for a, b in parts)


@given(st.integers(1, 3000), st.integers(1, 12), st.integers(1, 64))
def test_shards_follow_each_other_and_are_whole_windows_where_there_are_enough(
    total: int, count: int, batch_size: int
) -> None:
    size = window_size(batch_size)
    shards = [shard_range(total, number, count, size) for number in range(1, count + 1)]
    assert [shards[0][0], shards[-1][1]] == [0, total]
    assert all(before[1] == after[0] for before, after in pairwise(shards))
    if total >= count * size:
        assert all(first % size == 0 for first, _ in shards)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []
    draw = fake_draw(seen=lambda jobs, size, found: sizes.append(size))

    def tight(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        if batch_size > 10:
            kind = torch.OutOfMemoryError if batch_size > 20 else RuntimeError
            raise kind(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return draw(jobs, batch_size, advance)

    size = BatchSize(40)
    with caplog.at_level(logging.WARNING):
        window = draw_window(0, 60, plan=plan, draw=tight, batch_size=size, max_attempts=20)
    assert size.value == 10
    assert set(sizes) == {10}
    assert [record.message for record in caplog.records] == [
        "out of memory: going on with a batch size of 20",
        "out of memory: going on with a batch size of 10",
    ]
    assert window.cifs == window_of(0, 60).cifs


def test_out_of_memory_with_one_crystal_is_an_error_of_one_sentence() -> None:
    def never(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(ValueError, match="memory must hold one crystal of 12 atoms at a time"):
        draw_window(0, 60, plan=plan, draw=never, batch_size=BatchSize(4), max_attempts=20)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        draw_window(0, 4, plan=plan, draw=broken, batch_size=BatchSize(4), max_attempts=20)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert is_out_of_memory(MemoryError())


def run(draw=None, *, total: int, batch_size: int = 4, first: int = 0, stop: int | None = None) -> Run:
    return Run(
        plan=plan,
        draw=draw or fake_draw(),
        seed=0,
        total=total,
        first=first,
        stop=total if stop is None else stop,
        window_size=window_size(batch_size),
        batch_size=batch_size,
        max_attempts=20,
    )


ORIGIN = Origin(
    settings={"steps": 5}, checkpoint={"file": "x", "sha256": "00" * 32}, command=["x"], device="cpu"
)


def test_memory_does_not_grow_with_the_run(tmp_path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = []

    def seen(jobs: Jobs, size: int, found: CrystalBatch) -> None:
        gc.collect()
        alive[:] = [ref for ref in alive if ref() is not None]
        most.append(len(alive))
        alive.append(weakref.ref(found.frac_coords))

    counts = run_to_folder(
        run(fake_draw(share_bad=0.0, seen=seen), total=64 * 8),
        tmp_path / "out",
        origin=ORIGIN,
        formats=[Format.EXTXYZ],
    )
    assert counts.written == 64 * 8
    assert len(most) == 8
    assert max(most) <= 2, "the crystals of finished windows are kept"


def test_a_run_in_memory_holds_the_same_crystals_as_the_files(tmp_path) -> None:
    crystals, jobs, counts = run_in_memory(run(total=150))
    assert jobs.indices.tolist() == list(range(150))
    assert len(crystals) == counts.written == 150
    run_to_folder(run(total=150), tmp_path / "out", origin=ORIGIN, formats=[Format.CIF])
    assert len(list((tmp_path / "out" / "cifs").iterdir())) == 150


def test_an_empty_shard_gives_nothing_and_does_not_fail(tmp_path) -> None:
    empty = run(total=3, first=2, stop=2)
    crystals, jobs, counts = run_in_memory(empty)
    assert (len(crystals), len(jobs), counts.done) == (0, 0, 0)
    assert run_to_folder(empty, tmp_path / "out", origin=ORIGIN, formats=[Format.CIF]).done == 0


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path) -> None:
    run_to_folder(run(total=10), tmp_path, origin=ORIGIN, formats=[Format.CIF])
    with RunFolder(tmp_path, [Format.CIF], total=10, has_deviation=False) as first:
        first.open(0)
        second = RunFolder(tmp_path, [Format.CIF], total=10, has_deviation=False)
        with second, pytest.raises(ValueError, match="must not be written by another run"):
            second.open(0)
