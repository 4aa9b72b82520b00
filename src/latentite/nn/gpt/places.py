"""Places of orbits scored as a network does it, candidate by candidate: `PlaceHead`.

A place is drawn in two stages: first a coarse cell, of all free coordinates at once, then the fine bin of each
coordinate in turn (`latentite.nn.gpt.grid`). Where atoms would overlap is no candidate. `forward` asks the same of
known crystals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.gpt.grid import NUM_COARSE, NUM_FINE, bin_centre, bins_of, coarse_centre
from latentite.nn.gpt.inputs import PaddedOrbits
from latentite.nn.gpt.placement import DistanceScore, PlacedCrystals, PlaceQuery, scaled_distances
from latentite.nn.gpt.rows import CandidateCells, PlaceRows, buckets
from latentite.nn.gpt.tokens import covalent_radii_tensor
from latentite.symmetry.orbits import position_tensors

COARSE_FLOOR = 0.45
"""Smallest distance over summed covalent radii at the centre of a coarse cell that is a candidate; 99.7 % of the orbits
of real crystals are in such cells."""
FINE_FLOOR = 0.6
"""The same at a fine bin; atoms of real crystals are 0.65 and more apart."""
MISSED = -12.0
"""ln of the probability of a coarse cell that is not among those of its position: rounding has moved the crystal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Atoms and orbits around the places that are scored together."""

    placed: PlacedCrystals
    skeleton: Float[Tensor, "crystal orbit channel"]
    """Embeddings of the orbits."""
    num_atoms: int
    """Of the placed atoms the first so many are looked at."""
    num_own: int
    """Largest number of own images beside the candidate itself."""
    is_wide: bool
    """All cells are (see `PlacedCrystals.is_wide`)."""


class PlaceHead(nn.Module):
    """Logits of coarse cells and of fine bins."""

    max_places_cost: float = 2e6
    """Padded candidates times neighbours that are scored at once."""
    num_sampled: int = 32
    """Coarse cells that training sees of each place, beside the right one."""
    max_places: int = 8
    """Places of a crystal that training scores; of more it takes so many at random, which count for all."""

    def __init__(self, d_model: int, *, rank: int = 16) -> None:
        super().__init__()
        self.rank = rank
        self.coarse = nn.Linear(d_model, rank * 3 * NUM_COARSE)
        self.coarse_distance = DistanceScore(d_model)
        self.coarse_embedding = nn.Embedding(3 * NUM_COARSE, d_model)
        self.fine_embedding = nn.Embedding(3 * NUM_FINE, d_model)
        self.axis_embedding = nn.Embedding(3, d_model)
        self.fine = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model),
            nn.GELU(approximate="tanh"),
            nn.Linear(d_model, NUM_FINE),
        )
        self.fine_distance = DistanceScore(d_model)
        nn.init.normal_(self.coarse.weight, std=0.02)

    def coarse_logits(
        self,
        hidden: Float[Tensor, "place channel"],
        cells: Int[Tensor, "place candidate 3"],
        scores: Float[Tensor, "place candidate"],
    ) -> Float[Tensor, "place candidate"]:
        """Logits of coarse cells: a sum of products over the coordinates, and the score of distances."""
        tables = self.coarse(hidden).unflatten(-1, (self.rank, 3, NUM_COARSE))
        product = None
        for axis in range(3):
            index = cells[:, None, :, axis].expand(-1, self.rank, -1)
            factor = (
                1.0 + tables[:, :, axis].gather(2, index) if axis else tables[:, :, axis].gather(2, index)
            )
            product = factor if product is None else product * factor
        assert product is not None
        return product.sum(dim=1) + scores

    def fine_hidden(
        self,
        hidden: Float[Tensor, "place channel"],
        coarse: Int[Tensor, "place 3"],
        fine: Int[Tensor, "place 3"],
        axis: Int[Tensor, " place"],
    ) -> Float[Tensor, "place channel"]:
        """Input of the fine bin of a coordinate: the coarse cell, and fine bins of coordinates before it."""
        axes = torch.arange(3, device=coarse.device)
        cell = self.coarse_embedding(coarse + axes * NUM_COARSE).sum(dim=1)
        known = (axes < axis.unsqueeze(-1)).unsqueeze(-1)
        before = torch.where(known, self.fine_embedding(fine + axes * NUM_FINE), 0.0).sum(dim=1)
        return hidden + cell + before + self.axis_embedding(axis)

    def coarse_scores(
        self, rows: PlaceRows, cells: Int[Tensor, "place candidate 3"], around: Surroundings
    ) -> tuple[Float[Tensor, "place candidate"], Float[Tensor, "place candidate"]]:
        """Logits of coarse cells, and the smallest scaled distance at the centre of each."""
        points = torch.where(rows.fixed.unsqueeze(1), 0.0, coarse_centre(cells))
        scores, near = _distance_scores(self.coarse_distance, rows, rows.hidden, points, around)
        return self.coarse_logits(rows.hidden, cells, scores).float(), near

    def fine_scores(
        self, rows: PlaceRows, axis: Int[Tensor, " place"], around: Surroundings
    ) -> tuple[Float[Tensor, "place bin"], Float[Tensor, "place bin"]]:
        """Logits of the fine bins of one coordinate each, and the smallest scaled distance at each."""
        hidden = self.fine_hidden(rows.hidden, rows.coarse, rows.fine, axis)
        points = fine_candidates(rows.coarse, rows.fine, axis, rows.fixed)
        scores, near = _distance_scores(self.fine_distance, rows, hidden, points, around)
        return (self.fine(hidden) + scores).float(), near

    def forward(
        self,
        orbits: PaddedOrbits,
        placed: PlacedCrystals,
        hidden: Float[Tensor, "crystal orbit channel"],
        skeleton: Float[Tensor, "crystal orbit channel"],
        fixed: Bool[Tensor, "crystal orbit 3"],
        *,
        smoothing: float = 0.0,
    ) -> Float[Tensor, "crystal orbit 4"]:
        """Log-probability of the coarse cell and of each fine bin; in training an estimate. 0 where nothing is free.

        Args:
            orbits: known crystals.
            placed: their atoms.
            hidden: of the trunk, for each orbit.
            skeleton: embeddings of the orbits.
            fixed: coordinates that are 0 by the choice of the origin.
            smoothing: share of the target of a fine bin that its neighbours get.
        """
        total = torch.zeros(orbits.position.numel() * 4, device=hidden.device)
        most = self.max_places if self.training else None
        asked = _Asked.of(orbits, placed, hidden, skeleton, fixed, most)
        if len(asked.weight):
            parts = [*self._coarse_log_prob(asked), *self._fine_log_prob(asked, smoothing)]
            for index, values in parts:
                total = total.index_add(0, index, values)
        return total.view(*orbits.position.shape, 4)

    def _coarse_log_prob(self, asked: _Asked) -> Iterator[tuple[Tensor, Tensor]]:
        """Entries of the result, and what they are, of the coarse cells."""
        rows = asked.rows
        cells = CandidateCells.of(rows.position, rows.fixed)
        num_seen = cells.count.clamp(max=self.num_sampled) if self.training else cells.count
        for members, around in asked.passes(num_seen, self.max_places_cost):
            part = rows.select(members)
            if self.training:
                scores = self._sampled_cells(part, cells, members, int(num_seen[members].max()), around)
                chosen = scores.log_softmax(-1)[:, 0]
            else:
                index, padding = cells.all_of(members)
                candidates = cells.cells[index]
                is_target = (candidates == part.coarse.unsqueeze(1)).all(-1) & padding.isfinite()
                scores, near = self.coarse_scores(part, candidates, around)
                scores = without_clashes(scores + padding, near, COARSE_FLOOR, is_target)
                chosen = scores.log_softmax(-1).masked_fill(~is_target, 0.0).sum(-1)
                chosen = torch.where(is_target.any(-1), chosen, MISSED)
            yield asked.entry[members], asked.weight[members] * chosen

    def _sampled_cells(
        self, part: PlaceRows, cells: CandidateCells, members: Tensor, num: int, around: Surroundings
    ) -> Float[Tensor, "place candidate"]:
        """Scores of the right cell, which stands first, and of others drawn at random, which stand for all others."""
        index, correction = cells.draw(members, num)
        drawn = cells.cells[index]
        is_target = (drawn == part.coarse.unsqueeze(1)).all(-1)
        correction = correction.masked_fill(is_target, float("-inf"))
        candidates = torch.cat([part.coarse.unsqueeze(1), drawn], dim=1)
        scores, near = self.coarse_scores(part, candidates, around)
        scores = scores + torch.cat([torch.zeros_like(correction[:, :1]), correction], dim=1)
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        is_right[:, 0] = True
        return without_clashes(scores, near, COARSE_FLOOR, is_right)

    def _fine_log_prob(self, asked: _Asked, smoothing: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Entries of the result, and what they are, of the fine bins of all free coordinates."""
        rows = asked.rows
        axes = torch.arange(3, device=rows.fixed.device)
        num_free = position_tensors(axes.device).num_free[rows.position]
        place, axis = torch.nonzero((axes < num_free.unsqueeze(-1)) & ~rows.fixed, as_tuple=True)
        for members, around in asked.passes(torch.full_like(axis, NUM_FINE), self.max_places_cost, place):
            index, own_axis = place[members], axis[members]
            part = rows.select(index)
            scores, near = self.fine_scores(part, own_axis, around)
            target = part.fine.gather(1, own_axis.unsqueeze(-1))
            bins = torch.arange(NUM_FINE, device=target.device)
            log = without_clashes(scores, near, FINE_FLOOR, bins == target).log_softmax(-1)
            chosen = log.gather(1, target).squeeze(-1)
            if smoothing:
                weights = torch.exp(-0.5 * ((bins - target) / 0.7) ** 2) * torch.isfinite(log)
                weights = weights / weights.sum(-1, keepdim=True)
                log = torch.where(weights > 0, log, 0.0)
                chosen = (1 - smoothing) * chosen + smoothing * (weights * log).sum(-1)
            yield asked.entry[index] + 1 + own_axis, asked.weight[index] * chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """Places of known crystals that have a free coordinate."""

    rows: PlaceRows
    entry: Int[Tensor, " place"]
    """Of its coarse cell in the result; those of the fine bins follow."""
    weight: Float[Tensor, " place"]
    """Number of places that each stands for."""
    used: Int[Tensor, " place"]
    """Atoms that are placed before."""
    own: Int[Tensor, " place"]
    """Own images beside the candidate itself."""
    is_wide: Bool[Tensor, " place"]
    placed: PlacedCrystals
    skeleton: Float[Tensor, "crystal orbit channel"]

    @staticmethod
    def of(
        orbits: PaddedOrbits,
        placed: PlacedCrystals,
        hidden: Tensor,
        skeleton: Tensor,
        fixed: Tensor,
        most: int | None,
    ) -> _Asked:
        """All of them, or at most so many of each crystal at random; arguments else as for `PlaceHead.forward`."""
        tables = position_tensors(orbits.position.device)
        is_free = orbits.valid & (tables.num_free[orbits.position] > 0)
        crystal, slot = torch.nonzero(is_free, as_tuple=True)
        weight = torch.ones(len(crystal), device=hidden.device)
        if most is not None and len(crystal):
            kept, weight = _some_of_each(crystal, most)
            crystal, slot = crystal[kept], slot[kept]
        coarse, fine = bins_of(orbits.coords)
        position = orbits.position[crystal, slot]
        until = tables.num_images[orbits.position].cumsum(1)[crystal, (slot - 1).clamp(min=0)]
        return _Asked(
            rows=PlaceRows(
                crystal=crystal,
                orbit=slot,
                position=position,
                radius=covalent_radii_tensor().to(hidden.device)[orbits.element[crystal, slot]],
                hidden=hidden[crystal, slot],
                coarse=coarse[crystal, slot],
                fine=fine[crystal, slot],
                fixed=fixed[crystal, slot],
            ),
            entry=(crystal * orbits.position.shape[1] + slot) * 4,
            weight=weight,
            used=torch.where(slot > 0, until, 0),
            own=tables.num_images[position] - 1,
            is_wide=placed.is_wide[crystal],
            placed=placed,
            skeleton=skeleton,
        )

    def passes(
        self, counts: Int[Tensor, " row"], cost: float, place: Int[Tensor, " row"] | None = None
    ) -> Iterator[tuple[Int[Tensor, " member"], Surroundings]]:
        """Rows that are scored together.

        Args:
            counts: candidates of each row.
            cost: of `buckets`.
            place: of each row; None where rows are the places themselves.
        """
        pick = torch.arange(len(counts), device=counts.device) if place is None else place
        used, own, is_wide = self.used[pick], self.own[pick], self.is_wide[pick]
        for members in buckets(counts, used + own, is_wide, cost):
            yield (
                members,
                Surroundings(
                    placed=self.placed,
                    skeleton=self.skeleton,
                    num_atoms=int(used[members].max()),
                    num_own=int(own[members].max()),
                    is_wide=bool(is_wide[members[0]]),
                ),
            )


