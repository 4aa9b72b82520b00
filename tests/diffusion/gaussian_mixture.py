"""A Gaussian mixture whose exact denoisers are known: the oracle of the sampler tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentite.diffusion.schedule import FLOW_TIME_SCALE, Schedule, Target
from latentite.diffusion.steps import Denoise


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Every token is an independent draw of sum_k w_k N(mu_k, Sigma_k), in float64."""

    weights: Tensor  # [component]
    means: Tensor  # [component channel]
    covariances: Tensor  # [component channel channel]

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        centred = self.means - self.mean
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between

    def expected_x0(self, state: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = state]: Gaussian conditioning, component by component."""
        total = alpha**2 * self.covariances + sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        precision = torch.linalg.inv(total)
        residual = state.double()[..., None, :] - alpha * self.means  # [crystal token component channel]
        scaled = torch.einsum("...ki,kij->...kj", residual, precision)
        log_density = -0.5 * (residual * scaled).sum(-1) - 0.5 * torch.logdet(total) + self.weights.log()
        posterior = self.means + alpha * torch.einsum("kij,...kj->...ki", self.covariances, scaled)
        return (log_density.softmax(-1)[..., None] * posterior).sum(-2)

    def ddpm_denoiser(self, schedule: Schedule, target: Target) -> Denoise:
        """The exact network of this target; told a level of the training schedule."""

        def denoise(state: Tensor, time: Tensor) -> Tensor:
            alpha_bar = float(schedule.alphas_cumprod[int(time[0])])
            alpha, sigma = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
            x0 = self.expected_x0(state, alpha, sigma)
            epsilon = (state - alpha * x0) / sigma
            answers = {Target.X0: x0, Target.EPSILON: epsilon, Target.V: alpha * epsilon - sigma * x0}
            return answers[target].to(state.dtype)

        return denoise

    def velocity(self) -> Denoise:
        """The exact velocity of the flow."""

        def denoise(state: Tensor, time: Tensor) -> Tensor:
            flow_time = float(time[0]) / FLOW_TIME_SCALE
            x0 = self.expected_x0(state, 1.0 - flow_time, flow_time)
            return ((state - x0) / flow_time).to(state.dtype)

        return denoise


def make_mixture(num_components: int, num_channels: int, seed: int = 0) -> Mixture:
    """Random means of spread about 1, covariances with eigenvalues of 0.05 to 0.4."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_components, num_channels, num_channels)
    basis = torch.linalg.qr(torch.randn(size, generator=generator, dtype=torch.float64)).Q
    eigenvalues = 0.05 + 0.35 * torch.rand(size[:2], generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(num_components, generator=generator, dtype=torch.float64)
    return Mixture(
        weights=weights / weights.sum(),
        means=torch.randn(size[:2], generator=generator, dtype=torch.float64),
        covariances=basis @ torch.diag_embed(eigenvalues) @ basis.mT,
    )
