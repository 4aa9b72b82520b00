"""`LatentBatch`: the latent vectors of many crystals, padded to one length with a mask.

What the diffusion stage learns to generate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentBatch:
    """Latent tokens of a batch; a crystal's tokens come first in its row, zeros stand where the mask is False."""

    tokens: Float[Tensor, "crystal token channel"]
    mask: Bool[Tensor, "crystal token"]
    """True where a token is an atom."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal."""
        return self.mask.sum(dim=-1)

    @property
    def packed(self) -> Float[Tensor, "atom channel"]:
        """The tokens atom by atom, in the order of `CrystalBatch`."""
        return self.tokens[self.mask]

    @staticmethod
    def token_mask(
        num_atoms: Int[Tensor, " crystal"], num_tokens: int | None = None
    ) -> Bool[Tensor, "crystal token"]:
        """Mask for crystals with these numbers of atoms, padded to `num_tokens` or to the largest.

        Raises:
            ValueError: when a crystal has more atoms than tokens.
        """
        largest = int(num_atoms.max()) if len(num_atoms) else 0
        if num_tokens is not None and num_tokens < largest:
            raise ValueError(
                f"num_tokens must be at least the largest crystal ({largest} atoms), got {num_tokens}"
            )
        width = largest if num_tokens is None else num_tokens
        return torch.arange(width, device=num_atoms.device) < num_atoms.unsqueeze(-1)

    @staticmethod
    def from_packed(
        latent: Float[Tensor, "atom channel"],
        num_atoms: Int[Tensor, " crystal"],
        num_tokens: int | None = None,
    ) -> LatentBatch:
        """Pad packed latents."""
        mask = LatentBatch.token_mask(num_atoms, num_tokens)
        tokens = latent.new_zeros(*mask.shape, latent.shape[-1])
        tokens[mask] = latent
        return LatentBatch(tokens=tokens, mask=mask)