def _distance_scores(
    score: DistanceScore, rows: PlaceRows, hidden: Tensor, points: Tensor, around: Surroundings
) -> tuple[Float[Tensor, "place candidate"], Float[Tensor, "place candidate"]]:
    """Scores of points by their distances, and the smallest scaled distance of each."""
    query = PlaceQuery(
        crystal=rows.crystal, orbit=rows.orbit, position=rows.position, radius=rows.radius, coords=points
    )
    num_atoms, num_own = max(around.num_atoms, 1), max(around.num_own, 1)
    # Half precision would be off by hundredths of an Å.
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        away, own = scaled_distances(query, around.placed, num_atoms, num_own, is_wide=around.is_wide)
    orbit = around.placed.orbit[rows.crystal, :num_atoms].clamp(max=around.skeleton.shape[1] - 1)
    neighbours = around.skeleton[rows.crystal.unsqueeze(-1), orbit]
    return score(hidden, neighbours, away, own), torch.minimum(away.amin(-1), own.amin(-1))


def without_clashes(
    scores: Float[Tensor, "place candidate"],
    near: Float[Tensor, "place candidate"],
    floor: float,
    known: Bool[Tensor, "place candidate"] | None = None,
) -> Float[Tensor, "place candidate"]:
    """Logits of candidates without those where atoms overlap; of a place where all of them do, as they were.

    Args:
        scores: logits, minus infinity for what is no candidate.
        near: smallest scaled distance of each candidate.
        floor: below it atoms overlap.
        known: what real crystals have, which stays.
    """
    clash = (near < floor) | scores.isneginf()
    mask = clash & ~clash.all(-1, keepdim=True)
    if known is not None:
        mask = mask & ~known
    return scores.masked_fill(mask, float("-inf"))


