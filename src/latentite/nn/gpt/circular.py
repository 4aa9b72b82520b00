"""Densities of coordinates on the circle, in place of bins: `CircularHead`.

Each free coordinate of an orbit is a mixture of distributions that are the same at x and at x + 1, given the trunk's
hidden state and the orbit's coordinates before it. Densities are of fractional coordinates, so that they integrate to 1
over a cell. Unlike bins they see no distance of a candidate to its surroundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.nn.gpt.choices import choose, kept

NUM_FREQUENCIES = 8
"""Waves by which a coordinate before is told."""
NARROWEST, WIDEST = math.log(1e-3), 0.0
"""ln of the widths that components may have, in parts of the cell's edge; the widest is as good as uniform."""
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_BISECTIONS = 50
"""Halvings of a full turn that leave less than double precision tells apart."""
_SMALLEST_UNIFORM = 1e-12


class CoordDensity(StrEnum):
    """Densities of the free coordinates of an orbit."""

    BINS = "bins"
    """Coarse cells, then fine bins, scored by distances."""
    VON_MISES = "von_mises"
    """Mixtures of von Mises distributions, one coordinate after the other."""
    WRAPPED_NORMAL = "wrapped_normal"
    """The same of wrapped normal distributions."""
    WRAPPED_CAUCHY = "wrapped_cauchy"
    """The same of wrapped Cauchy distributions."""


def concentration(log_width: Tensor) -> Tensor:
    """kappa of the von Mises distribution that is, when it is narrow, a normal one of this width."""
    return (-2.0 * log_width).exp() / (2 * math.pi) ** 2


def log_density(
    kind: CoordDensity, gap: Float[Tensor, "*value"], log_width: Float[Tensor, "*value"]
) -> Float[Tensor, "*value"]:
    """ln of the density of a fractional coordinate.

    Args:
        kind: of the distribution.
        gap: coordinate minus location.
        log_width: ln of the width s. Normal: the standard deviation; von Mises: kappa = 1 / (2 pi s)^2; Cauchy:
            half the width at half the maximum.
    """
    gap = gap - gap.round()
    half_turn = torch.sin(math.pi * gap).square()
    if kind is CoordDensity.VON_MISES:
        # k (cos t - 1) = -2 k sin^2(t / 2) loses no digits at narrow peaks; the Jacobian 2 pi cancels that of I0.
        kappa = concentration(log_width)
        return -2.0 * kappa * half_turn - torch.special.i0e(kappa).log()
    if kind is CoordDensity.WRAPPED_CAUCHY:
        gamma = 2 * math.pi * log_width.exp()
        rho = (-gamma).exp()
        less = -torch.expm1(-gamma)  # 1 - rho
        return (less * (1 + rho)).log() - (less.square() + 4 * rho * half_turn).log()
    if kind is CoordDensity.WRAPPED_NORMAL:
        width = log_width.exp()
        reach = max(3, math.ceil(4 * float(width.detach().max())))
        images = torch.arange(-reach, reach + 1, device=gap.device, dtype=gap.dtype)
        scaled = (gap.unsqueeze(-1) + images) / width.unsqueeze(-1)
        return torch.logsumexp(-0.5 * scaled.square(), dim=-1) - log_width - _HALF_LOG_TWO_PI
    raise ValueError(f"a density on the circle was expected, got {kind}")


