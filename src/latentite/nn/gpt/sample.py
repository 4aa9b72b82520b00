"""Crystals drawn from a `CrystalGPT`, many at a time, each from random numbers of its own.

Every draw inverts a distribution at a uniform number that belongs to one crystal and one decision, so that a crystal does not
depend on those beside it. Rows that have ended their skeleton leave the batch, which then goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.nn.gpt.grid import NUM_BINS, NUM_FINE, bin_centre
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.model import STOP, CrystalGPT
from latentite.nn.gpt.placement import PlacedCrystals
from latentite.nn.gpt.rows import CandidateCells, PlaceRows, buckets
from latentite.nn.gpt.tokens import NUM_SYMBOLS, covalent_radii_tensor, letter_tables
from latentite.nn.gpt.trunk import KeyValueCache
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.orbits import OrbitBatch, position_tensors

Progress = Callable[[int], None]


@dataclass(kw_only=True, slots=True)
class DrawSettings:
    """How crystals are drawn."""

    temperature: float = 1.0
    """Of letters, elements and cells."""
    temperature_coords: float = 1.0
    """Of coordinates."""
    top_p: float = 1.0
    """Of letters, elements and coordinates: the likeliest choices that hold this share."""
    max_elements: int | None = None
    """Largest number of different elements; None for that of the training data."""
    min_distance: float = 0.5
    """Smallest distance over summed covalent radii that the last coordinate of an orbit may leave; 0 for none."""


@dataclass(kw_only=True, slots=True)
class Wishes:
    """What is asked of each crystal, beside conditions."""

    space_group: Int[Tensor, " crystal"] | None = None
    """0 where the model chooses."""
    allowed: Bool[Tensor, "crystal 119"] | None = None
    """Elements that may occur."""
    max_atoms: Int[Tensor, " crystal"] | None = None

    def select(self, rows: Tensor) -> Wishes:
        """Of some crystals."""
        return Wishes(
            space_group=None if self.space_group is None else self.space_group[rows],
            allowed=None if self.allowed is None else self.allowed[rows],
            max_atoms=None if self.max_atoms is None else self.max_atoms[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What was drawn, in the order of the rows."""

    orbits: OrbitBatch
    log_prob: Float[Tensor, " crystal"]
    """Of what was drawn, under the distributions that it was drawn from; nats."""
    closest: Float[Tensor, " crystal"]
    """Smallest distance over summed covalent radii that placing saw."""


@dataclass(kw_only=True, slots=True)
class _State:
    """Skeletons on their way."""

    rows: Tensor
    group: Tensor
    position: list[Tensor] = field(default_factory=list)
    element: list[Tensor] = field(default_factory=list)
    log_prob: Tensor
    cache: KeyValueCache
    hidden: Tensor
    ended: Tensor
    used_atoms: Tensor
    present: Tensor

    def select(self, keep: Tensor) -> _State:
        return _State(
            rows=self.rows[keep],
            group=self.group[keep],
            position=[one[keep] for one in self.position],
            element=[one[keep] for one in self.element],
            log_prob=self.log_prob[keep],
            cache=self.cache.select(keep),
            hidden=self.hidden[keep],
            ended=self.ended[keep],
            used_atoms=self.used_atoms[keep],
            present=self.present[keep],
        )


def num_uniforms(max_orbits: int) -> int:
    """Random numbers that a crystal may need."""
    return 1 + 2 * (max_orbits + 1) + 2 * NUM_COMPONENTS + 7 * max_orbits


