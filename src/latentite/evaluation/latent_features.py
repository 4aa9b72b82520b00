"""One vector per crystal from a trained VAE: the mean of its atoms' latents.

The feature space of Fréchet distances and diversity in which Chemeleon2 measures too.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from latentite.crystal import CrystalBatch
from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.nn.segment import segment_mean
from latentite.nn.vae import CrystalVAE


@torch.inference_mode()
def latent_features(
    network: CrystalVAE,
    crystals: CrystalBatch,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "crystal channel"]:
    """Posterior means averaged over the atoms of each crystal, in the order of the crystals.

    Args:
        network: of `latentite.models.load_vae`; features of different networks cannot be compared.
        crystals: in canonical form (`data/canonical.py`), both sides of a comparison alike: the encoder sees cell,
            orientation and origin.
        batch_size: crystals at once; it does not change the result.
        device: where the network works.

    Raises:
        ValueError: for a batch size below 1.
    """
    network = network.to(device).eval()
    pooled = torch.zeros(len(crystals), network.config.latent_dim, dtype=torch.float64)
    for chosen in epoch_batches(crystals.num_atoms, BatchPlan(batch_size=batch_size, shuffle=False)):
        batch = crystals.select(chosen).with_properties({}).to(device)
        mean = network.encode(batch).mean
        pooled[chosen] = segment_mean(mean, batch.crystal_index, len(batch)).cpu().double()
    return pooled.numpy()
