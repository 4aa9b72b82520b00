"""Pooled latents of a tiny VAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.evaluation.measure import latent_features
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig


@pytest.fixture
def vae() -> CrystalVAE:
    size = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32}
    torch.manual_seed(0)
    config = VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size), latent_dim=5)
    return CrystalVAE(config)


def test_features_are_means_over_the_atoms_of_each_crystal_in_order(
    vae: CrystalVAE, crystals: CrystalBatch
) -> None:
    features = latent_features(vae, crystals, batch_size=3)
    assert features.shape == (len(crystals), 5)
    with torch.inference_mode():
        for position in range(len(crystals)):
            alone = vae.eval().encode(crystals.select(torch.tensor([position]))).mean
            np.testing.assert_allclose(features[position], alone.mean(0).numpy(), atol=1e-5)


def test_batch_size_does_not_change_the_result_and_must_be_positive(
    vae: CrystalVAE, crystals: CrystalBatch
) -> None:
    whole = latent_features(vae, crystals)
    np.testing.assert_allclose(latent_features(vae, crystals, batch_size=1), whole, atol=1e-5)
    assert latent_features(vae, CrystalBatch.from_arrays([])).shape == (0, 5)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        latent_features(vae, crystals, batch_size=0)
