"""Densities of a whole cell, in place of `latentite.nn.gpt.cell`: a joint mixture of Gaussians, and a flow.

The sets of components that crystal families leave free lie one in the other. In an order in which those of the more
symmetric families come first (`NESTED_ORDER`), what a family fixes is always last, and a lower triangular Cholesky
factor or an autoregressive flow without its last rows is the exact marginal density of those before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.nn.gpt.cell import HALF_LOG_TWO_PI, CellDistribution, Guide, normal_at
from latentite.nn.gpt.choices import choose
from latentite.symmetry.cells import FREE, NUM_COMPONENTS

NESTED_ORDER: list[int] = np.argsort(-FREE.sum(0), kind="stable").tolist()
"""Components, those first that more families leave free."""
_BACK: list[int] = np.argsort(NESTED_ORDER).tolist()
"""From that order to the usual one."""
_NUM_BELOW = NUM_COMPONENTS * (NUM_COMPONENTS - 1) // 2
NUM_TRANSFORMS = 2
NUM_SPLINE_BINS = 8
FLOW_MISSING = "lattice_density: flow needs the library zuko; install it with `pip install 'latentite[flow]'`"


class JointMixtureHead(nn.Module):
    """One mixture of Gaussians with full covariances over the free components of a cell, in normalised units."""

    def __init__(self, d_model: int, num_mixtures: int) -> None:
        super().__init__()
        self.num_mixtures = num_mixtures
        self.net = nn.Sequential(
            nn.Linear(d_model, d_model),
            nn.GELU(approximate="tanh"),
            nn.Linear(d_model, num_mixtures * (1 + 2 * NUM_COMPONENTS + _NUM_BELOW)),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.02)
        with torch.no_grad():
            last.bias.zero_()
            means = last.bias[num_mixtures : num_mixtures * (1 + NUM_COMPONENTS)].view(num_mixtures, -1)
            means[:, 0] = torch.linspace(-1.5, 1.5, num_mixtures)

    def parameters_of(self, hidden: Float[Tensor, "crystal channel"]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and Cholesky factors of the covariances, components in `NESTED_ORDER`."""
        with torch.autocast(hidden.device.type, enabled=False):  # Components are narrow.
            raw = self.net(hidden.to(next(self.parameters()).dtype))
        k = self.num_mixtures
        weights, means, widths, below = raw.split(
            [k, k * NUM_COMPONENTS, k * NUM_COMPONENTS, k * _NUM_BELOW], dim=-1
        )
        diagonal = widths.unflatten(-1, (k, NUM_COMPONENTS)).clamp(-5.5, 2.0).exp()
        rows, columns = torch.tril_indices(NUM_COMPONENTS, NUM_COMPONENTS, -1, device=raw.device)
        factors = torch.diag_embed(diagonal)
        # In units of the row's width, so that narrow components are no worse conditioned than wide ones.
        factors[..., rows, columns] = below.unflatten(-1, (k, _NUM_BELOW)) * diagonal[..., rows]
        return weights.log_softmax(-1), means.unflatten(-1, (k, NUM_COMPONENTS)), factors

    def forward(
        self,
        hidden: Float[Tensor, "crystal channel"],
        values: Float[Tensor, "crystal 6"],
        free: Bool[Tensor, "crystal 6"],
    ) -> Float[Tensor, "crystal 6"]:
        """See `CellDistribution.log_density`."""
        log_weights, means, factors = self.parameters_of(hidden)
        return GaussianMixture(log_weights=log_weights, means=means, factors=factors).log_density(
            values, free
        )

    def distribution(
        self, hidden: Float[Tensor, "crystal channel"], guide: Guide, temperature: float
    ) -> CellDistribution:
        """Arguments as for `CellHead.distribution`."""
        _, means, factors = self.parameters_of(hidden)
        log_weights = guide(lambda one: self.parameters_of(one)[0])
        return GaussianMixture(
            log_weights=(log_weights / temperature).log_softmax(-1),
            means=means,
            factors=factors * math.sqrt(temperature),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianMixture:
    """Mixtures of Gaussians, one of each crystal; components of the cell in `NESTED_ORDER`."""

    log_weights: Float[Tensor, "crystal mixture"]
    means: Float[Tensor, "crystal mixture 6"]
    factors: Float[Tensor, "crystal mixture 6 6"]
    """Lower triangular Cholesky factors of the covariances."""

    def log_density(
        self, values: Float[Tensor, "crystal 6"], free: Bool[Tensor, "crystal 6"]
    ) -> Float[Tensor, "crystal 6"]:
        """ln of the density of each free component given those before it in the nested order; 0 for fixed ones.

        The density of the first ones together is a logsumexp over mixtures of sums over components, and that of one
        given those before it the quotient of two such densities.
        """
        is_free = free[:, NESTED_ORDER].unsqueeze(1)
        gap = values[:, NESTED_ORDER].to(self.means.dtype).unsqueeze(1) - self.means
        scaled = torch.linalg.solve_triangular(
            self.factors, torch.where(is_free, gap, 0.0).unsqueeze(-1), upper=False
        ).squeeze(-1)
        widths = self.factors.diagonal(dim1=-2, dim2=-1).log()
        terms = torch.where(is_free, -0.5 * scaled.square() - widths - HALF_LOG_TWO_PI, 0.0)
        so_far = torch.logsumexp(self.log_weights.unsqueeze(-1) + terms.cumsum(-1), dim=1)
        first = torch.logsumexp(self.log_weights, dim=-1, keepdim=True)
        return so_far.diff(dim=-1, prepend=first)[:, _BACK]

    def draw(
        self,
        uniforms: Float[Tensor, "crystal 12"],
        free: Bool[Tensor, "crystal 6"],
        fixed: Float[Tensor, "crystal 6"],
    ) -> Float[Tensor, "crystal 6"]:
        """See `CellDistribution.draw`; the first number chooses the Gaussian."""
        index, _ = choose(self.log_weights, uniforms[:, 0])
        rows = torch.arange(len(index), device=index.device)
        normal = normal_at(uniforms[:, 1 : 1 + NUM_COMPONENTS]).to(self.means.dtype)
        values = self.means[rows, index] + (self.factors[rows, index] * normal.unsqueeze(1)).sum(-1)
        return torch.where(free, values[:, _BACK], fixed)


class CellFlow(nn.Module):
    """A masked autoregressive flow (Papamakarios et al. 2017) of rational-quadratic splines (Durkan et al. 2019).

    All transforms go through the components in the same order, so that the whole is autoregressive as each of them is:
    otherwise the density of fewer components would be an integral.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        flows, univariate = _zuko()
        self.transforms = nn.ModuleList(
            flows.MaskedAutoregressiveTransform(
                features=NUM_COMPONENTS,
                context=d_model,
                univariate=univariate,
                shapes=[(NUM_SPLINE_BINS,), (NUM_SPLINE_BINS,), (NUM_SPLINE_BINS - 1,)],
                hidden_features=(d_model, d_model),
                activation=nn.SiLU,
            )
            for _ in range(NUM_TRANSFORMS)
        )

    @property
    def chain(self) -> list[Any]:
        """The transforms of zuko, from components to normal numbers."""
        return list(self.transforms)

    def forward(
        self,
        hidden: Float[Tensor, "crystal channel"],
        values: Float[Tensor, "crystal 6"],
        free: Bool[Tensor, "crystal 6"],
    ) -> Float[Tensor, "crystal 6"]:
        """See `CellDistribution.log_density`."""
        return _Flow(head=self, hidden=hidden, scale=1.0).log_density(values, free)

    def distribution(
        self, hidden: Float[Tensor, "crystal channel"], guide: Guide, temperature: float
    ) -> CellDistribution:
        """Arguments as for `CellHead.distribution`, but there is no weight to guide."""
        return _Flow(head=self, hidden=hidden, scale=math.sqrt(temperature))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flow:
    """Cells whose images under a flow are normal."""

    head: CellFlow
    hidden: Float[Tensor, "crystal channel"]
    scale: float
    """Standard deviation of these images."""

    def log_density(self, values: Tensor, free: Tensor) -> Tensor:
        """Log-density of each component, given those before it; 0 for those that are not free."""
        # Splines lose too much in half precision.
        with torch.autocast(self.hidden.device.type, enabled=False):
            hidden = self.hidden.to(next(self.head.parameters()).dtype)
            current = torch.where(free, values, 0.0)[:, NESTED_ORDER].to(hidden.dtype)
            total = torch.full_like(current, -HALF_LOG_TWO_PI - math.log(self.scale))
            for transform in self.head.chain:
                # Before the sum over components, which are told one by one.
                by_component = transform.meta(hidden, current).base
                current, change = by_component.call_and_ladj(current)
                total = total + change
            total = total - 0.5 * (current / self.scale).square()
            return torch.where(free, total[:, _BACK], 0.0)

    def draw(self, uniforms: Tensor, free: Tensor, fixed: Tensor) -> Tensor:
        current = normal_at(uniforms[:, :NUM_COMPONENTS]).to(self.hidden.dtype) * self.scale
        for transform in reversed(self.head.chain):
            current = transform(self.hidden).inv(current)
        return torch.where(free, current[:, _BACK], fixed)


def _zuko() -> tuple[Any, Any]:
    """Flows of zuko, and its univariate spline.

    Raises:
        ValueError: without zuko.
    """
    try:
        import zuko
    except ImportError as error:
        raise ValueError(FLOW_MISSING) from error
    return zuko.flows, partial(zuko.transforms.MonotonicRQSTransform, bound=6.0)
