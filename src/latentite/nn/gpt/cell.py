"""The cell of a crystal whose skeleton is known: mixtures of Gaussians, one free component after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.symmetry.cells import NUM_COMPONENTS

HALF_LOG_TWO_PI = 0.9189385332


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
