"""`CrystalGPT`: the probability of a crystal, symbol by symbol.

log p = log p(group) + sum over orbits of log p(letter) + log p(element), log p(stop), log p(cell), and for each orbit
the log p of its free coordinates. Tokens: a start, the group, one for each orbit (letter and element), one at which the
cell is told, and one for each orbit that is placed. The cell is drawn when the skeleton is known, and coordinates when
skeleton and cell are: so they see distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.gpt.cell import CellHead, LatticeDensity
from latentite.nn.gpt.cell_densities import CellFlow, JointMixtureHead
from latentite.nn.gpt.circular import CircularHead, CoordDensity
from latentite.nn.gpt.grid import NUM_FINE, bins_of, coarse_centre
from latentite.nn.gpt.inputs import PaddedOrbits
from latentite.nn.gpt.placement import (
    NUM_BASIS,
    PlacedCrystals,
    PlaceHead,
    PlaceQuery,
    fine_candidates,
    nearest,
    radial_basis,
    scaled_distances,
)
from latentite.nn.gpt.rows import CandidateCells, PlaceRows, buckets
from latentite.nn.gpt.tokens import (
    NUM_SYMBOLS,
    FeaturedEmbedding,
    covalent_radii_tensor,
    element_features,
    group_features,
    letter_tables,
    position_features,
)
from latentite.nn.gpt.trunk import CausalTransformer
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.orbits import position_tensors
from latentite.symmetry.positions import MAX_POSITIONS, NUM_GROUPS

STOP = MAX_POSITIONS
NUM_FREQUENCIES = 8
LOG_VOLUME_SCALE = 0.1
COARSE_FLOOR = 0.45
"""Smallest distance over summed covalent radii at the centre of a coarse cell that is a candidate; 99.7 % of the orbits
of real crystals are in such cells."""
FINE_FLOOR = 0.6
"""The same at a fine bin; atoms of real crystals are 0.65 and more apart."""


@dataclass(kw_only=True, slots=True)
class GPTSize:
    """Size of the network."""

    d_model: int = 192
    num_layers: int = 6
    num_heads: int = 6
    dim_feedforward: int = 768
    dropout: float = 0.1
    num_mixtures: int = 8
    """Gaussians of the cell; not for `lattice_density: flow`."""
    num_coord_mixtures: int = 16
    """Components of each coordinate on the circle; not for `coord_density: bins`."""


@dataclass(kw_only=True, slots=True)
class GPTLimits:
    """Bounds of what the network may say: the ranges of its training data."""

    max_atoms: int = 52
    max_orbits: int = 52
    max_elements: int = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProbability:
    """Log-probability of every decision, nats; 0 where a crystal has no such decision."""

    group_choice: Float[Tensor, " crystal"]
    letter_choices: Float[Tensor, "crystal orbit_or_stop"]
    element_choices: Float[Tensor, "crystal orbit"]
    cell_components: Float[Tensor, "crystal 6"]
    place_choices: Float[Tensor, "crystal orbit 4"]
    """The coarse cell, and the fine bin of each coordinate; or 0, and the density of each fractional coordinate."""

    @property
    def group(self) -> Float[Tensor, " crystal"]:
        """Of the space group."""
        return self.group_choice

    @property
    def letters(self) -> Float[Tensor, " crystal"]:
        """Of all letters and the end of the skeleton."""
        return self.letter_choices.sum(-1)

    @property
    def elements(self) -> Float[Tensor, " crystal"]:
        """Of all elements."""
        return self.element_choices.sum(-1)

    @property
    def cell(self) -> Float[Tensor, " crystal"]:
        """Density of the free components of the cell."""
        return self.cell_components.sum(-1)

    @property
    def coords(self) -> Float[Tensor, " crystal"]:
        """Of all places."""
        return self.place_choices.sum((-2, -1))

    @property
    def decisions(self) -> Float[Tensor, "crystal decision"]:
        """All decisions in the order in which they are made (all skeletons, then the cell, then places)."""
        between = torch.stack([self.letter_choices[:, :-1], self.element_choices], dim=-1).flatten(1)
        return torch.cat(
            [
                self.group_choice.unsqueeze(-1),
                between,
                self.letter_choices[:, -1:],
                self.cell_components,
                self.place_choices.flatten(1),
            ],
            dim=-1,
        )

    @property
    def total(self) -> Float[Tensor, " crystal"]:
        """All parts together."""
        return self.group + self.letters + self.elements + self.cell + self.coords


class CrystalGPT(nn.Module):
    """The network."""

    element_volume: Tensor
    cell_mean: Tensor
    cell_std: Tensor
    cell_head: CellHead | JointMixtureHead | CellFlow
    places: PlaceHead
    """Only where coordinates are in bins."""
    circular: CircularHead | None
    """Only where they are not."""
    max_places_cost: float = 2e6
    num_sampled: int = 32
    """Coarse cells that training sees of each place, beside the right one."""
    max_places: int = 8
    """Places of a crystal that training scores; of more it takes so many at random, which count for all."""

    def __init__(
        self,
        size: GPTSize,
        limits: GPTLimits,
        *,
        lattice_density: LatticeDensity = LatticeDensity.AR,
        coord_density: CoordDensity = CoordDensity.BINS,
    ) -> None:
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
        self.cell_mix = nn.Linear(width, width)
        self.cell_input = nn.Linear(2 * NUM_COMPONENTS + 4, width)
        match lattice_density:
            case LatticeDensity.AR:
                self.cell_head = CellHead(width, size.num_mixtures)
            case LatticeDensity.GMM:
                self.cell_head = JointMixtureHead(width, size.num_mixtures)
            case LatticeDensity.FLOW:
                self.cell_head = CellFlow(width)
        self.coords_input = nn.Linear(3 * 2 * NUM_FREQUENCIES + 3, width)
        self.environment = nn.Linear(NUM_BASIS * 16, width)
        self.environment_element = nn.Linear(width, 16)
        self.circular = None
        if coord_density is CoordDensity.BINS:
            self.places = PlaceHead(width)
        else:
            self.circular = CircularHead(width, size.num_coord_mixtures, coord_density)
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
        sizes = torch.stack(
            [scale[:, 0], scale[:, 0].exp() / 10, num_atoms.float() / 20, num_atoms.float().log()], -1
        )
        values = torch.where(free, normalised, 0.0)
        return self.cell_input(torch.cat([values, free.float(), sizes], dim=-1))

    def cell_question(self, group: Tensor, skeleton: Tensor, num_images: Tensor, baseline: Tensor) -> Tensor:
        """Embedding of the token at which the cell is told: the group, and the mean of all atoms of the skeleton.

        Args:
            group: space groups.
            skeleton: embeddings of the orbits.
            num_images: atoms of each orbit, 0 for padding.
            baseline: of `volume_baseline`.
        """
        share = num_images / num_images.sum(-1, keepdim=True)
        mean = torch.einsum("bo,bod->bd", share.to(skeleton.dtype), skeleton)
        return self.stage.weight[1] + self.groups(group) + self.cell_mix(mean) + baseline[:, None] * 0.2

    def placed_token(self, coords: Tensor, num_free: Tensor, environment: Tensor) -> Tensor:
        """Embedding of where an orbit is."""
        used = torch.arange(3, device=coords.device) < num_free.unsqueeze(-1)
        frequencies = torch.arange(1, NUM_FREQUENCIES + 1, device=coords.device) * 2 * torch.pi
        angles = coords.unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1) * used.unsqueeze(-1)
        return self.coords_input(torch.cat([waves.flatten(-2), used.float()], dim=-1)) + self.environment(
            environment
        )

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
        self,
        last_element: Tensor,
        same_letter: Tensor,
        present: Tensor,
        max_elements: Tensor | int | None = None,
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
        self,
        orbits: PaddedOrbits,
        placed: PlacedCrystals,
        condition: Tensor | None,
        *,
        smoothing: float = 0.0,
    ) -> LogProbability:
        """Log-probability of known crystals.

        Args:
            orbits: in canonical order.
            placed: their atoms.
            condition: what each is told, `[crystal channel]`; None for a model without conditions.
            smoothing: share of the target of a fine bin that its neighbours get; no other density reads it.
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
                self.cell_question(orbits.space_group, skeleton, images, baseline).unsqueeze(1),
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
        density = density - torch.where(free, self.cell_std.log(), 0.0)
        coords = self._places(orbits, placed, hidden[:, num_slots + 3 :], smoothing)
        return LogProbability(
            group_choice=group,
            letter_choices=letters,
            element_choices=elements,
            cell_components=density,
            place_choices=coords,
        )

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
        same = torch.cat(
            [torch.zeros_like(orbits.valid[:, :1]), orbits.position[:, 1:] == orbits.position[:, :-1]], dim=1
        )
        present = F.one_hot(previous, NUM_SYMBOLS).cumsum(1) > 0
        present[..., 0] = False
        allowed = self.element_mask(previous, same, present)
        choices = self.element_logits(hidden[:, :-1], orbits.position).masked_fill(~allowed, float("-inf"))
        chosen = choices.log_softmax(-1).gather(2, orbits.element.unsqueeze(-1)).squeeze(-1)
        return scores, torch.where(orbits.valid, chosen, 0.0)

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
        first = (
            torch.cat([torch.full_like(placed.orbit[:, :1], -1), placed.orbit[:, :-1]], dim=1) != placed.orbit
        )
        is_self = first.unsqueeze(1) & (placed.orbit.unsqueeze(1) == slots.unsqueeze(-1))
        return torch.where(known & ~is_self, scaled, 10.0)

    def _environment(self, scaled: Tensor, element: Tensor, placed: PlacedCrystals) -> Tensor:
        basis = radial_basis(scaled) * (scaled < 2.6).unsqueeze(-1)
        crystal = torch.arange(len(element), device=scaled.device).unsqueeze(-1)
        safe = placed.orbit.clamp(max=element.shape[1] - 1)
        kinds = self.environment_element(self.elements(element))[crystal, safe]
        return torch.einsum("boak,bae->boke", basis, kinds).flatten(-2) * 0.3

    def environments(
        self, orbits: PaddedOrbits, placed: PlacedCrystals
    ) -> Float[Tensor, "crystal orbit feature"]:
        """Surroundings of each orbit, of those up to itself: distances by element."""
        slots = torch.arange(orbits.position.shape[1], device=placed.orbit.device)
        with torch.autocast(slots.device.type, enabled=False):
            scaled = self._environment_distances(
                orbits.position, orbits.element, orbits.coords, slots, placed
            )
        return self._environment(scaled, orbits.element, placed)

    def environment_of(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, slot: int
    ) -> tuple[Float[Tensor, " crystal"], Float[Tensor, "crystal feature"]]:
        """Smallest scaled distance of one orbit of each crystal to those up to itself, and what surrounds it."""
        index = slice(slot, slot + 1)
        slots = torch.tensor([slot], device=placed.orbit.device)
        with torch.autocast(slots.device.type, enabled=False):
            scaled = self._environment_distances(
                orbits.position[:, index], orbits.element[:, index], orbits.coords[:, index], slots, placed
            )
        return scaled.amin(-1)[:, 0], self._environment(scaled, orbits.element, placed)[:, 0]

    def _places(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, hidden: Tensor, smoothing: float
    ) -> Tensor:
        tables = position_tensors(orbits.position.device)
        num_free = torch.where(orbits.valid, tables.num_free[orbits.position], 0)
        fixed = self.fixed_coordinates(orbits.position)
        if self.circular is not None:
            moving = (torch.arange(3, device=hidden.device) < num_free.unsqueeze(-1)) & ~fixed
            return self.circular(hidden, orbits.coords, moving)
        skeleton = self.orbit_tokens(orbits.position, orbits.element)
        coarse, fine = bins_of(orbits.coords)
        total = hidden.new_zeros(orbits.position.numel() * 4, dtype=torch.float32)
        crystal, slot = torch.nonzero(num_free > 0, as_tuple=True)
        if not len(crystal):
            return total.view(*orbits.position.shape, 4)
        weight = torch.ones(len(crystal), device=hidden.device)
        if self.training:
            kept, weight = _some_of_each(crystal, self.max_places)
            crystal, slot = crystal[kept], slot[kept]
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
        used = torch.where(
            slot > 0, tables.num_images[orbits.position].cumsum(1)[crystal, (slot - 1).clamp(min=0)], 0
        )
        own = tables.num_images[rows.position] - 1
        wide = placed.is_wide[crystal]
        parts = []
        cells = CandidateCells.of(rows.position, rows.fixed)
        num_seen = cells.count if not self.training else cells.count.clamp(max=self.num_sampled)
        for members in buckets(num_seen, used + own, wide, self.max_places_cost):
            part, seen = rows.select(members), int(num_seen[members].max())
            index, correction = cells.draw(members, seen) if self.training else cells.all_of(members)
            candidates = cells.cells[index]
            is_target = (candidates == part.coarse.unsqueeze(1)).all(-1) & correction.isfinite()
            if self.training:
                # The right cell stands first, beside others drawn at random, which stand for all others.
                candidates = torch.cat([part.coarse.unsqueeze(1), candidates], dim=1)
                correction = torch.cat(
                    [torch.zeros_like(correction[:, :1]), correction.masked_fill(is_target, float("-inf"))], 1
                )
                is_target = torch.zeros_like(correction, dtype=torch.bool)
                is_target[:, 0] = True
            scores, near = self.coarse_scores(
                part,
                candidates,
                placed,
                skeleton,
                int(used[members].max()),
                int(own[members].max()),
                bool(wide[members[0]]),
            )
            scores = without_clashes(scores + correction, near, COARSE_FLOOR, is_target)
            chosen = scores.log_softmax(-1).masked_fill(~is_target, 0.0).sum(-1)
            missing = ~is_target.any(-1)
            place = part.crystal * orbits.position.shape[1] + part.orbit
            parts.append(
                (place * 4, weight[members] * torch.where(missing, torch.full_like(chosen, -12.0), chosen))
            )
        axis_rows, axis = torch.nonzero(
            (torch.arange(3, device=hidden.device) < tables.num_free[rows.position].unsqueeze(-1))
            & ~rows.fixed,
            as_tuple=True,
        )
        num_bins = torch.full_like(axis, NUM_FINE)
        for members in buckets(num_bins, (used + own)[axis_rows], wide[axis_rows], self.max_places_cost):
            index = axis_rows[members]
            part = rows.select(index)
            scores, near = self.fine_scores(
                part,
                axis[members],
                placed,
                skeleton,
                int(used[index].max()),
                int(own[index].max()),
                bool(wide[index[0]]),
            )
            target = part.fine.gather(1, axis[members].unsqueeze(-1))
            is_target = torch.arange(NUM_FINE, device=target.device) == target
            log = without_clashes(scores, near, FINE_FLOOR, is_target).log_softmax(-1)
            chosen = log.gather(1, target).squeeze(-1)
            if smoothing:
                weights = torch.exp(-0.5 * ((torch.arange(NUM_FINE, device=log.device) - target) / 0.7) ** 2)
                weights = weights * torch.isfinite(log)
                weights = weights / weights.sum(-1, keepdim=True)
                log = torch.where(weights > 0, log, 0.0)
                chosen = (1 - smoothing) * chosen + smoothing * (weights * log).sum(-1)
            place = part.crystal * orbits.position.shape[1] + part.orbit
            parts.append((place * 4 + 1 + axis[members], weight[index] * chosen))
        for index, values in parts:
            total = total.index_add(0, index, values)
        return total.view(*orbits.position.shape, 4)

    def fixed_coordinates(self, position: Int[Tensor, "crystal orbit"]) -> Bool[Tensor, "crystal orbit 3"]:
        """Coordinates that are 0 by the choice of the origin: those of the first orbit along polar axes."""
        polar = letter_tables(position.device).is_polar[position]
        first = torch.zeros_like(polar)
        first[:, 0] = polar[:, 0]
        return first

    def coarse_scores(
        self,
        rows: PlaceRows,
        cells: Tensor,
        placed: PlacedCrystals,
        skeleton: Tensor,
        num_atoms: int,
        num_own: int,
        is_wide: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logits of coarse cells, and the smallest scaled distance at the centre of each."""
        points = torch.where(rows.fixed.unsqueeze(1), 0.0, coarse_centre(cells))
        scores, near = self._distance_scores(
            self.places.coarse_distance,
            rows,
            rows.hidden,
            points,
            placed,
            skeleton,
            num_atoms,
            num_own,
            is_wide,
        )
        return self.places.coarse_logits(rows.hidden, cells, scores).float(), near

    def fine_scores(
        self,
        rows: PlaceRows,
        axis: Tensor,
        placed: PlacedCrystals,
        skeleton: Tensor,
        num_atoms: int,
        num_own: int,
        is_wide: bool,
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
        query = PlaceQuery(
            crystal=rows.crystal, orbit=rows.orbit, position=rows.position, radius=rows.radius, coords=points
        )
        num_atoms = max(num_atoms, 1)
        # Half precision would be off by hundredths of an Å.
        with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            away, own = scaled_distances(query, placed, num_atoms, max(num_own, 1), is_wide=is_wide)
        safe = placed.orbit[rows.crystal, :num_atoms].clamp(max=skeleton.shape[1] - 1)
        neighbours = skeleton[rows.crystal.unsqueeze(-1), safe]
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


def _some_of_each(
    crystal: Int[Tensor, " place"], most: int
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """At most so many places of each crystal at random, and how many each stands for."""
    count = torch.bincount(crystal)
    order = (crystal + torch.rand(len(crystal), device=crystal.device)).argsort()
    rank = torch.arange(len(crystal), device=crystal.device) - (count.cumsum(0) - count)[crystal[order]]
    kept = order[rank < most].sort().values
    return kept, (count / count.clamp(max=most))[crystal[kept]]
