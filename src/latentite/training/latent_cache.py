"""The training set as posteriors of the frozen VAE: encoded once, kept on the device, drawn from in every step.

`encode_split` encodes augmented copies of the whole split; `CachedLatents` then stands in for the crystals as the
source of training batches (`BatchLoader` asks it for `num_atoms` and `select`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig, augment
from latentite.nn.vae import CrystalVAE, Posterior

ENCODE_CHUNK = 128
"""Crystals that are encoded together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedBatch:
    """Positions of a batch's crystals in the split; their latents lie on the device already."""

    crystals: Int[Tensor, " crystal"]
    """Positions in the split."""
    atoms: Int[Tensor, " atom"]
    """Positions among all atoms of the split."""
    num_atoms: Int[Tensor, " crystal"]

    def __len__(self) -> int:
        return len(self.crystals)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CachedBatch:
        """The same batch on another device."""
        return CachedBatch(
            crystals=self.crystals.to(device, non_blocking=non_blocking),
            atoms=self.atoms.to(device, non_blocking=non_blocking),
            num_atoms=self.num_atoms.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedLatents:
    """Posteriors of every atom of a split, one for each augmented copy, and what conditions say of its crystals."""

    crystals: CrystalBatch
    """The split itself, on the CPU, where batches are planned; everything else lies on the device."""
    means: Float[Tensor, "copy atom channel"]
    logvars: Float[Tensor, "copy atom channel"]
    values: dict[str, Float[Tensor, " crystal *channel"]]
    """Values of the conditions (`nn/condition_values.py`), by name; they do not depend on the copy."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal, on the CPU."""
        return self.crystals.num_atoms

    @property
    def num_copies(self) -> int:
        """Augmented copies of the split."""
        return len(self.means)

    @property
    def num_bytes(self) -> int:
        """Memory on the device."""
        return sum(tensor.nbytes for tensor in (self.means, self.logvars, *self.values.values()))

    def select(self, index: Int[Tensor, " selected"]) -> CachedBatch:
        """The batch of the crystals at these positions."""
        return CachedBatch(
            crystals=index, atoms=self.crystals.atoms_of(index), num_atoms=self.num_atoms[index]
        )

    def posterior(self, batch: CachedBatch, generator: torch.Generator) -> Posterior:
        """Posteriors of a batch, each crystal's from a copy drawn for it."""
        if self.num_copies == 1:  # no draw: what follows is then what it would be without the cache
            return Posterior(mean=self.means[0, batch.atoms], logvar=self.logvars[0, batch.atoms])
        drawn = torch.randint(
            self.num_copies, (len(batch),), generator=generator, device=batch.crystals.device
        )
        copy = drawn.repeat_interleave(batch.num_atoms, output_size=len(batch.atoms))
        return Posterior(mean=self.means[copy, batch.atoms], logvar=self.logvars[copy, batch.atoms])

    def condition_values(self, batch: CachedBatch) -> dict[str, Tensor]:
        """Values of the conditions of a batch."""
        return {name: values[batch.crystals] for name, values in self.values.items()}


@torch.no_grad()
def encode_split(
    vae: CrystalVAE,
    crystals: CrystalBatch,
    *,
    num_copies: int,
    augmentation: AugmentationConfig,
    values: dict[str, Tensor],
    generator: Callable[[int, int], torch.Generator],
) -> CachedLatents:
    """Encode augmented copies of a split, on the device of the VAE.

    Args:
        vae: in evaluation mode.
        crystals: the split, on the CPU.
        num_copies: how often each crystal is augmented and encoded.
        augmentation: drawn anew for each copy.
        values: of the conditions, for all crystals.
        generator: of (copy, chunk) on the VAE's device, for the augmentation.
    """
    device = next(vae.parameters()).device
    shape = (num_copies, crystals.total_atoms, vae.config.latent_dim)
    means, logvars = (torch.empty(shape, device=device) for _ in range(2))
    for copy in range(num_copies):
        first = 0
        for number, index in enumerate(torch.arange(len(crystals)).split(ENCODE_CHUNK)):
            batch = crystals.select(index).to(device)
            posterior = vae.encode(augment(batch, augmentation, generator(copy, number)))
            last = first + batch.total_atoms
            means[copy, first:last] = posterior.mean
            logvars[copy, first:last] = posterior.logvar
            first = last
    values = {name: value.to(device) for name, value in values.items()}
    return CachedLatents(crystals=crystals, means=means, logvars=logvars, values=values)