def choose(
    logits: Float[Tensor, "row choice"],
    uniform: Float[Tensor, " row"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Choices at the given quantiles, and their log-probabilities.

    Args:
        logits: minus infinity where there is no choice.
        uniform: in [0, 1).
        temperature: divides the logits.
        top_p: of the probabilities after that, the largest that make up this share are kept.
    """
    scaled = logits.double() / temperature
    if top_p < 1.0:
        probability, order = scaled.softmax(-1).sort(dim=-1, descending=True)
        drop = probability.cumsum(-1) - probability >= top_p
        scaled = scaled.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    log = scaled.log_softmax(-1)
    cumulative = log.exp().cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform.double().unsqueeze(-1), right=True).squeeze(-1)
    # At the upper end rounding may point behind the last choice that there is.
    last = (torch.arange(logits.shape[-1], device=logits.device) * torch.isfinite(log)).amax(-1)
    index = torch.minimum(index, last)
    return index, log.gather(-1, index.unsqueeze(-1)).squeeze(-1).float()


class Sampler:
    """Draws crystals from a network in evaluation mode."""

    def __init__(self, model: CrystalGPT, settings: DrawSettings) -> None:
        self.model, self.settings = model, settings

    @torch.no_grad()
    def draw(
        self,
        uniforms: Float[Tensor, "crystal number"],
        *,
        condition: Float[Tensor, "crystal channel"] | None = None,
        wishes: Wishes | None = None,
    ) -> Draws:
        """Crystals, one for each row of random numbers (`num_uniforms` of them)."""
        wishes = wishes or Wishes()
        parts: list[tuple[Tensor, OrbitBatch, Tensor, Tensor]] = []
        for state in self._skeletons(uniforms, condition, wishes):
            parts.append(
                (state.rows, *self._complete(state, uniforms[state.rows], _rows(condition, state.rows)))
            )
        order = torch.cat([rows for rows, *_ in parts]).argsort()
        return Draws(
            orbits=OrbitBatch.concatenate([part for _, part, _, _ in parts]).select(order),
            log_prob=torch.cat([log for _, _, log, _ in parts])[order],
            closest=torch.cat([near for *_, near in parts])[order],
        )

    def _skeletons(self, uniforms: Tensor, condition: Tensor | None, wishes: Wishes) -> list[_State]:
        """Space groups, letters and elements; rows that end at about the same length together."""
        model, device = self.model, uniforms.device
        num = len(uniforms)
        cache = KeyValueCache()
        told = 0.0 if condition is None else condition.unsqueeze(1)
        all_rows = torch.ones(num, 1, dtype=torch.bool, device=device)
        start = (model.start + model.stage.weight[0]).expand(num, 1, -1) + told
        hidden = model.trunk(start, all_rows, cache)[:, 0]
        logits = model.group_head(hidden).float()
        logits[:, 0] = float("-inf")
        if wishes.space_group is not None:
            asked = wishes.space_group.unsqueeze(-1)
            others = torch.arange(logits.shape[1], device=device) != asked
            logits = logits.masked_fill(others & (asked > 0), float("-inf"))
        group, log = choose(
            logits, uniforms[:, 0], temperature=self.settings.temperature, top_p=self.settings.top_p
        )
        token = model.groups(group).unsqueeze(1) + model.stage.weight[0] + told
        state = _State(
            rows=torch.arange(num, device=device),
            group=group,
            log_prob=log,
            cache=cache,
            hidden=model.trunk(token, all_rows, cache)[:, 0],
            ended=torch.zeros(num, dtype=torch.bool, device=device),
            used_atoms=torch.zeros(num, dtype=torch.long, device=device),
            present=torch.zeros(num, NUM_SYMBOLS, dtype=torch.bool, device=device),
        )
        finished: list[_State] = []
        for step in range(model.limits.max_orbits + 1):
            self._letter_and_element(
                state, uniforms[state.rows], _rows(condition, state.rows), wishes.select(state.rows), step
            )
            num_ended = int(state.ended.sum())
            if num_ended == len(state.rows):
                finished.append(state)
                break
            if num_ended >= max(8, len(state.rows) // 3):
                finished.append(state.select(torch.nonzero(state.ended).squeeze(-1)))
                state = state.select(torch.nonzero(~state.ended).squeeze(-1))
        return finished

    def _letter_and_element(
        self, state: _State, uniforms: Tensor, condition: Tensor | None, wishes: Wishes, step: int
    ) -> None:
        model, settings = self.model, self.settings
        tables = letter_tables(uniforms.device)
        is_first = torch.full_like(state.ended, step == 0)
        last = state.position[-1] if state.position else torch.zeros_like(state.group)
        last_element = state.element[-1] if state.element else torch.zeros_like(state.group)
        mask = model.letter_mask(state.group, last, state.used_atoms, is_first, wishes.max_atoms)
        if step == model.limits.max_orbits:
            mask = mask & (torch.arange(STOP + 1, device=mask.device) == STOP)
        mask = torch.where(
            state.ended.unsqueeze(-1), torch.arange(STOP + 1, device=mask.device) == STOP, mask
        )
        logits = model.letter_logits(state.hidden, state.group).masked_fill(~mask, float("-inf"))
        letter, log = choose(
            logits, uniforms[:, 1 + 2 * step], temperature=settings.temperature, top_p=settings.top_p
        )
        state.log_prob = state.log_prob + torch.where(state.ended, 0.0, log)
        state.ended = state.ended | (letter == STOP)
        if bool(state.ended.all()):
            return
        position = torch.where(state.ended, 0, tables.first[state.group] + letter)
        same = (position == last) & ~is_first
        allowed = model.element_mask(last_element, same, state.present, settings.max_elements)
        if wishes.allowed is not None:
            allowed = allowed & wishes.allowed
        choices = model.element_logits(state.hidden, position).masked_fill(~allowed, float("-inf"))
        element, log = choose(
            choices, uniforms[:, 2 + 2 * step], temperature=settings.temperature, top_p=settings.top_p
        )
        element = torch.where(state.ended, 0, element)
        state.log_prob = state.log_prob + torch.where(state.ended, 0.0, log)
        state.position.append(position)
        state.element.append(element)
        state.used_atoms = state.used_atoms + torch.where(state.ended, 0, tables.num_images[position])
        is_new = torch.nn.functional.one_hot(element, NUM_SYMBOLS).bool() & ~state.ended.unsqueeze(-1)
        state.present = state.present | is_new
        told = 0.0 if condition is None else condition
        token = (
            model.orbit_tokens(position, element) + model.ordinal.weight[step] + model.stage.weight[0] + told
        )
        state.hidden = model.trunk(token.unsqueeze(1), ~state.ended.unsqueeze(-1), state.cache)[:, 0]

    def _complete(
        self, state: _State, uniforms: Tensor, condition: Tensor | None
    ) -> tuple[OrbitBatch, Tensor, Tensor]:
        """Cells and coordinates of skeletons."""
        model = self.model
        tables = position_tensors(uniforms.device)
        position, element = torch.stack(state.position, dim=1), torch.stack(state.element, dim=1)
        valid = element > 0
        num_atoms = torch.where(valid, tables.num_images[position], 0).sum(-1)
        baseline = model.volume_baseline(position, element, valid)
        told = torch.zeros(1, device=uniforms.device) if condition is None else condition
        one = torch.ones(len(valid), 1, dtype=torch.bool, device=valid.device)
        asking = model.stage.weight[1] + baseline[:, None] * 0.2 + told
        hidden = model.trunk(asking.unsqueeze(1), one, state.cache)[:, 0]
        free = free_components(state.group)
        normalised, log = self._cell(hidden, free, uniforms)
        cell = model.real_cell(normalised, baseline)
        cell = torch.where(free, cell, 0.0)
        coords = torch.zeros(*position.shape, 3, device=uniforms.device)
        padded = PaddedOrbits(
            space_group=state.group, cell=cell, position=position, element=element, coords=coords, valid=valid
        )
        batch = _packed(padded)
        lattices = batch.primitive_lattices()
        reduction = torch.from_numpy(minkowski_reductions(lattices.cpu().numpy())).to(coords.device)
        placed = place_crystals(batch, reduction)
        cell_token = model.cell_token(normalised, free, cell, num_atoms) + told
        where_log, closest = self._places(padded, placed, state.cache, cell_token, uniforms)
        log = state.log_prob + log - torch.where(free, model.cell_std.log(), 0.0).sum(-1) + where_log
        return _packed(padded), log, closest

    def _cell(self, hidden: Tensor, free: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        offset = 1 + 2 * (model.limits.max_orbits + 1)
        values, total = (
            torch.zeros(len(hidden), NUM_COMPONENTS, device=hidden.device),
            hidden.new_zeros(len(hidden)),
        )
        root = self.settings.temperature**0.5
        for component in range(NUM_COMPONENTS):
            weights, means, widths = model.cell_head.parameters_of(hidden, values, component)
            index, _ = choose(
                weights, uniforms[:, offset + 2 * component], temperature=self.settings.temperature
            )
            pick = index.unsqueeze(-1)
            normal = (
                torch.erfinv(
                    (2 * uniforms[:, offset + 2 * component + 1].double() - 1).clamp(-1 + 1e-7, 1 - 1e-7)
                )
                * 2**0.5
            )
            value = (
                means.gather(1, pick).squeeze(-1)
                + widths.gather(1, pick).squeeze(-1).exp() * root * normal.float()
            )
            gap = (value.unsqueeze(-1) - means) / widths.exp()
            density = torch.logsumexp(weights - 0.5 * gap**2 - widths - 0.9189385, dim=-1)
            values[:, component] = torch.where(free[:, component], value, 0.0)
            total = total + torch.where(free[:, component], density, 0.0)
        return values, total

    def _places(
        self,
        padded: PaddedOrbits,
        placed: PlacedCrystals,
        cache: KeyValueCache,
        cell_token: Tensor,
        uniforms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        tables = position_tensors(uniforms.device)
        skeleton = model.orbit_tokens(padded.position, padded.element)
        images = torch.where(padded.valid, tables.num_images[padded.position], 0)
        first_atom = images.cumsum(1) - images
        before = torch.zeros_like(skeleton[:, 0])
        total = torch.zeros(len(skeleton), device=uniforms.device)
        closest = torch.full_like(total, 10.0)
        offset = 1 + 2 * (model.limits.max_orbits + 1) + 2 * NUM_COMPONENTS
        fixed = model.fixed_coordinates(padded.position)
        wide = placed.is_wide
        for slot in range(padded.position.shape[1]):
            valid = padded.valid[:, slot]
            token = (
                skeleton[:, slot] + before + cell_token + model.ordinal.weight[slot] + model.stage.weight[2]
            )
            hidden = model.trunk(token.unsqueeze(1), valid.unsqueeze(-1), cache)[:, 0]
            num_free = torch.where(valid, tables.num_free[padded.position[:, slot]], 0)
            crystal = torch.nonzero(num_free > 0).squeeze(-1)
            if len(crystal):
                numbers = uniforms[crystal, offset + 7 * slot : offset + 7 * slot + 7]
                rows = PlaceRows(
                    crystal=crystal,
                    orbit=torch.full_like(crystal, slot),
                    position=padded.position[crystal, slot],
                    radius=covalent_radii_tensor().to(hidden.device)[padded.element[crystal, slot]],
                    hidden=hidden[crystal],
                    coarse=torch.zeros(len(crystal), 3, dtype=torch.long, device=hidden.device),
                    fine=torch.zeros(len(crystal), 3, dtype=torch.long, device=hidden.device),
                    fixed=fixed[crystal, slot],
                )
                log = self._place(rows, placed, skeleton, first_atom[crystal, slot], wide, numbers)
                total[crystal] += log
                exact = bin_centre(rows.coarse, rows.fine) + (numbers[:, 4:] - 0.5) / NUM_BINS
                used = torch.arange(3, device=exact.device) < num_free[crystal].unsqueeze(-1)
                exact = torch.where(used & ~rows.fixed, torch.remainder(exact, 1.0), 0.0)
                padded.coords[crystal, slot] = exact
            self._put_atoms(padded, placed, slot, first_atom[:, slot])
            near, environment = model.environment_of(padded, placed, slot)
            closest = torch.where(valid, torch.minimum(closest, near), closest)
            where = model.placed_token(
                padded.coords[:, slot], tables.num_free[padded.position[:, slot]], environment
            )
            before = where + skeleton[:, slot]
        return total, closest

    def _place(
        self,
        rows: PlaceRows,
        placed: PlacedCrystals,
        skeleton: Tensor,
        used: Tensor,
        wide: Tensor,
        numbers: Tensor,
    ) -> Tensor:
        """Draw coarse cells and fine bins into the rows; their log-probabilities."""
        model, settings = self.model, self.settings
        tables = position_tensors(numbers.device)
        own = tables.num_images[rows.position] - 1
        is_wide = wide[rows.crystal]
        total = torch.zeros(len(rows.crystal), device=numbers.device)
        cells = CandidateCells.of(rows.position, rows.fixed)
        for members in buckets(cells.count, used + own, is_wide, model.max_places_cost):
            index, padding = cells.all_of(members)
            candidates = cells.cells[index]
            part = rows.select(members)
            scores = model.coarse_scores(
                part,
                candidates,
                placed,
                skeleton,
                int(used[members].max()),
                int(own[members].max()),
                bool(is_wide[members[0]]),
            )
            chosen, log = choose(
                scores + padding,
                numbers[members, 0],
                temperature=settings.temperature_coords,
                top_p=settings.top_p,
            )
            rows.coarse[members] = candidates[torch.arange(len(members), device=index.device), chosen]
            total[members] += log
        num_free = tables.num_free[rows.position]
        for axis in range(3):
            moving = torch.nonzero((num_free > axis) & ~rows.fixed[:, axis]).squeeze(-1)
            is_last = (
                (num_free == axis + 1)
                | ((num_free == axis + 2) & rows.fixed[:, min(axis + 1, 2)])
                | ((num_free == 3) & (axis == 0) & rows.fixed[:, 1] & rows.fixed[:, 2])
            )
            for members in buckets(
                torch.full_like(moving, NUM_FINE),
                (used + own)[moving],
                is_wide[moving],
                model.max_places_cost,
            ):
                index = moving[members]
                part = rows.select(index)
                scores, near = model.fine_scores(
                    part,
                    torch.full_like(index, axis),
                    placed,
                    skeleton,
                    int(used[index].max()),
                    int(own[index].max()),
                    bool(is_wide[index[0]]),
                )
                if settings.min_distance > 0:
                    clash = (near < settings.min_distance) & is_last[index].unsqueeze(-1)
                    scores = scores.masked_fill(clash & ~clash.all(-1, keepdim=True), float("-inf"))
                chosen, log = choose(
                    scores,
                    numbers[index, 1 + axis],
                    temperature=settings.temperature_coords,
                    top_p=settings.top_p,
                )
                rows.fine[index, axis] = chosen
                total[index] += log
        return total

    def _put_atoms(self, padded: PaddedOrbits, placed: PlacedCrystals, slot: int, first_atom: Tensor) -> None:
        """Write the atoms of an orbit into the placed crystals."""
        tables = position_tensors(first_atom.device)
        position = padded.position[:, slot]
        size = int(tables.num_images[position].max())
        maps = tables.image_matrix[position, :size]
        points = (
            torch.einsum("bmij,bj->bmi", maps, padded.coords[:, slot].double())
            + tables.image_offset[position, :size]
        )
        points = points.to(placed.coords.dtype) @ placed.to_reduced
        image = torch.arange(size, device=position.device)
        exists = (image < tables.num_images[position].unsqueeze(-1)) & padded.valid[:, slot : slot + 1]
        crystal, which = torch.nonzero(exists, as_tuple=True)
        placed.coords[crystal, first_atom[crystal] + which] = points[crystal, which]


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


def _packed(padded: PaddedOrbits) -> OrbitBatch:
    return OrbitBatch(
        space_group=padded.space_group,
        cell=padded.cell,
        num_orbits=padded.valid.sum(-1),
        position=padded.position[padded.valid],
        element=padded.element[padded.valid],
        coords=padded.coords[padded.valid],
    )
