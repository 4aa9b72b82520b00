"""`CrystalGPT`: the probability of a crystal, symbol by symbol.

log p = log p(group) + sum over orbits of log p(letter) + log p(element), log p(stop), log p(cell), and for each orbit the
log p of its free coordinates. Tokens: a start, the group, one for each orbit (letter and element), one at which the cell
is told, and one for each orbit that is placed. Everything is known of a skeleton when its cell is drawn, and everything
of skeleton and cell when coordinates are: these see distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.gpt.grid import NUM_FINE, bins_of, cell_tensor, coarse_centre
from latentite.nn.gpt.inputs import PaddedOrbits
from latentite.nn.gpt.placement import (
    NUM_BASIS,
    PlacedCrystals,
    PlaceHead,
    PlaceQuery,
    fine_candidates,
    radial_basis,
    nearest,
    scaled_distances,
)
from latentite.nn.gpt.tokens import (
    NUM_SYMBOLS,
    FeaturedEmbedding,
    covalent_radii_tensor,
    element_features,
    group_features,
    position_features,
)
from latentite.nn.gpt.trunk import CausalTransformer, KeyValueCache
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.orbits import position_tensors
from latentite.symmetry.positions import MAX_POSITIONS, NUM_GROUPS, wyckoff_table

STOP = MAX_POSITIONS
NUM_FREQUENCIES = 8
LOG_VOLUME_SCALE = 0.1


@dataclass(kw_only=True, slots=True)
class GPTSize:
    """Size of the network."""

    d_model: int = 192
    num_layers: int = 6
    num_heads: int = 6
    dim_feedforward: int = 768
    dropout: float = 0.1
    num_mixtures: int = 8


@dataclass(kw_only=True, slots=True)
class GPTLimits:
    """What the network may say: the ranges of its training data."""

    max_atoms: int = 52
    max_orbits: int = 52
    max_elements: int = 7


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
        raw = self.net(F.gelu(hidden + self.inputs(inputs) + self.component.weight[component], approximate="tanh"))
        weights, means, widths = raw.float().chunk(3, dim=-1)
        return weights.log_softmax(-1), means, widths.clamp(-5.5, 2.0)

    def forward(
        self, hidden: Float[Tensor, "crystal channel"], values: Float[Tensor, "crystal 6"], free: Bool[Tensor, "crystal 6"]
    ) -> Float[Tensor, " crystal"]:
        """Log-density of normalised components; those that are not free count 0."""
        total = values.new_zeros(len(values))
        for component in range(NUM_COMPONENTS):
            weights, means, widths = self.parameters_of(hidden, values, component)
            gap = (values[:, component : component + 1] - means) / widths.exp()
            density = torch.logsumexp(weights - 0.5 * gap**2 - widths - 0.9189385, dim=-1)
            total = total + torch.where(free[:, component], density, 0.0)
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProbability:
    """Parts of the log-probability of each crystal, nats."""

    group: Float[Tensor, " crystal"]
    letters: Float[Tensor, " crystal"]
    elements: Float[Tensor, " crystal"]
    cell: Float[Tensor, " crystal"]
    coords: Float[Tensor, " crystal"]

    @property
    def total(self) -> Float[Tensor, " crystal"]:
        """All parts together."""
        return self.group + self.letters + self.elements + self.cell + self.coords


class CrystalGPT(nn.Module):
    """The network."""

    element_volume: Tensor
    cell_mean: Tensor
    cell_std: Tensor
    max_places_cost: float = 2e6
    num_sampled: int = 40

    def __init__(self, size: GPTSize, limits: GPTLimits) -> None:
        super().__init__()
        self.size, self.limits = size, limits
        width = size.d_model
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.groups = FeaturedEmbedding(group_features(), width)
        self.positions = FeaturedEmbedding(position_features(), width)
        self.elements = FeaturedEmbedding(element_features(), width)
        self.ordinal = nn.Embedding(64, width)
        self.stage = nn.Embedding(3, width)
        self.trunk = CausalTransformer(
            d_model=width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            dim_feedforward=size.dim_feedforward,
            dropout=size.dropout,
        )
        self.dropout = nn.Dropout(size.dropout)
        self.group_head = nn.Linear(width, NUM_GROUPS + 1)
        self.letter_query = nn.Linear(width, width)
        self.stop_head = nn.Linear(width, 1)
        self.element_head = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )
        self.cell_input = nn.Linear(2 * NUM_COMPONENTS + 4, width)
        self.cell_head = CellHead(width, size.num_mixtures)
        self.coords_input = nn.Linear(3 * 2 * NUM_FREQUENCIES + 3, width)
        self.environment = nn.Linear(NUM_BASIS * 16, width)
        self.environment_element = nn.Linear(width, 16)
        self.places = PlaceHead(width)
        self.register_buffer("element_volume", torch.zeros(NUM_SYMBOLS))
        self.register_buffer("cell_mean", torch.zeros(NUM_COMPONENTS))
        self.register_buffer("cell_std", torch.ones(NUM_COMPONENTS))

    # Embeddings of tokens

    def orbit_tokens(self, position: Tensor, element: Tensor) -> Tensor:
        """Embeddings of letters with their elements."""
        return self.positions(position) + self.elements(element)

    def volume_baseline(self, position: Tensor, element: Tensor, valid: Tensor) -> Tensor:
        """ln of the volume per atom that the elements have by themselves."""
        count = torch.where(valid, position_tensors(position.device).num_images[position], 0).float()
        return (self.element_volume[element] * count).sum(-1) / count.sum(-1)

    def normalised_cell(self, cell: Tensor, baseline: Tensor) -> Tensor:
        """Components in units in which the cell head works."""
        first = (cell[:, :1] - baseline.unsqueeze(-1) - self.cell_mean[:1]) / self.cell_std[:1]
        return torch.cat([first, (cell[:, 1:] - self.cell_mean[1:]) / self.cell_std[1:]], dim=-1)

    def real_cell(self, normalised: Tensor, baseline: Tensor) -> Tensor:
        """The inverse of `normalised_cell`."""
        cell = normalised * self.cell_std + self.cell_mean
        return torch.cat([cell[:, :1] + baseline.unsqueeze(-1), cell[:, 1:]], dim=-1)

    def cell_token(self, normalised: Tensor, free: Tensor, cell: Tensor, num_atoms: Tensor) -> Tensor:
        """Embedding of a cell."""
        scale = (cell[:, :1] + num_atoms.float().log().unsqueeze(-1)) / 3
        sizes = torch.stack([scale[:, 0], scale[:, 0].exp() / 10, num_atoms.float() / 20, num_atoms.float().log()], -1)
        values = torch.where(free, normalised, 0.0)
        return self.cell_input(torch.cat([values, free.float(), sizes], dim=-1))

    def placed_token(self, coords: Tensor, num_free: Tensor, environment: Tensor) -> Tensor:
        """Embedding of where an orbit is."""
        used = torch.arange(3, device=coords.device) < num_free.unsqueeze(-1)
        frequencies = torch.arange(1, NUM_FREQUENCIES + 1, device=coords.device) * 2 * torch.pi
        angles = coords.unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1) * used.unsqueeze(-1)
        return self.coords_input(torch.cat([waves.flatten(-2), used.float()], dim=-1)) + self.environment(environment)

    # Masks

    def letter_mask(
        self, group: Tensor, last: Tensor, used_atoms: Tensor, is_first: Tensor, budget: Tensor | None = None
    ) -> Bool[Tensor, "*row 28"]:
        """Letters that may follow; the last column is the end.

        Args:
            group: space group of each row.
            last: row of the table of the position before; not read where there is none.
            used_atoms: atoms of the primitive cell so far.
            is_first: whether no orbit is there yet.
            budget: largest number of atoms; by default that of the training data.
        """
        tables = letter_tables(group.device)
        letters = torch.arange(MAX_POSITIONS, device=group.device)
        first = tables.first[group]
        exists = letters < tables.count[group].unsqueeze(-1)
        position = (first.unsqueeze(-1) + letters).clamp(max=len(tables.num_images) - 1)
        own = (last - first).unsqueeze(-1)
        repeatable = (tables.num_free[last] > 0).unsqueeze(-1)
        in_order = is_first.unsqueeze(-1) | (letters > own) | ((letters == own) & repeatable)
        limit = self.limits.max_atoms if budget is None else budget.unsqueeze(-1)
        fits = used_atoms.unsqueeze(-1) + tables.num_images[position] <= limit
        return torch.cat([exists & in_order & fits, ~is_first.unsqueeze(-1)], dim=-1)

    def element_mask(
        self, last_element: Tensor, same_letter: Tensor, present: Tensor, max_elements: Tensor | int | None = None
    ) -> Bool[Tensor, "*row 119"]:
        """Elements that may sit on a letter: those of one letter in order, and not more kinds than allowed.

        Args:
            last_element: of the orbit before.
            same_letter: whether the letter is that of the orbit before.
            present: elements so far.
            max_elements: largest number of kinds; by default that of the training data.
        """
        symbols = torch.arange(NUM_SYMBOLS, device=present.device)
        limit = self.limits.max_elements if max_elements is None else max_elements
        is_full = present.sum(-1) >= limit
        in_order = ~same_letter.unsqueeze(-1) | (symbols >= last_element.unsqueeze(-1))
        return in_order & (~is_full.unsqueeze(-1) | present) & (symbols > 0)

    def letter_logits(self, hidden: Tensor, group: Tensor) -> Float[Tensor, "*row 28"]:
        """Scores of the letters of each row's group, and of the end."""
        tables = letter_tables(group.device)
        letters = torch.arange(MAX_POSITIONS, device=group.device)
        index = (tables.first[group].unsqueeze(-1) + letters).clamp(max=len(tables.num_images) - 1)
        keys = self.positions.table()[index]
        scores = torch.einsum("...d,...kd->...k", self.letter_query(hidden), keys) * hidden.shape[-1] ** -0.5
        return torch.cat([scores, self.stop_head(hidden)], dim=-1).float()

    def element_logits(self, hidden: Tensor, position: Tensor) -> Float[Tensor, "*row 119"]:
        """Scores of the elements on a letter."""
        query = self.element_head(torch.cat([hidden, self.positions(position)], dim=-1))
        return (query @ self.elements.table().T * hidden.shape[-1] ** -0.5).float()

    # Teacher forcing

    def log_prob(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, condition: Tensor | None, *, smoothing: float = 0.0
    ) -> LogProbability:
        """Log-probability of known crystals.

        Args:
            orbits: in canonical order.
            placed: their atoms.
            condition: what each is told, `[crystal channel]`; None for a model without conditions.
            smoothing: share of the target of a fine bin that its neighbours get.
        """
        tables = position_tensors(orbits.position.device)
        num_crystals, num_slots = orbits.position.shape
        told = condition.unsqueeze(1) if condition is not None else 0.0
        skeleton = self.orbit_tokens(orbits.position, orbits.element)
        images = torch.where(orbits.valid, tables.num_images[orbits.position], 0)
        num_atoms = images.sum(-1)
        baseline = self.volume_baseline(orbits.position, orbits.element, orbits.valid)
        free = free_components(orbits.space_group)
        normalised = self.normalised_cell(orbits.cell, baseline)
        cell = self.cell_token(normalised, free, orbits.cell, num_atoms)
        environment = self.environments(orbits, placed)
        where = self.placed_token(orbits.coords, tables.num_free[orbits.position], environment) + skeleton
        before = torch.cat([torch.zeros_like(where[:, :1]), where[:, :-1]], dim=1)
        place = self.ordinal.weight[:num_slots]
        tokens = torch.cat(
            [
                (self.start + self.stage.weight[0]).expand(num_crystals, 1, -1),
                self.groups(orbits.space_group).unsqueeze(1) + self.stage.weight[0],
                skeleton + place + self.stage.weight[0],
                (self.stage.weight[1] + baseline[:, None] * 0.2).unsqueeze(1),
                skeleton + before + cell.unsqueeze(1) + place + self.stage.weight[2],
            ],
            dim=1,
        )
        one = torch.ones_like(orbits.valid[:, :1])
        allowed = torch.cat([one, one, orbits.valid, one, orbits.valid], dim=1)
        hidden = self.trunk(self.dropout(tokens + told), allowed)

        group_logits = self.group_head(hidden[:, 0]).float()
        group_logits[:, 0] = float("-inf")
        group = group_logits.log_softmax(-1).gather(1, orbits.space_group.unsqueeze(-1)).squeeze(-1)
        letters, elements = self._skeleton(orbits, hidden[:, 1 : num_slots + 2], images)
        density = self.cell_head(hidden[:, num_slots + 2], normalised, free)
        # The density is that of the components themselves.
        density = density - torch.where(free, self.cell_std.log(), 0.0).sum(-1)
        coords = self._places(orbits, placed, hidden[:, num_slots + 3 :], smoothing)
        return LogProbability(group=group, letters=letters, elements=elements, cell=density, coords=coords)

    def _skeleton(self, orbits: PaddedOrbits, hidden: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        tables = letter_tables(orbits.position.device)
        num_slots = orbits.position.shape[1]
        group = orbits.space_group.unsqueeze(1).expand(-1, num_slots + 1)
        zero = torch.zeros_like(orbits.position[:, :1])
        last = torch.cat([zero, orbits.position], dim=1)
        used = torch.cat([zero, images.cumsum(1)], dim=1)
        is_first = torch.zeros_like(last, dtype=torch.bool)
        is_first[:, 0] = True
        mask = self.letter_mask(group, last, used, is_first)
        logits = self.letter_logits(hidden, group).masked_fill(~mask, float("-inf"))
        num = orbits.valid.sum(-1, keepdim=True)
        target = torch.cat([orbits.position - tables.first[orbits.space_group].unsqueeze(-1), zero], dim=1)
        slots = torch.arange(num_slots + 1, device=num.device)
        target = torch.where(slots == num, STOP, target.clamp(0, STOP))
        counts = slots <= num
        scores = torch.where(counts, logits.log_softmax(-1).gather(2, target.unsqueeze(-1)).squeeze(-1), 0.0)

        previous = torch.cat([zero, orbits.element[:, :-1]], dim=1)
        same = torch.cat([torch.zeros_like(orbits.valid[:, :1]), orbits.position[:, 1:] == orbits.position[:, :-1]], dim=1)
        present = F.one_hot(previous, NUM_SYMBOLS).cumsum(1) > 0
        present[..., 0] = False
        allowed = self.element_mask(previous, same, present)
        choices = self.element_logits(hidden[:, :-1], orbits.position).masked_fill(~allowed, float("-inf"))
        chosen = choices.log_softmax(-1).gather(2, orbits.element.unsqueeze(-1)).squeeze(-1)
        return scores.sum(-1), torch.where(orbits.valid, chosen, 0.0).sum(-1)

    # Places

    @torch.no_grad()
    def _environment_distances(
        self, position: Tensor, element: Tensor, coords: Tensor, slots: Tensor, placed: PlacedCrystals
    ) -> Tensor:
        """Scaled distances [crystal orbit atom] of the representatives of some orbits to atoms of orbits up to each."""
        tables = position_tensors(position.device)
        dtype = placed.coords.dtype
        point = torch.einsum("boij,boj->boi", tables.matrix[position].to(dtype), coords)
        point = (point + tables.offset[position].to(dtype)) @ placed.to_reduced
        gaps = placed.coords.unsqueeze(1) - point.unsqueeze(2)
        distance = nearest(gaps.flatten(1, 2), placed.lattice, placed.shifts).view(gaps.shape[:-1])
        radii = covalent_radii_tensor().to(point.device)[element]
        scaled = distance / (radii.unsqueeze(-1) + placed.radius.unsqueeze(1))
        known = placed.orbit.unsqueeze(1) <= slots.unsqueeze(-1)
        # An orbit's representative is the first of its atoms.
        first = torch.cat([torch.full_like(placed.orbit[:, :1], -1), placed.orbit[:, :-1]], dim=1) != placed.orbit
        is_self = first.unsqueeze(1) & (placed.orbit.unsqueeze(1) == slots.unsqueeze(-1))
        return torch.where(known & ~is_self, scaled, 10.0)

    def _environment(self, scaled: Tensor, element: Tensor, placed: PlacedCrystals) -> Tensor:
        basis = radial_basis(scaled) * (scaled < 2.6).unsqueeze(-1)
        crystal = torch.arange(len(element), device=scaled.device).unsqueeze(-1)
        safe = placed.orbit.clamp(max=element.shape[1] - 1)
        kinds = self.environment_element(self.elements(element))[crystal, safe]
        return torch.einsum("boak,bae->boke", basis, kinds).flatten(-2) * 0.3

    def environments(self, orbits: PaddedOrbits, placed: PlacedCrystals) -> Float[Tensor, "crystal orbit feature"]:
        """What surrounds each orbit, of those up to itself: distances by element."""
        slots = torch.arange(orbits.position.shape[1], device=placed.orbit.device)
        scaled = self._environment_distances(orbits.position, orbits.element, orbits.coords, slots, placed)
        return self._environment(scaled, orbits.element, placed)

    def environment_of(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, slot: int
    ) -> tuple[Float[Tensor, " crystal"], Float[Tensor, "crystal feature"]]:
        """Smallest scaled distance of one orbit of each crystal to those up to itself, and what surrounds it."""
        index = slice(slot, slot + 1)
        slots = torch.tensor([slot], device=placed.orbit.device)
        scaled = self._environment_distances(
            orbits.position[:, index], orbits.element[:, index], orbits.coords[:, index], slots, placed
        )
        return scaled.amin(-1)[:, 0], self._environment(scaled, orbits.element, placed)[:, 0]

    def _places(self, orbits: PaddedOrbits, placed: PlacedCrystals, hidden: Tensor, smoothing: float) -> Tensor:
        tables = position_tensors(orbits.position.device)
        skeleton = self.orbit_tokens(orbits.position, orbits.element)
        coarse, fine = bins_of(orbits.coords)
        num_free = torch.where(orbits.valid, tables.num_free[orbits.position], 0)
        fixed = self.fixed_coordinates(orbits.position)
        total = hidden.new_zeros(orbits.position.shape[0], dtype=torch.float32)
        crystal, slot = torch.nonzero(num_free > 0, as_tuple=True)
        if not len(crystal):
            return total
        rows = PlaceRows(
            crystal=crystal,
            orbit=slot,
            position=orbits.position[crystal, slot],
            radius=covalent_radii_tensor().to(hidden.device)[orbits.element[crystal, slot]],
            hidden=hidden[crystal, slot],
            coarse=coarse[crystal, slot],
            fine=fine[crystal, slot],
            fixed=fixed[crystal, slot],
        )
        used = torch.where(slot > 0, tables.num_images[orbits.position].cumsum(1)[crystal, (slot - 1).clamp(min=0)], 0)
        own = tables.num_images[rows.position] - 1
        wide = placed.is_wide[crystal]
        parts = []
        cells = CandidateCells.of(rows.position, rows.fixed)
        num_seen = cells.count if not self.training else cells.count.clamp(max=self.num_sampled)
        for members in place_buckets(num_seen, used + own, wide, self.max_places_cost):
            part, seen = rows.select(members), int(num_seen[members].max())
            index, correction = cells.draw(members, seen) if self.training else cells.all_of(members)
            candidates = cells.cells[index]
            is_target = (candidates == part.coarse.unsqueeze(1)).all(-1) & correction.isfinite()
            if self.training:
                # The right cell stands first, beside others drawn at random, which stand for all others.
                candidates = torch.cat([part.coarse.unsqueeze(1), candidates], dim=1)
                correction = torch.cat([torch.zeros_like(correction[:, :1]), correction.masked_fill(is_target, float("-inf"))], 1)
                is_target = torch.zeros_like(correction, dtype=torch.bool)
                is_target[:, 0] = True
            scores = self.coarse_scores(
                part, candidates, placed, skeleton, int(used[members].max()), int(own[members].max()), bool(wide[members[0]])
            )
            chosen = (scores + correction).log_softmax(-1).masked_fill(~is_target, 0.0).sum(-1)
            missing = ~is_target.any(-1)
            parts.append((part.crystal, torch.where(missing, torch.full_like(chosen, -12.0), chosen)))
        axis_rows, axis = torch.nonzero(
            (torch.arange(3, device=hidden.device) < tables.num_free[rows.position].unsqueeze(-1)) & ~rows.fixed, as_tuple=True
        )
        num_bins = torch.full_like(axis, NUM_FINE)
        for members in place_buckets(num_bins, (used + own)[axis_rows], wide[axis_rows], self.max_places_cost):
            index = axis_rows[members]
            part = rows.select(index)
            scores, _ = self.fine_scores(
                part, axis[members], placed, skeleton, int(used[index].max()), int(own[index].max()), bool(wide[index[0]])
            )
            target = part.fine.gather(1, axis[members].unsqueeze(-1))
            log = scores.log_softmax(-1)
            chosen = log.gather(1, target).squeeze(-1)
            if smoothing:
                weights = torch.exp(-0.5 * ((torch.arange(NUM_FINE, device=log.device) - target) / 0.7) ** 2)
                weights = weights / weights.sum(-1, keepdim=True)
                chosen = (1 - smoothing) * chosen + smoothing * (weights * log).sum(-1)
            parts.append((part.crystal, chosen))
        for index, values in parts:
            total = total.index_add(0, index, values)
        return total

    def fixed_coordinates(self, position: Int[Tensor, "crystal orbit"]) -> Bool[Tensor, "crystal orbit 3"]:
        """Coordinates that are 0 by the choice of the origin: those of the first orbit along polar axes."""
        polar = letter_tables(position.device).is_polar[position]
        first = torch.zeros_like(polar)
        first[:, 0] = polar[:, 0]
        return first

    def coarse_scores(
        self, rows: PlaceRows, cells: Tensor, placed: PlacedCrystals, skeleton: Tensor, num_atoms: int, num_own: int, is_wide: bool
    ) -> Tensor:
        """Logits of coarse cells."""
        points = torch.where(rows.fixed.unsqueeze(1), 0.0, coarse_centre(cells))
        scores, _ = self._distance_scores(
            self.places.coarse_distance, rows, rows.hidden, points, placed, skeleton, num_atoms, num_own, is_wide
        )
        return self.places.coarse_logits(rows.hidden, cells, scores).float()

    def fine_scores(
        self, rows: PlaceRows, axis: Tensor, placed: PlacedCrystals, skeleton: Tensor, num_atoms: int, num_own: int, is_wide: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits of the fine bins of one coordinate each, and the smallest scaled distance at each."""
        hidden = self.places.fine_hidden(rows.hidden, rows.coarse, rows.fine, axis)
        points = fine_candidates(rows.coarse, rows.fine, axis, rows.fixed)
        scores, near = self._distance_scores(
            self.places.fine_distance, rows, hidden, points, placed, skeleton, num_atoms, num_own, is_wide
        )
        return (self.places.fine(hidden) + scores).float(), near

    def _distance_scores(
        self,
        score: nn.Module,
        rows: PlaceRows,
        hidden: Tensor,
        points: Tensor,
        placed: PlacedCrystals,
        skeleton: Tensor,
        num_atoms: int,
        num_own: int,
        is_wide: bool,
    ) -> tuple[Tensor, Tensor]:
        query = PlaceQuery(crystal=rows.crystal, orbit=rows.orbit, position=rows.position, radius=rows.radius, coords=points)
        num_atoms = max(num_atoms, 1)
        with torch.no_grad():
            away, own = scaled_distances(query, placed, num_atoms, max(num_own, 1), is_wide=is_wide)
        safe = placed.orbit[rows.crystal, :num_atoms].clamp(max=skeleton.shape[1] - 1)
        neighbours = skeleton[rows.crystal.unsqueeze(-1), safe]
        return score(hidden, neighbours, away, own), torch.minimum(away.amin(-1), own.amin(-1))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceRows:
    """Orbits that are to be placed."""

    crystal: Tensor
    orbit: Tensor
    position: Tensor
    radius: Tensor
    hidden: Tensor
    coarse: Tensor
    fine: Tensor
    fixed: Tensor

    def select(self, index: Tensor) -> PlaceRows:
        return PlaceRows(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateCells:
    """Coarse cells that each place may be in; a fixed coordinate is in the first one."""

    cells: Int[Tensor, "cell 3"]
    first: Int[Tensor, " place"]
    count: Int[Tensor, " place"]

    @staticmethod
    def of(position: Int[Tensor, " place"], fixed: Bool[Tensor, "place 3"]) -> CandidateCells:
        """Of places by their positions."""
        kinds = position * 8 + (fixed.long() * torch.tensor([1, 2, 4], device=position.device)).sum(-1)
        unique, inverse = kinds.unique(return_inverse=True)
        cells = [_cells_of_kind(kind) for kind in unique.tolist()]
        count = torch.tensor([len(one) for one in cells], device=position.device)
        first = count.cumsum(0) - count
        return CandidateCells(cells=torch.cat(cells).to(position.device), first=first[inverse], count=count[inverse])

    def all_of(self, members: Int[Tensor, " member"]) -> tuple[Int[Tensor, "member cell"], Float[Tensor, "member cell"]]:
        """All cells of some places, padded, and 0, or minus infinity for padding."""
        count = self.count[members]
        slots = torch.arange(int(count.max()), device=count.device)
        exists = slots < count.unsqueeze(-1)
        index = self.first[members].unsqueeze(-1) + torch.where(exists, slots, 0)
        return index, torch.zeros(exists.shape, device=count.device).masked_fill(~exists, float("-inf"))

    def draw(self, members: Int[Tensor, " member"], num: int) -> tuple[Int[Tensor, "member cell"], Float[Tensor, "member cell"]]:
        """So many cells of each place at random, and what makes them stand for all."""
        count = self.count[members].unsqueeze(-1)
        drawn = (torch.rand(len(members), num, device=count.device) * count).long()
        index = self.first[members].unsqueeze(-1) + drawn
        return index, (count.float() / num).log().expand(-1, num)


@cache
def _cells_of_kind(kind: int) -> Int[Tensor, "cell 3"]:
    position, flags = divmod(kind, 8)
    cells = cell_tensor(position)
    for axis in range(3):
        if flags >> axis & 1:
            cells = cells[cells[:, axis] == 0]
    return cells


def place_buckets(counts: Tensor, neighbours: Tensor, wide: Tensor, cost: float) -> list[Tensor]:
    """Places in groups of similar size whose padded candidates times neighbours stay below a cost."""
    groups: list[Tensor] = []
    for flag in (False, True):
        members = torch.nonzero(wide == flag).squeeze(-1)
        order = members[(counts[members] * 1000 + neighbours[members]).argsort(stable=True)]
        current: list[int] = []
        most = largest = real = 0
        for place, count, near in zip(order.tolist(), counts[order].tolist(), neighbours[order].tolist(), strict=True):
            size = count * (near + 1)
            padded = (len(current) + 1) * max(most, count) * max(largest, near + 1)
            if current and (padded > cost or (padded > 1.6 * (real + size) and len(current) >= 12)):
                groups.append(torch.tensor(current, device=counts.device))
                current, most, largest, real = [], 0, 0, 0
            current.append(place)
            most, largest, real = max(most, count), max(largest, near + 1), real + size
        if current:
            groups.append(torch.tensor(current, device=counts.device))
    return groups


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterTables:
    """What masks read of the table of positions."""

    first: Tensor
    count: Tensor
    num_images: Tensor
    num_free: Tensor
    is_polar: Tensor


_LETTER_TABLES: dict[str, LetterTables] = {}


def letter_tables(device: torch.device) -> LetterTables:
    """The tables on a device."""
    key = str(device)
    if key not in _LETTER_TABLES:
        table = wyckoff_table()
        _LETTER_TABLES[key] = LetterTables(
            first=torch.from_numpy(table.first).to(device),
            count=torch.from_numpy(table.count).to(device),
            num_images=torch.from_numpy(table.num_images).to(device),
            num_free=torch.from_numpy(table.num_free).to(device),
            is_polar=torch.from_numpy(table.is_polar).to(device),
        )
    return _LETTER_TABLES[key]
