"""Crystals drawn from a `CrystalGPT`, many at a time, each from random numbers of its own: `Sampler`.

First skeletons (`latentite.nn.gpt.skeletons`), then cells, then orbit after orbit its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.choices import DrawSettings, choose
from latentite.nn.gpt.grid import NUM_BINS, NUM_FINE, bin_centre
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.placement import FAR, PlacedCrystals
from latentite.nn.gpt.places import COARSE_FLOOR, FINE_FLOOR, Surroundings, without_clashes
from latentite.nn.gpt.rows import CandidateCells, PlaceRows, buckets
from latentite.nn.gpt.skeletons import Skeletons, draw_skeletons
from latentite.nn.gpt.tokens import covalent_radii_tensor
from latentite.nn.gpt.wishes import Wish, Wishes
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.orbits import OrbitBatch, position_tensors

DITHER = 0.998
"""Share of a bin over which coordinates are spread: rounding must not lead into the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Crystals that were drawn, in the order of the rows."""

    orbits: OrbitBatch
    log_prob: Float[Tensor, " crystal"]
    """Of what was drawn, under the distributions that it was drawn from; nats."""
    closest: Float[Tensor, " crystal"]
    """Smallest distance over summed covalent radii that placing saw."""


def num_uniforms(max_orbits: int) -> int:
    """Random numbers that a crystal may need."""
    return _first_of_cell(max_orbits) + 2 * NUM_COMPONENTS + 7 * max_orbits


def _first_of_cell(max_orbits: int) -> int:
    """Numbers before those of the cell: of the group, and of letters and elements with the end."""
    return 1 + 2 * (max_orbits + 1)


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
        absent: Float[Tensor, " channel"] | None = None,
        wishes: Wishes | None = None,
    ) -> Draws:
        """Crystals, one for each row of random numbers.

        Args:
            uniforms: `num_uniforms` for each crystal, in [0, 1), float64.
            condition: what each is told; None for a model without conditions.
            absent: what stands for no condition; given for guidance.
            wishes: what is asked of each.
        """
        parts = []
        for state in self._skeletons(uniforms, condition, absent, wishes):
            parts.append((state.rows, *self._complete(state, uniforms[state.rows])))
        order = torch.cat([rows for rows, *_ in parts]).argsort()
        return Draws(
            orbits=OrbitBatch.concatenate([part for _, part, _, _ in parts]).select(order),
            log_prob=torch.cat([log for _, _, log, _ in parts])[order],
            closest=torch.cat([near for *_, near in parts])[order],
        )

    @torch.no_grad()
    def sizes(
        self,
        uniforms: Float[Tensor, "crystal number"],
        *,
        condition: Float[Tensor, "crystal channel"] | None = None,
        absent: Float[Tensor, " channel"] | None = None,
        wishes: Wishes | None = None,
    ) -> tuple[Int[Tensor, " crystal"], Int[Tensor, " crystal"]]:
        """Space groups and numbers of atoms of the crystals that `draw` gives for the same arguments."""
        group = torch.zeros(len(uniforms), dtype=torch.long, device=uniforms.device)
        num_atoms = torch.zeros_like(group)
        for state in self._skeletons(uniforms, condition, absent, wishes):
            group[state.rows], num_atoms[state.rows] = state.group, state.used_atoms
        return group, num_atoms

    @torch.no_grad()
    def compositions(
        self,
        uniforms: Float[Tensor, "crystal number"],
        *,
        condition: Float[Tensor, "crystal channel"] | None = None,
        absent: Float[Tensor, " channel"] | None = None,
        wishes: Wishes | None = None,
    ) -> Int[Tensor, "crystal symbol"]:
        """Atoms of each element in the primitive cells of the crystals that `draw` gives for the same arguments."""
        counts = torch.zeros(len(uniforms), NUM_SYMBOLS, dtype=torch.long, device=uniforms.device)
        tables = position_tensors(uniforms.device)
        for state in self._skeletons(uniforms, condition, absent, wishes):
            images = torch.where(state.element > 0, tables.num_images[state.position], 0)
            counts[state.rows] = counts[state.rows].scatter_add(1, state.element, images)
        return counts

    def _skeletons(
        self, uniforms: Tensor, condition: Tensor | None, absent: Tensor | None, wishes: Wishes | None
    ) -> Iterator[Skeletons]:
        silent = self.model.start.new_zeros(1, len(self.model.start))
        told = [silent if condition is None else condition]
        if condition is not None and absent is not None and self.settings.guidance != 1.0:
            told.append(absent.unsqueeze(0))
        wishes = Wishes.of([Wish()] * len(uniforms)) if wishes is None else wishes
        return draw_skeletons(self.model, self.settings, uniforms, told, wishes)

    def _complete(self, state: Skeletons, uniforms: Tensor) -> tuple[OrbitBatch, Tensor, Tensor]:
        """Cells and coordinates of skeletons, their log-probabilities, and closest distances."""
        model = self.model
        position, element, valid = state.position, state.element, state.element > 0
        baseline = model.volume_baseline(position, element, valid)
        images = torch.where(valid, position_tensors(element.device).num_images[position], 0)
        question = model.cell_question(state.group, model.orbit_tokens(position, element), images, baseline)
        state.step(model, question, torch.ones_like(valid[:, 0]))
        free = free_components(state.group)
        cell, normalised, log = self._cells(state, free, baseline, uniforms)
        padded = PaddedOrbits(
            space_group=state.group,
            cell=cell,
            position=position,
            element=element,
            coords=torch.zeros(*position.shape, 3, device=uniforms.device),
            valid=valid,
        )
        batch = packed(padded)
        reduction = torch.from_numpy(minkowski_reductions(batch.primitive_lattices().cpu().numpy()))
        placing = _Placing.of(
            model, self.settings, padded, place_crystals(batch, reduction.to(cell.device)), reduction
        )
        cell_token = model.cell_token(normalised, free, cell, state.used_atoms)
        # Guidance is of choices that are categories: places follow from what is told.
        del state.branches[1:]
        first = _first_of_cell(model.limits.max_orbits) + 2 * NUM_COMPONENTS
        where = placing.run(state, cell_token, uniforms[:, first:])
        return packed(padded), state.log_prob + log + where, placing.closest

    def _cells(
        self, state: Skeletons, free: Tensor, baseline: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, the same in normalised units, and their log-densities."""
        model, settings = self.model, self.settings
        first = _first_of_cell(model.limits.max_orbits)
        distribution = model.cell_head.distribution(
            state.branches[0].hidden,
            lambda head: state.logits(head, settings.guidance),
            settings.temperature,
        )
        # Components that the family fixes are 0, and told as training tells them.
        fixed = model.normalised_cell(torch.zeros(len(free), NUM_COMPONENTS, device=free.device), baseline)
        values = distribution.draw(uniforms[:, first : first + 2 * NUM_COMPONENTS], free, fixed)
        cell = torch.where(free, model.real_cell(values, baseline), 0.0)
        # The density of the cell that is kept: components are narrow, and rounding moves them.
        values = model.normalised_cell(cell, baseline)
        density = distribution.log_density(values, free) - torch.where(free, model.cell_std.log(), 0.0)
        return cell, values, density.sum(-1)


