"""The cell of a crystal whose skeleton is known: mixtures of Gaussians, one free component after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.nn.gpt.choices import choose
from latentite.symmetry.cells import NUM_COMPONENTS

HALF_LOG_TWO_PI = 0.9189385332

Guide = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""From a function of the trunk's hidden state to the logits that count: its value, or that with guidance."""


class LatticeDensity(StrEnum):
    """Densities of the free components of a cell."""

    AR = "ar"
    """One component after the other, each a mixture of Gaussians."""
    GMM = "gmm"
    """A mixture of Gaussians with full covariances, of all components at once."""
    FLOW = "flow"
    """A masked autoregressive flow of splines; needs the extra `flow`."""


@runtime_checkable
class CellDistribution(Protocol):
    """Distribution of the cells of some crystals, in normalised units."""

    def log_density(
        self, values: Float[Tensor, "crystal 6"], free: Bool[Tensor, "crystal 6"]
    ) -> Float[Tensor, "crystal 6"]:
        """ln of the density of each free component, given others; their sum is that of all. 0 for fixed ones."""
        ...

    def draw(
        self,
        uniforms: Float[Tensor, "crystal 12"],
        free: Bool[Tensor, "crystal 6"],
        fixed: Float[Tensor, "crystal 6"],
    ) -> Float[Tensor, "crystal 6"]:
        """Components; those of `fixed` where they are not free."""
        ...


def normal_at(uniform: Float[Tensor, "*number"]) -> Float[Tensor, "*number"]:
    """Values of a standard normal distribution at the given quantiles."""
    return torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7)).float()


class CellHead(nn.Module):
    """Autoregressive mixtures of Gaussians over the free components of the cell, in normalised units."""

    def __init__(self, d_model: int, num_mixtures: int) -> None:
        super().__init__()
        self.num_mixtures = num_mixtures
        self.inputs = nn.Linear(2 * NUM_COMPONENTS, d_model)
        self.component = nn.Embedding(NUM_COMPONENTS, d_model)
        self.net = nn.Sequential(
            nn.Linear(d_model, d_model), nn.GELU(approximate="tanh"), nn.Linear(d_model, 3 * num_mixtures)
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.02)
        with torch.no_grad():
            last.bias.zero_()
            last.bias[num_mixtures : 2 * num_mixtures] = torch.linspace(-1.5, 1.5, num_mixtures)

    def parameters_of(
        self, hidden: Float[Tensor, "crystal channel"], values: Float[Tensor, "crystal 6"], component: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-widths of a component's mixture, given those before it."""
        before = torch.arange(NUM_COMPONENTS, device=values.device) < component
        known = torch.where(before, values, 0.0)
        inputs = torch.cat([known, before.to(values.dtype).expand_as(values)], dim=-1)
        raw = self.net(
            F.gelu(hidden + self.inputs(inputs) + self.component.weight[component], approximate="tanh")
        )
        weights, means, widths = raw.float().chunk(3, dim=-1)
        return weights.log_softmax(-1), means, widths.clamp(-5.5, 2.0)

    def forward(
        self,
        hidden: Float[Tensor, "crystal channel"],
        values: Float[Tensor, "crystal 6"],
        free: Bool[Tensor, "crystal 6"],
    ) -> Float[Tensor, "crystal 6"]:
        """Log-density of each normalised component, given those before it; 0 for those that are not free."""
        densities = []
        for component in range(NUM_COMPONENTS):
            weights, means, widths = self.parameters_of(hidden, values, component)
            gap = (values[:, component : component + 1] - means) / widths.exp()
            density = torch.logsumexp(weights - 0.5 * gap**2 - widths - HALF_LOG_TWO_PI, dim=-1)
            densities.append(torch.where(free[:, component], density, 0.0))
        return torch.stack(densities, dim=-1)

    def distribution(
        self, hidden: Float[Tensor, "crystal channel"], guide: Guide, temperature: float
    ) -> CellDistribution:
        """Distribution that cells are drawn from.

        Args:
            hidden: of the trunk.
            guide: of the weights.
            temperature: divides their logits; widths are multiplied with its square root.
        """
        return _Successive(head=self, hidden=hidden, guide=guide, temperature=temperature)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Successive:
    """The mixtures of a `CellHead`."""

    head: CellHead
    hidden: Float[Tensor, "crystal channel"]
    guide: Guide
    temperature: float

    def _mixture(self, values: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-widths of a component."""
        _, means, widths = self.head.parameters_of(self.hidden, values, component)
        weights = self.guide(lambda hidden: self.head.parameters_of(hidden, values, component)[0])
        temperature = torch.tensor(self.temperature)
        return (weights / temperature).log_softmax(-1), means, widths + 0.5 * temperature.log()

    def log_density(self, values: Tensor, free: Tensor) -> Tensor:
        densities = []
        for component in range(NUM_COMPONENTS):
            weights, means, widths = self._mixture(values, component)
            gap = (values[:, component : component + 1] - means) / widths.exp()
            density = torch.logsumexp(weights - 0.5 * gap**2 - widths - HALF_LOG_TWO_PI, dim=-1)
            densities.append(torch.where(free[:, component], density, 0.0))
        return torch.stack(densities, dim=-1)

    def draw(self, uniforms: Tensor, free: Tensor, fixed: Tensor) -> Tensor:
        values = fixed.clone()
        for component in range(NUM_COMPONENTS):
            weights, means, widths = self._mixture(values, component)
            index, _ = choose(weights, uniforms[:, 2 * component])
            pick = index.unsqueeze(-1)
            normal = normal_at(uniforms[:, 2 * component + 1])
            value = means.gather(1, pick).squeeze(-1) + widths.gather(1, pick).squeeze(-1).exp() * normal
            values[:, component] = torch.where(free[:, component], value, fixed[:, component])
        return values