def offset_at(
    kind: CoordDensity, uniform: Float[Tensor, " row"], log_width: Float[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Coordinates minus locations at the given quantiles, float64; arguments else as for `log_density`."""
    uniform = uniform.double().clamp(_SMALLEST_UNIFORM, 1 - _SMALLEST_UNIFORM)
    width = log_width.double().exp()
    if kind is CoordDensity.WRAPPED_NORMAL:
        return torch.special.ndtri(uniform) * width
    if kind is CoordDensity.WRAPPED_CAUCHY:
        return torch.tan(math.pi * (uniform - 0.5)) * width
    if kind is CoordDensity.VON_MISES:
        from scipy.stats import vonmises  # takes half a second, which only this density needs

        # torch's own sampler rejects, and so takes a number of draws that differs from row to row.
        kappa = concentration(log_width.double()).cpu().numpy()
        asked = uniform.cpu().numpy()
        low, high = np.full_like(asked, -np.pi), np.full_like(asked, np.pi)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            is_below = vonmises.cdf(middle, kappa) < asked
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        return torch.from_numpy(0.5 * (low + high) / (2 * np.pi)).to(uniform.device)
    raise ValueError(f"a density on the circle was expected, got {kind}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CircularMixture:
    """Mixtures of one coordinate each."""

    kind: CoordDensity
    log_weights: Float[Tensor, "row component"]
    locations: Float[Tensor, "row component"]
    log_widths: Float[Tensor, "row component"]

    def tempered(self, temperature: float, top_p: float = 1.0) -> CircularMixture:
        """Logits of weights / T, of which the largest that make up `top_p` stay; kappa / T, or widths times sqrt(T)."""
        return CircularMixture(
            kind=self.kind,
            log_weights=kept(self.log_weights, temperature=temperature, top_p=top_p),
            locations=self.locations,
            log_widths=self.log_widths + 0.5 * math.log(temperature),
        )

    def log_prob(self, coordinate: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """ln of the density."""
        gap = coordinate.to(self.locations.dtype).unsqueeze(-1) - self.locations
        return torch.logsumexp(self.log_weights + log_density(self.kind, gap, self.log_widths), dim=-1)

    def draw(self, uniforms: Float[Tensor, "row 2"]) -> Float[Tensor, " row"]:
        """Coordinates in [0, 1): the first number chooses the component, the second is the quantile in it."""
        index, _ = choose(self.log_weights, uniforms[:, 0])
        pick = index.unsqueeze(-1)
        location = self.locations.gather(1, pick).squeeze(-1).double()
        offset = offset_at(self.kind, uniforms[:, 1], self.log_widths.gather(1, pick).squeeze(-1))
        value = torch.remainder(location + offset, 1.0).to(self.locations.dtype)
        return torch.where(value < 1.0, value, 0.0)  # Rounding may reach 1.


class CircularHead(nn.Module):
    """Mixtures of the free coordinates of orbits, one after the other."""

    def __init__(self, d_model: int, num_mixtures: int, kind: CoordDensity) -> None:
        super().__init__()
        self.num_mixtures, self.kind = num_mixtures, kind
        self.before = nn.Linear(3 * (2 * NUM_FREQUENCIES + 1), d_model)
        self.axis = nn.Embedding(3, d_model)
        self.net = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model),
            nn.GELU(approximate="tanh"),
            nn.Linear(d_model, 3 * num_mixtures),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.02)
        with torch.no_grad():
            last.bias.zero_()
            last.bias[num_mixtures : 2 * num_mixtures] = (torch.arange(num_mixtures) + 0.5) / num_mixtures
            last.bias[2 * num_mixtures :] = -math.log(max(num_mixtures, 2))

    def mixture(
        self, hidden: Float[Tensor, "row channel"], coords: Float[Tensor, "row 3"], axis: int
    ) -> CircularMixture:
        """Of one coordinate, given those before it.

        Args:
            hidden: of the trunk, for the orbit that is placed.
            coords: of the orbit; only those before `axis` are read.
            axis: which coordinate.
        """
        is_before = torch.arange(3, device=coords.device) < axis
        frequencies = torch.arange(1, NUM_FREQUENCIES + 1, device=coords.device) * 2 * math.pi
        with torch.autocast(
            hidden.device.type, enabled=False
        ):  # Half precision has three digits of a location.
            dtype = self.axis.weight.dtype
            angles = torch.where(is_before, coords, 0.0).to(dtype).unsqueeze(-1) * frequencies
            waves = torch.cat([angles.cos(), angles.sin(), torch.ones_like(angles[..., :1])], dim=-1)
            told = self.before((waves * is_before.unsqueeze(-1)).flatten(1))
            raw = self.net(hidden.to(dtype) + told + self.axis.weight[axis])
        weights, locations, log_widths = raw.chunk(3, dim=-1)
        return CircularMixture(
            kind=self.kind,
            log_weights=weights.log_softmax(-1),
            locations=locations,
            log_widths=log_widths.clamp(NARROWEST, WIDEST),
        )

    def forward(
        self,
        hidden: Float[Tensor, "*orbit channel"],
        coords: Float[Tensor, "*orbit 3"],
        moving: Bool[Tensor, "*orbit 3"],
    ) -> Float[Tensor, "*orbit 4"]:
        """ln of the density of each coordinate after a column of 0; 0 for coordinates that are not free."""
        columns = [torch.zeros(moving.shape[:-1], dtype=torch.float32, device=hidden.device)]
        for axis in range(3):
            rows = moving[..., axis]
            column = torch.zeros_like(columns[0])
            if rows.any():
                known = coords[rows]
                density = self.mixture(hidden[rows], known, axis).log_prob(known[:, axis])
                column = column.masked_scatter(rows, density.float())
            columns.append(column)
        return torch.stack(columns, dim=-1)

    def draw(
        self,
        hidden: Float[Tensor, "row channel"],
        moving: Bool[Tensor, "row 3"],
        uniforms: Float[Tensor, "row 6"],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> tuple[Float[Tensor, "row 3"], Float[Tensor, " row"]]:
        """Coordinates, 0 where they are not free, and ln of the density that they were drawn from.

        Args:
            hidden: of the trunk, for the orbit that is placed.
            moving: coordinates that are free.
            uniforms: two for each coordinate.
            temperature: see `CircularMixture.tempered`.
            top_p: of the weights.
        """
        coords = torch.zeros(len(hidden), 3, device=hidden.device)
        total = torch.zeros(len(hidden), device=hidden.device)
        for axis in range(3):
            rows = torch.nonzero(moving[:, axis]).squeeze(-1)
            if len(rows):
                mixture = self.mixture(hidden[rows], coords[rows], axis).tempered(temperature, top_p)
                value = mixture.draw(uniforms[rows, 2 * axis : 2 * axis + 2])
                coords[rows, axis] = value.float()
                total[rows] += mixture.log_prob(value).float()
        return coords, total
