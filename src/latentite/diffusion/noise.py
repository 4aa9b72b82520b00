"""Counter-based normal noise: every number is a function of (seed, stream, step, token, channel).

Nothing is drawn in sequence, so batch size, order, padding, number of workers and resumption cannot change a
crystal's noise, and no generator needs to be kept. The generator is Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") in vectorised integer operations, then Box-Muller. Used by
whoever calls `samplers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_SEED_STREAM = 0xFFFFFFFF
_UNIFORM_STREAM = 0xFFFFFFFE
_BLOCK_NUMBERS = 1 << 20
"""About so many numbers are made at once, so that the calls of one step do not add up."""


class NoiseStream(IntEnum):
    """Independent sequences that one crystal owns."""

    START = 0
    """Start of sampling: x_T, or the noise put on a given crystal."""
    STEP = 1
    """The noise of each sampling step."""
    KNOWN = 2
    """The noise on known tokens while inpainting."""
    POSTERIOR = 3
    """Draws from an encoder's posterior."""


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words from a counter of four and a key of two, all as int64 in [0, 2^32).

    A product of two words overflows int64 into its sign; its bits are still those of the unsigned product,
    and masking after the shift removes the extended sign.
    """
    first, second, third, fourth = counter
    low_key, high_key = key
    for _ in range(_NUM_ROUNDS):
        product, other = _MULTIPLIERS[0] * first, _MULTIPLIERS[1] * third
        first, second, third, fourth = (
            ((other >> 32) & _WORD) ^ second ^ low_key,
            other & _WORD,
            ((product >> 32) & _WORD) ^ fourth ^ high_key,
            product & _WORD,
        )
        low_key = (low_key + _KEY_STEPS[0]) & _WORD
        high_key = (high_key + _KEY_STEPS[1]) & _WORD
    return first, second, third, fourth


def crystal_seeds(run_seed: int, indices: Sequence[int]) -> list[int]:
    """The 64-bit seed of each crystal of a run, from the run's seed and the crystal's index alone."""
    index = _words(indices)
    run = _words([run_seed])
    zero = torch.zeros_like(index[0])
    high, low, _, _ = philox((index[0], index[1], zero, zero + _SEED_STREAM), run)
    return [(upper << 32) | lower for upper, lower in zip(high.tolist(), low.tolist(), strict=True)]


def crystal_uniforms(run_seed: int, indices: Sequence[int], draw: int) -> Float[Tensor, " crystal"]:
    """One uniform number in [0, 1) for each crystal of a run, float64 with 32 random bits.

    Args:
        run_seed: of the run.
        indices: place of each crystal in the run.
        draw: which of a crystal's numbers, from 0; different draws are independent.
    """
    index = _words(indices)
    zero = torch.zeros_like(index[0])
    word = philox((index[0], index[1], zero + draw, zero + _UNIFORM_STREAM), _words([run_seed]))[0]
    return word.double() * 2.0**-32


def seed_uniforms(seeds: Sequence[int], count: int) -> Float[Tensor, "crystal number"]:
    """Uniform numbers in [0, 1) that a crystal owns by its seed (`crystal_seeds`), float64 with 32 random bits.

    Args:
        seeds: of the crystals.
        count: how many for each; more of them begin with the same ones.
    """
    key = tuple(word.unsqueeze(-1) for word in _words(seeds))
    block = torch.arange(-(-count // 4)).expand(len(seeds), -1)
    zero = torch.zeros_like(block)
    words = philox((block, zero, zero, zero + _UNIFORM_STREAM), (key[0], key[1]))
    return torch.stack(words, dim=-1).flatten(1)[:, :count].double() * 2.0**-32


def _words(integers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Lower and upper 32 bits of integers modulo 2^64."""
    for integer in integers:
        if not -(1 << 63) <= integer < 1 << 64:
            raise ValueError(f"a seed or index must fit in 64 bits, got {integer}")
    lower = torch.tensor([integer & _WORD for integer in integers], dtype=torch.int64)
    upper = torch.tensor([(integer >> 32) & _WORD for integer in integers], dtype=torch.int64)
    return lower, upper


