"""Counter-based noise: normal, independent, and a crystal's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from latentite.diffusion.noise import CrystalNoise, NoiseStream, crystal_seeds, philox


def _scalar(word: int) -> torch.Tensor:
    return torch.tensor([word])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    first, second, third, fourth = (_scalar(word) for word in counter)
    words = philox((first, second, third, fourth), (_scalar(key[0]), _scalar(key[1])))
    assert [int(word) for word in words] == expected


def _noise(seeds: list[int], num_atoms: list[int], **options: int) -> CrystalNoise:
    return CrystalNoise(seeds, num_atoms=num_atoms, num_channels=options.pop("num_channels", 8), **options)


def test_noise_is_standard_normal() -> None:
    noise = _noise(crystal_seeds(0, range(200)), [20] * 200)
    values = torch.stack([noise(step) for step in range(8)])
    assert values.dtype == torch.float32
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.01
    for channel in range(8):
        assert stats.kstest(values[..., channel].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((values**4).mean()) - 3.0) < 0.05
    assert values.abs().max() < 6.8


def test_no_two_directions_of_the_noise_are_correlated() -> None:
    noise = _noise(crystal_seeds(7, range(300)), [20] * 300)
    values = torch.stack([noise(step) for step in range(4)])  # [step crystal token channel]
    samples = values.permute(1, 2, 0, 3).reshape(6000, -1)  # step and channel against each other
    for table in (samples, values.permute(0, 1, 3, 2).reshape(-1, 20)):  # and tokens
        correlation = torch.corrcoef(table.T) - torch.eye(table.shape[1])
        assert correlation.abs().max() < 5.0 / len(table) ** 0.5
        squares = torch.corrcoef((table**2).T) - torch.eye(table.shape[1])
        assert squares.abs().max() < 5.0 / len(table) ** 0.5
    crystals = values.permute(0, 2, 3, 1).reshape(-1, 300)
    assert (torch.corrcoef(crystals.T) - torch.eye(300)).abs().max() < 6.0 / len(crystals) ** 0.5


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_crystals_noise_is_independent_of_batch_size_order_and_padding(batch_size: int) -> None:
    seeds, sizes = crystal_seeds(3, range(64)), [1 + (7 * k) % 20 for k in range(64)]
    whole = _noise(seeds, sizes, num_tokens=20)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    for begin in range(0, min(64, 20 * batch_size), batch_size):
        rows = order[begin : begin + batch_size]
        part = _noise([seeds[k] for k in rows], [sizes[k] for k in rows])
        for step in (33, 5):
            values, expected = part(step), whole(step)
            for place, row in enumerate(rows):
                size = sizes[row]
                assert torch.equal(values[place, :size], expected[row, :size])
                assert (values[place, size:] == 0).all()
        for place, row in enumerate(rows):
            assert torch.equal(part.start()[place, : sizes[row]], whole.start()[row, : sizes[row]])


def test_noise_is_the_same_on_repeated_calls_in_any_order_and_cannot_be_spoilt() -> None:
    noise = _noise([1, 2], [3, 5])
    first = [noise(step) for step in range(70)]
    for step in reversed(range(70)):
        again = noise(step)
        assert torch.equal(again, first[step])
        again.zero_()
    assert torch.equal(_noise([1, 2], [3, 5])(41), first[41])
    assert not torch.equal(first[0], first[1])


def test_streams_and_seeds_differ() -> None:
    noise = _noise([1, 2], [5, 5])
    tensors = [noise.draw(stream, 0) for stream in NoiseStream]
    for k, one in enumerate(tensors):
        assert not torch.equal(one[0], one[1])
        assert all(not torch.equal(one, other) for other in tensors[:k])
    assert torch.equal(noise.known(0), noise.known(9))


@given(run_seed=st.integers(-(2**63), 2**64 - 1), index=st.integers(0, 2**40))
def test_a_crystals_seed_needs_only_the_run_and_its_index(run_seed: int, index: int) -> None:
    seeds = crystal_seeds(run_seed, [index, index + 1])
    assert seeds[0] == crystal_seeds(run_seed, [index])[0]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_seed_zero_is_a_seed_and_seeds_do_not_collide() -> None:
    """Regression: `seed: 0` never seeded in Chemeleon2."""
    assert crystal_seeds(0, range(3)) == crystal_seeds(0, range(3))
    assert len(set(crystal_seeds(0, range(20000)) + crystal_seeds(1, range(20000)))) == 40000


@pytest.mark.parametrize("num_channels", [1, 3, 4, 6])
def test_more_channels_or_tokens_extend_the_noise(num_channels: int) -> None:
    wide = _noise([5], [4], num_channels=8)(2)
    narrow = _noise([5], [4], num_channels=num_channels)(2)
    assert torch.equal(narrow, wide[..., :num_channels])
    assert torch.equal(_noise([5], [2])(2), wide[:, :2])


def test_empty_and_unfitting_batches() -> None:
    assert _noise([], [], num_tokens=4)(0).shape == (0, 4, 8)
    with pytest.raises(ValueError, match="as many as crystals"):
        _noise([1], [2, 3])
    with pytest.raises(ValueError, match="num_tokens must be at least 3"):
        _noise([1], [3], num_tokens=2)
    with pytest.raises(ValueError, match="64 bits"):
        _noise([2**64], [3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_is_the_same_on_cpu_and_gpu() -> None:
    seeds, sizes = crystal_seeds(0, range(50)), [20] * 50
    on_gpu = CrystalNoise(seeds, num_atoms=sizes, num_channels=8, device="cuda")
    assert torch.equal(on_gpu(3).cpu(), _noise(seeds, sizes)(3))
