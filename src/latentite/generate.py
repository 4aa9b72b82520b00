"""New crystals from a trained latent diffusion model.

Crystal i of a run owns a seed that is a function of (run seed, i), so it does not depend on the batch size, on
the order, or on what else is sampled. Comes after `sampling/chain.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig
from latentite.sampling.chain import SamplingConfig, sample_jobs
from latentite.sampling.jobs import Jobs


def sample_crystals(
    network: LatentDiffusion,
    diffusion: DiffusionConfig,
    num_atoms: Int[Tensor, " crystal"],
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    config: SamplingConfig | None = None,
) -> CrystalBatch:
    """Sample one crystal for each number of atoms, unconditionally, on the network's device.

    Args:
        network: in evaluation mode.
        diffusion: the process that its denoiser was trained on.
        num_atoms: of each crystal, on the CPU.
        seed: of the run.
        indices: place of each crystal in the run, which gives it its seed; 0, 1, 2, ... by default.
        config: sampler, steps, batch size.

    Returns:
        The crystals in the order of `num_atoms`, on the CPU.
    """
    jobs = Jobs.plain(num_atoms, indices)
    return sample_jobs(network, diffusion, jobs, seed=seed, config=config).crystals