@dataclass(kw_only=True, slots=True)
class _Placing:
    """Orbits that are placed one after the other."""

    model: CrystalGPT
    settings: DrawSettings
    padded: PaddedOrbits
    """Coordinates are written into it."""
    placed: PlacedCrystals
    """So are atoms."""
    to_primitive: Float[Tensor, "crystal 3 3"]
    """Conventional fractional coordinates to primitive ones, float64."""
    to_reduced: Float[Tensor, "crystal 3 3"]
    """Primitive fractional coordinates to those of the reduced cell, float64."""
    skeleton: Float[Tensor, "crystal orbit channel"]
    first_atom: Int[Tensor, "crystal orbit"]
    is_wide: Tensor
    closest: Float[Tensor, " crystal"]

    @staticmethod
    def of(
        model: CrystalGPT,
        settings: DrawSettings,
        padded: PaddedOrbits,
        placed: PlacedCrystals,
        reduction: Int[Tensor, "crystal 3 3"],
    ) -> _Placing:
        """At the beginning, no orbit is placed."""
        tables = position_tensors(padded.position.device)
        images = torch.where(padded.valid, tables.num_images[padded.position], 0)
        return _Placing(
            model=model,
            settings=settings,
            padded=padded,
            placed=placed,
            to_primitive=tables.to_primitive[padded.space_group],
            to_reduced=torch.linalg.inv(reduction.double()).to(padded.cell.device),
            skeleton=model.orbit_tokens(padded.position, padded.element),
            first_atom=images.cumsum(1) - images,
            is_wide=placed.is_wide,
            closest=torch.full_like(padded.cell[:, 0], FAR),
        )

    def run(self, state: Skeletons, cell_token: Tensor, uniforms: Tensor) -> Float[Tensor, " crystal"]:
        """Place all orbits; log-probabilities of coordinates.

        Args:
            state: skeletons, whose cells have been drawn.
            cell_token: embeddings of cells.
            uniforms: seven for each orbit.
        """
        model, padded = self.model, self.padded
        tables = position_tensors(uniforms.device)
        before = torch.zeros_like(cell_token)
        total = torch.zeros_like(self.closest)
        fixed = model.fixed_coordinates(padded.position)
        for slot in range(padded.position.shape[1]):
            valid, position = padded.valid[:, slot], padded.position[:, slot]
            token = self.skeleton[:, slot] + before + cell_token + model.ordinal.weight[slot]
            state.step(model, token + model.stage.weight[2], valid)
            num_free = torch.where(valid, tables.num_free[position], 0)
            crystal = torch.nonzero(num_free > 0).squeeze(-1)
            if len(crystal):
                numbers = uniforms[crystal, 7 * slot : 7 * slot + 7]
                total[crystal] += self._place(
                    slot, crystal, state.branches[0].hidden, fixed[:, slot], numbers
                )
            self._put_atoms(slot)
            near, environment = model.environment_of(padded, self.placed, slot)
            self.closest = torch.where(valid, torch.minimum(self.closest, near), self.closest)
            where = model.placed_token(padded.coords[:, slot], tables.num_free[position], environment)
            before = where + self.skeleton[:, slot]
        return total

    def _place(
        self, slot: int, crystal: Tensor, hidden: Tensor, fixed: Tensor, numbers: Tensor
    ) -> Float[Tensor, " place"]:
        """Draw the places of an orbit of some crystals into `padded`; their log-probabilities."""
        padded = self.padded
        num_free = position_tensors(hidden.device).num_free[padded.position[crystal, slot]]
        moving = (torch.arange(3, device=hidden.device) < num_free.unsqueeze(-1)) & ~fixed[crystal]
        if self.model.circular is not None:
            padded.coords[crystal, slot], total = self.model.circular.draw(
                hidden[crystal],
                moving,
                numbers[:, :6],
                temperature=self.settings.temperature_coords,
                top_p=self.settings.top_p,
            )
            return total
        zeros = torch.zeros(len(crystal), 3, dtype=torch.long, device=hidden.device)
        rows = PlaceRows(
            crystal=crystal,
            orbit=torch.full_like(crystal, slot),
            position=padded.position[crystal, slot],
            radius=covalent_radii_tensor().to(hidden.device)[padded.element[crystal, slot]],
            hidden=hidden[crystal],
            coarse=zeros,
            fine=zeros.clone(),
            fixed=fixed[crystal],
        )
        used = self.first_atom[crystal, slot]
        total = self._draw_cells(rows, used, numbers[:, 0])
        for axis in range(3):
            index = torch.nonzero(moving[:, axis]).squeeze(-1)
            if len(index):
                total += self._draw_bins(rows, axis, index, used, numbers[:, 1 + axis])
        exact = bin_centre(rows.coarse, rows.fine) + (numbers[:, 4:] - 0.5) * DITHER / NUM_BINS
        padded.coords[crystal, slot] = torch.where(moving, torch.remainder(exact, 1.0), 0.0).float()
        return total

    def _draw_cells(self, rows: PlaceRows, used: Tensor, numbers: Tensor) -> Float[Tensor, " place"]:
        """Draw coarse cells into the rows."""
        model, settings = self.model, self.settings
        own = position_tensors(numbers.device).num_images[rows.position] - 1
        is_wide = self.is_wide[rows.crystal]
        total = torch.zeros(len(rows.crystal), device=numbers.device)
        cells = CandidateCells.of(rows.position, rows.fixed)
        for members in buckets(cells.count, used + own, is_wide, model.places.max_places_cost):
            index, padding = cells.all_of(members)
            candidates = cells.cells[index]
            around = self._around(used[members], own[members], is_wide[members])
            scores, near = model.places.coarse_scores(rows.select(members), candidates, around)
            chosen, log = choose(
                without_clashes(scores + padding, near, COARSE_FLOOR),
                numbers[members],
                temperature=settings.temperature_coords,
                top_p=settings.top_p,
            )
            rows.coarse[members] = candidates[torch.arange(len(members), device=index.device), chosen]
            total[members] += log
        return total

    def _draw_bins(
        self, rows: PlaceRows, axis: int, moving: Tensor, used: Tensor, numbers: Tensor
    ) -> Float[Tensor, " place"]:
        """Draw the fine bins of one coordinate into the rows."""
        model, settings = self.model, self.settings
        own = position_tensors(numbers.device).num_images[rows.position] - 1
        is_wide = self.is_wide[rows.crystal]
        total = torch.zeros(len(rows.crystal), device=numbers.device)
        counts = torch.full_like(moving, NUM_FINE)
        for members in buckets(counts, (used + own)[moving], is_wide[moving], model.places.max_places_cost):
            index = moving[members]
            around = self._around(used[index], own[index], is_wide[index])
            scores, near = model.places.fine_scores(rows.select(index), torch.full_like(index, axis), around)
            chosen, log = choose(
                without_clashes(scores, near, FINE_FLOOR),
                numbers[index],
                temperature=settings.temperature_coords,
                top_p=settings.top_p,
            )
            rows.fine[index, axis] = chosen
            total[index] += log
        return total

    def _around(self, used: Tensor, own: Tensor, is_wide: Tensor) -> Surroundings:
        """Surroundings of some places, whose cells are all wide or all not."""
        return Surroundings(
            placed=self.placed,
            skeleton=self.skeleton,
            num_atoms=int(used.max()),
            num_own=int(own.max()),
            is_wide=bool(is_wide[0]),
        )

    def _put_atoms(self, slot: int) -> None:
        """Write the atoms of an orbit into the placed crystals."""
        padded, placed = self.padded, self.placed
        tables = position_tensors(padded.cell.device)
        position = padded.position[:, slot]
        size = int(tables.num_images[position].max())
        maps = tables.image_matrix[position, :size]
        points = torch.einsum("bmij,bj->bmi", maps, padded.coords[:, slot].double())
        points = (points + tables.image_offset[position, :size]) @ self.to_primitive
        points = (points - points.floor()) @ self.to_reduced
        image = torch.arange(size, device=position.device)
        exists = (image < tables.num_images[position].unsqueeze(-1)) & padded.valid[:, slot : slot + 1]
        crystal, which = torch.nonzero(exists, as_tuple=True)
        atom = self.first_atom[crystal, slot] + which
        placed.coords[crystal, atom] = points[crystal, which].to(placed.coords.dtype)


def packed(padded: PaddedOrbits) -> OrbitBatch:
    """Orbits one after the other."""
    return OrbitBatch(
        space_group=padded.space_group,
        cell=padded.cell,
        num_orbits=padded.valid.sum(-1),
        position=padded.position[padded.valid],
        element=padded.element[padded.valid],
        coords=padded.coords[padded.valid],
    )
