"""FIRE steps for many crystals at once, each with its own clock.

FIRE is Bitzek et al. 2006, PRL 97, 170201, with the constants of ASE and its bound on the length of a step. The cell
moves by strains: a step multiplies it with exp(strain), and the force on the strain is -volume * stress, divided by
the number of atoms so that one time step suits cell and atoms (as in ASE's `FrechetCellFilter`, of which this is the
form whose reference is always the present cell).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.energy.potential import EnergyForces
from latentite.nn.segment import segment_sum

START_STEP = 0.1
MAX_STEP = 1.0
START_MIXING = 0.1
STEPS_BEFORE_GROWTH = 5
GROWTH, SHRINKAGE, MIXING_DECAY = 1.1, 0.5, 0.99


@dataclass(kw_only=True, slots=True)
class FireState:
    """State of the crystals that move. Fields of atoms end in `_atom`, so that they can be taken apart with them."""

    crystals: CrystalBatch
    position: Tensor
    """Of each crystal in the input."""
    velocity_atom: Tensor
    velocity_cell: Tensor
    time_step: Tensor
    mixing: Tensor
    uphill_free: Tensor
    """Steps since the last one uphill."""
    steps: Tensor
    best_energy: Tensor
    best_excess: Tensor
    """Smallest multiple of the forces and stress that convergence asks for."""
    progress: Tensor
    """Step of the last progress."""
    start_volume: Tensor

    @staticmethod
    def start(crystals: CrystalBatch, position: Tensor) -> FireState:
        """Crystals at rest, before their first evaluation.

        Args:
            crystals: in float64.
            position: of each in the input.
        """
        count = len(crystals)

        def filled(value: float) -> Tensor:
            return torch.full((count,), value, dtype=torch.float64)

        return FireState(
            crystals=crystals,
            position=position,
            velocity_atom=torch.zeros_like(crystals.frac_coords),
            velocity_cell=torch.zeros_like(crystals.lattice),
            time_step=filled(START_STEP),
            mixing=filled(START_MIXING),
            uphill_free=torch.zeros(count, dtype=torch.long),
            steps=torch.zeros(count, dtype=torch.long),
            best_energy=filled(torch.inf),
            best_excess=filled(torch.inf),
            progress=torch.zeros(count, dtype=torch.long),
            start_volume=crystals.volume,
        )

    def select(self, index: Tensor) -> FireState:
        """The crystals at these positions of the flight."""
        atoms = self.crystals.atoms_of(index)
        tensors = {
            item.name: getattr(self, item.name)[atoms if item.name.endswith("_atom") else index]
            for item in fields(self)
            if item.name != "crystals"
        }
        return FireState(crystals=self.crystals.select(index), **tensors)

    def joined(self, other: FireState) -> FireState:
        """These crystals and then those of the other."""
        tensors = {
            item.name: torch.cat([getattr(self, item.name), getattr(other, item.name)])
            for item in fields(self)
            if item.name != "crystals"
        }
        return FireState(crystals=CrystalBatch.concatenate([self.crystals, other.crystals]), **tensors)


def fire_step(state: FireState, result: EnergyForces, *, max_move: float, moves_cell: bool) -> None:
    """Velocities, clocks and geometry of all crystals in flight, one step on (in place).

    Args:
        state: after the evaluation that `result` is of.
        result: finite numbers only.
        max_move: Å; longest step of a crystal, over all its atoms and the cell together.
        moves_cell: whether the cell moves too.
    """
    crystals = state.crystals
    index, count = crystals.crystal_index, len(crystals)
    forces = result.forces.double()
    sizes = crystals.num_atoms.double()[:, None, None]
    cell_forces = -crystals.volume[:, None, None] * result.stress.double() / sizes
    if not moves_cell:
        cell_forces = torch.zeros_like(cell_forces)

    def dot(atoms: Tensor, other_atoms: Tensor, cells: Tensor, other_cells: Tensor) -> Tensor:
        by_atoms = segment_sum((atoms * other_atoms).sum(-1), index, count)
        return by_atoms + (cells * other_cells).sum((1, 2))

    velocity, cell_velocity = state.velocity_atom, state.velocity_cell
    downhill = dot(forces, velocity, cell_forces, cell_velocity) > 0.0
    force_norm = dot(forces, forces, cell_forces, cell_forces).sqrt().clamp(min=1e-30)
    speed = dot(velocity, velocity, cell_velocity, cell_velocity).sqrt()
    turn = state.mixing * speed / force_norm
    keep = torch.where(downhill, 1.0 - state.mixing, 0.0)  # uphill: stop
    turn = torch.where(downhill, turn, 0.0)
    velocity = keep[index, None] * velocity + turn[index, None] * forces
    cell_velocity = keep[:, None, None] * cell_velocity + turn[:, None, None] * cell_forces

    grows = downhill & (state.uphill_free > STEPS_BEFORE_GROWTH)
    is_first = state.steps == 1  # at rest there is no uphill
    grown = (state.time_step * GROWTH).clamp(max=MAX_STEP)
    shrunk = torch.where(is_first, state.time_step, state.time_step * SHRINKAGE)
    state.time_step = torch.where(downhill, torch.where(grows, grown, state.time_step), shrunk)
    decayed = torch.where(grows, state.mixing * MIXING_DECAY, state.mixing)
    state.mixing = torch.where(downhill, decayed, START_MIXING)
    state.uphill_free = torch.where(downhill, state.uphill_free + 1, 0)

    velocity = velocity + state.time_step[index, None] * forces
    cell_velocity = cell_velocity + state.time_step[:, None, None] * cell_forces
    move = state.time_step[index, None] * velocity
    cell_move = state.time_step[:, None, None] * cell_velocity
    length = dot(move, move, cell_move, cell_move).sqrt()
    scale = (max_move / length.clamp(min=1e-30)).clamp(max=1.0)
    state.velocity_atom, state.velocity_cell = velocity, cell_velocity
    strain = scale[:, None, None] * cell_move / sizes
    move = torch.linalg.solve(
        crystals.lattice.transpose(1, 2)[index], (scale[index, None] * move).unsqueeze(-1)
    ).squeeze(-1)
    state.crystals = replace(
        crystals,
        frac_coords=crystals.frac_coords + move,
        lattice=crystals.lattice @ torch.linalg.matrix_exp(strain),
    )
