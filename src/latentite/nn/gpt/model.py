"""`CrystalGPT`: the probability of a crystal, symbol by symbol.

log p = log p(group) + sum over orbits of log p(letter) + log p(element), log p(stop), log p(cell), and for each orbit
the log p of its free coordinates. Tokens: a start, the group, one for each orbit (letter and element), one at which the
cell is told, and one for each orbit that is placed. The cell is drawn when the skeleton is known, and coordinates when
skeleton and cell are: so they see distances.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.cell import CellHead, LatticeDensity
from latentite.nn.gpt.cell_densities import CellFlow, JointMixtureHead
from latentite.nn.gpt.circular import CircularHead, CoordDensity
from latentite.nn.gpt.inputs import PaddedOrbits
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.placement import LAST, NUM_BASIS, PlacedCrystals, environment_distances, radial_basis
from latentite.nn.gpt.places import PlaceHead
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.nn.gpt.skeleton_network import SkeletonNetwork
from latentite.nn.gpt.tokens import letter_tables
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.orbits import position_tensors

NUM_FREQUENCIES = 8


class CrystalGPT(SkeletonNetwork):
    """The network: skeletons, cells and places."""

    element_volume: Tensor
    cell_mean: Tensor
    cell_std: Tensor
    cell_head: CellHead | JointMixtureHead | CellFlow
    places: PlaceHead
    """Only where coordinates are in bins."""
    circular: CircularHead | None
    """Only where they are not."""

    def __init__(
        self,
        size: GPTSize,
        limits: GPTLimits,
        *,
        lattice_density: LatticeDensity = LatticeDensity.AR,
        coord_density: CoordDensity = CoordDensity.BINS,
    ) -> None:
        super().__init__(size, limits)
        width = size.d_model
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
        place = self.ordinals(num_slots)
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

        group, letters, elements = self.skeleton_log_prob(orbits, hidden[:, : num_slots + 2], images)
        # Half precision has two digits of a mean, whose widths are down to 0.004.
        with torch.autocast(hidden.device.type, enabled=False):
            density = self.cell_head(hidden[:, num_slots + 2].float(), normalised.float(), free)
        # The density is that of the components themselves.
        density = density - torch.where(free, self.cell_std.log(), 0.0)
        coords = self._coordinates(orbits, placed, hidden[:, num_slots + 3 :], skeleton, smoothing)
        return LogProbability(
            group_choice=group,
            letter_choices=letters,
            element_choices=elements,
            cell_components=density,
            place_choices=coords,
        )

    def _coordinates(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, hidden: Tensor, skeleton: Tensor, smoothing: float
    ) -> Tensor:
        fixed = self.fixed_coordinates(orbits.position)
        if self.circular is None:
            return self.places(orbits, placed, hidden, skeleton, fixed, smoothing=smoothing)
        num_free = torch.where(
            orbits.valid, position_tensors(hidden.device).num_free[orbits.position], 0
        ).unsqueeze(-1)
        moving = (torch.arange(3, device=hidden.device) < num_free) & ~fixed
        return self.circular(hidden, orbits.coords, moving)

    # Places

    def _environment(self, scaled: Tensor, element: Tensor, placed: PlacedCrystals) -> Tensor:
        basis = radial_basis(scaled) * (scaled < LAST).unsqueeze(-1)
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
            scaled = environment_distances(orbits.position, orbits.element, orbits.coords, slots, placed)
        return self._environment(scaled, orbits.element, placed)

    def environment_of(
        self, orbits: PaddedOrbits, placed: PlacedCrystals, slot: int
    ) -> tuple[Float[Tensor, " crystal"], Float[Tensor, "crystal feature"]]:
        """Smallest scaled distance of one orbit of each crystal to those up to itself, and what surrounds it."""
        index = slice(slot, slot + 1)
        slots = torch.tensor([slot], device=placed.orbit.device)
        with torch.autocast(slots.device.type, enabled=False):
            scaled = environment_distances(
                orbits.position[:, index], orbits.element[:, index], orbits.coords[:, index], slots, placed
            )
        return scaled.amin(-1)[:, 0], self._environment(scaled, orbits.element, placed)[:, 0]

    def fixed_coordinates(self, position: Int[Tensor, "crystal orbit"]) -> Bool[Tensor, "crystal orbit 3"]:
        """Coordinates that are 0 by the choice of the origin: those of the first orbit along polar axes."""
        polar = letter_tables(position.device).is_polar[position]
        first = torch.zeros_like(polar)
        first[:, 0] = polar[:, 0]
        return first