def fine_candidates(
    coarse: Int[Tensor, "place 3"],
    fine: Int[Tensor, "place 3"],
    axis: Int[Tensor, " place"],
    fixed: Bool[Tensor, "place 3"],
) -> Float[Tensor, "place bin 3"]:
    """Points of the 20 fine bins of a coordinate: earlier ones at their bins, later ones at their coarse centres.

    Args:
        coarse: cell.
        fine: bins; only those of coordinates before `axis` are read.
        axis: which coordinate.
        fixed: coordinates that are 0.
    """
    axes = torch.arange(3, device=coarse.device)
    known = axes < axis.unsqueeze(-1)
    start = torch.where(known, bin_centre(coarse, fine), coarse_centre(coarse))
    bins = torch.arange(NUM_FINE, device=coarse.device)
    points = start.unsqueeze(1).repeat(1, NUM_FINE, 1)
    own = bin_centre(coarse.gather(1, axis.unsqueeze(-1)), bins)
    is_axis = (axes == axis.unsqueeze(-1)).unsqueeze(1)
    points = torch.where(is_axis, own.unsqueeze(-1), points)
    return torch.where(fixed.unsqueeze(1), 0.0, points)


def _some_of_each(
    crystal: Int[Tensor, " place"], most: int
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """At most so many places of each crystal at random, and how many each stands for."""
    count = torch.bincount(crystal)
    order = (crystal + torch.rand(len(crystal), device=crystal.device)).argsort()
    rank = torch.arange(len(crystal), device=crystal.device) - (count.cumsum(0) - count)[crystal[order]]
    kept = order[rank < most].sort().values
    return kept, (count / count.clamp(max=most))[crystal[kept]]
