"""`LatentBatch`: padding and back."""

from __future__ import annotations

import pytest
import torch

from latentite.latent import LatentBatch


@pytest.mark.parametrize("num_tokens", [None, 5, 9])
def test_packed_latents_survive_padding(num_tokens: int | None) -> None:
    num_atoms = torch.tensor([2, 5, 1])
    latent = torch.randn(8, 4)
    batch = LatentBatch.from_packed(latent, num_atoms, num_tokens)
    assert batch.tokens.shape == (3, num_tokens or 5, 4)
    assert batch.packed.equal(latent)
    assert batch.num_atoms.equal(num_atoms)
    assert batch.tokens[~batch.mask].abs().sum() == 0


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least the largest crystal \(5 atoms\), got 4"):
        LatentBatch.token_mask(torch.tensor([2, 5]), 4)