class CrystalNoise:
    """Standard normal noise for a batch of crystals, each with a seed of its own.

    Crystal i's noise at (stream, step, token, channel) depends on its seed alone. Padding is exactly zero.
    Calling gives the noise of a sampling step, so an instance is what samplers take as `noise`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        num_atoms: Int[Tensor, " crystal"] | Sequence[int],
        num_channels: int,
        num_tokens: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Noise `[crystal token channel]` on the device.

        Args:
            seeds: one per crystal (`crystal_seeds`).
            num_atoms: tokens that are not padding, per crystal.
            num_channels: channels of a token.
            num_tokens: padded length; the largest crystal by default.
            device: where the noise is made.

        Raises:
            ValueError: when seeds and atoms differ in number or a crystal does not fit.
        """
        atoms = torch.as_tensor(num_atoms, dtype=torch.int64).cpu()
        if len(seeds) != len(atoms):
            raise ValueError(f"seeds must be as many as crystals ({len(atoms)}), got {len(seeds)}")
        largest = int(atoms.max()) if len(atoms) else 0
        self.num_tokens = largest if num_tokens is None else num_tokens
        if self.num_tokens < largest:
            raise ValueError(f"num_tokens must be at least {largest}, got {self.num_tokens}")
        self.num_channels = num_channels
        self.device = torch.device(device)
        lower, upper = _words(seeds)
        is_atom = torch.arange(self.num_tokens) < atoms[:, None]
        crystal, token = is_atom.nonzero().unbind(-1)
        self._key = (lower[crystal][:, None].to(self.device), upper[crystal][:, None].to(self.device))
        self._token = token[:, None].to(self.device)
        self._slot = (crystal * self.num_tokens + token).to(self.device)
        self._num_crystals = len(atoms)
        self._blocks: dict[NoiseStream, tuple[int, Tensor]] = {}

    def __call__(self, step: int) -> Float[Tensor, "crystal token channel"]:
        """Noise of this sampling step."""
        return self.draw(NoiseStream.STEP, step)

    def start(self) -> Float[Tensor, "crystal token channel"]:
        """x_T."""
        return self._make(NoiseStream.START, 0, 1)[0]

    def known(self, step: int) -> Float[Tensor, "crystal token channel"]:
        """Noise for known tokens; the same at every step, so that they move on one smooth path."""
        del step
        return self.draw(NoiseStream.KNOWN, 0)

    def draw(self, stream: NoiseStream, step: int) -> Float[Tensor, "crystal token channel"]:
        """Noise of one step of a stream. Steps are made in blocks; a stream keeps its last block."""
        numbers = max(1, len(self._token) * self.num_channels)
        length = max(1, min(32, _BLOCK_NUMBERS // numbers))
        first = step - step % length
        if stream not in self._blocks or self._blocks[stream][0] != first:
            self._blocks[stream] = (first, self._make(stream, first, length))
        return self._blocks[stream][1][step - first].clone()

    def _make(self, stream: NoiseStream, first: int, length: int) -> Tensor:
        """`[step crystal token channel]` for `length` steps."""
        num_blocks = -(-self.num_channels // 4)  # each call of the generator gives four channels
        shape = (length, len(self._token), num_blocks)
        step = torch.arange(first, first + length, device=self.device)[:, None, None]
        block = torch.arange(num_blocks, device=self.device)
        counter = (
            block.expand(shape),
            self._token.expand(shape),
            step.expand(shape),
            torch.full((1, 1, 1), int(stream), device=self.device).expand(shape),
        )
        words = philox(counter, self._key)
        normals = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
        values = normals.flatten(2)[..., : self.num_channels]
        padded = values.new_zeros(length, self._num_crystals * self.num_tokens, self.num_channels)
        padded[:, self._slot] = values
        return padded.view(length, self._num_crystals, self.num_tokens, self.num_channels)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words, float32.

    Computed in float64, so that last-bit differences between devices or between vectorised and scalar
    mathematics vanish in the rounding to float32; in float32 on MPS, which has no float64.
    """
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    radius = (-2.0 * ((first.to(dtype) + 0.5) * 2.0**-32).log()).sqrt()
    angle = (2.0 * math.pi * 2.0**-32) * second.to(dtype)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()
