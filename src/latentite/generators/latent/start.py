"""Start from known structures: noise them part of the way and denoise, or keep some of their atoms (inpainting).

The structures are brought to the canonical form that the networks were trained on, which moves the origin and sorts
the atoms; what is fixed is named by the order of the input and carried over. Fixed means: an atom's latent is given
at every noise level and its element is kept exactly. Its coordinates and the cell come from the decoder, which sees
all atoms, so they may move a little: `deviation` says how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite import lattice as lat
from latentite.base.plain import Structures
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_with_order
from latentite.data.readers.checks import Limits
from latentite.data.readers.records import Rejection
from latentite.data.readers.rows import read
from latentite.diffusion.noise import CrystalNoise, NoiseStream
from latentite.diffusion.samplers import AnySchedule, Known, noised, start_level
from latentite.elements import MAX_ATOMIC_NUMBER
from latentite.generators.elements import element_numbers
from latentite.generators.jobs import Jobs
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.vae import LatentBatch

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRows:
    """A start as the sampler takes it, for one batch of jobs."""

    state: Float[Tensor, "crystal token channel"]
    level: int
    """Index of the state's noise level in the schedule."""
    known: Known | None
    fixed_numbers: Int[Tensor, " atom"] | None
    """Atomic numbers of the fixed atoms, 0 for the others; on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Structures to start from. Make it with `start_from`."""

    crystals: CrystalBatch
    """In canonical form, on the CPU."""
    latents: Float[Tensor, "crystal token channel"]
    """Normalised posterior means, on the network's device; zero in padding."""
    spread: Float[Tensor, "crystal token channel"] | None
    """Standard deviation of the posterior where every sample draws from it; None for the means."""
    fixed: Bool[Tensor, "crystal token"]
    """Atoms that are kept, on the CPU."""
    strength: float
    """Share of the steps that are taken, in (0, 1]; at 1 all that is not fixed starts from pure noise."""

    def which(self, jobs: Jobs) -> Int[Tensor, " crystal"]:
        """For each job the structure that it starts from.

        Raises:
            ValueError: when a job has not as many atoms as its structure.
        """
        which = torch.tensor([ask.start for ask in jobs.asked])[jobs.asks]
        counts = self.crystals.num_atoms[which]
        if not counts.equal(jobs.num_atoms):
            wrong = int((counts != jobs.num_atoms).nonzero()[0])
            raise ValueError(
                f"num_atoms must be that of the structure to start from ({int(counts[wrong])}), "
                f"got {int(jobs.num_atoms[wrong])}"
            )
        return which

    def rows(self, jobs: Jobs, schedule: AnySchedule, noise: CrystalNoise) -> StartRows:
        """The state from which the chain of each job begins.

        Args:
            jobs: one batch.
            schedule: that is walked.
            noise: of these jobs.
        """
        which = self.which(jobs)
        chosen = which.to(self.latents.device)
        latents = self.latents[chosen, : noise.num_tokens]
        if self.spread is not None:
            spread = self.spread[chosen, : noise.num_tokens]
            latents = latents + spread * noise.draw(NoiseStream.POSTERIOR, 0)
        level = start_level(schedule, self.strength)
        # A DDPM's last level keeps a trace of the data (alpha 0.006); strength 1 promises none.
        state = noise.start() if self.strength == 1.0 else noised(latents, noise.start(), schedule, level)
        fixed = self.fixed[which, : noise.num_tokens]
        if not bool(fixed.any()):
            return StartRows(state=state, level=level, known=None, fixed_numbers=None)
        mask = LatentBatch.token_mask(jobs.num_atoms, noise.num_tokens)
        numbers = self.crystals.select(which).atomic_numbers
        return StartRows(
            state=state,
            level=level,
            known=Known(latents=latents, mask=fixed.to(latents.device), noise=noise.known),
            fixed_numbers=torch.where(fixed[mask], numbers, 0),
        )

    def deviation(self, jobs: Jobs, crystals: CrystalBatch) -> Float[Tensor, " crystal"] | None:
        """Distance of the worst fixed atom of each crystal from its place, Å; None where nothing is fixed.

        The distance between fractional coordinates, measured in the cell of the structure it started from.

        Args:
            jobs: of the crystals, in their order.
            crystals: what was sampled, on the CPU.
        """
        if not bool(self.fixed.any()):
            return None
        which = self.which(jobs)
        begun = self.crystals.select(which)
        fixed = self.fixed[which][LatentBatch.token_mask(jobs.num_atoms, self.fixed.shape[1])]
        moved = lat.wrapped_difference(crystals.frac_coords, begun.frac_coords)
        distance = torch.einsum("ai,aij->aj", moved, begun.lattice[begun.crystal_index]).norm(dim=-1)
        kept = torch.where(fixed, distance, 0.0)
        return torch.zeros(len(jobs)).scatter_reduce(0, begun.crystal_index, kept, "amax")


@torch.no_grad()
def start_from(
    network: LatentDiffusion,
    structures: CrystalBatch,
    *,
    strength: float = 1.0,
    fix_sites: Sequence[int] = (),
    fix_species: Sequence[str] | str = (),
    draw: bool = False,
) -> Start:
    """Encode structures to start from.

    Args:
        network: in evaluation mode.
        structures: as they were read, in any cell and order of atoms.
        strength: share of the steps to take, in (0, 1].
        fix_sites: atoms to keep, counted from 0 in the order of the input, the same in every structure.
        fix_species: symbols of elements whose atoms are kept.
        draw: start every sample from a draw of the posterior rather than from its mean.

    Raises:
        ValueError: for a strength outside (0, 1], sites or species that a structure does not have, atoms
            without a class in the networks, or nothing left to sample.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    highest = int(structures.atomic_numbers.max())
    if highest > MAX_ATOMIC_NUMBER:
        raise ValueError(
            f"elements of a structure to start from must be 1 to {MAX_ATOMIC_NUMBER}, the networks' classes, "
            f"got atomic number {highest}"
        )
    arrays, orders = zip(*canonicalize_with_order(structures.to_arrays()), strict=True)
    crystals = CrystalBatch.from_arrays(arrays)
    species = element_numbers("fix_species", fix_species)
    fixed = [
        _fixed_atoms(crystal.atomic_numbers, order, fix_sites, species)
        for crystal, order in zip(arrays, orders, strict=True)
    ]
    mask = LatentBatch.token_mask(crystals.num_atoms)
    padded = torch.zeros_like(mask)
    padded[mask] = torch.from_numpy(np.concatenate(fixed))
    device = network.latent_mean.device
    posterior = network.vae.encode(crystals.to(device))
    means = (posterior.mean.float() - network.latent_mean) / network.latent_std
    stds = (0.5 * posterior.logvar.float()).exp() / network.latent_std
    counts = crystals.num_atoms.to(device)
    return Start(
        crystals=crystals,
        latents=LatentBatch.from_packed(means, counts).tokens,
        spread=LatentBatch.from_packed(stds, counts).tokens if draw else None,
        fixed=padded,
        strength=strength,
    )


def _fixed_atoms(
    numbers: Int[np.ndarray, " atom"],
    order: Int[np.ndarray, " atom"],
    sites: Sequence[int],
    species: Sequence[int],
) -> Bool[np.ndarray, " atom"]:
    """The atoms of a canonical structure that are kept; `order` is each one's place in the input."""
    wrong = [site for site in sites if not 0 <= site < len(numbers)]
    if wrong:
        raise ValueError(f"fix_sites must be from 0 to {len(numbers) - 1} in this structure, got {wrong[0]}")
    missing = [z for z in species if z not in numbers]
    if missing:
        raise ValueError(f"fix_species must be elements of the structure, got atomic number {missing[0]}")
    fixed = np.isin(order, list(sites)) | np.isin(numbers, list(species))
    if fixed.all():
        raise ValueError("fix_sites and fix_species must leave at least one atom to sample, got all fixed")
    return fixed


def source_of(value: Structures) -> str | Path | Sequence[Structure | Atoms]:
    """Input of the readers: a path, or a list of structures."""
    if isinstance(value, (str, Path, list, tuple)):
        return value
    return [value]  # type: ignore[list-item]  # one Structure, which is itself a sequence of sites


def read_structures(source: str | Path | Sequence[Structure | Atoms]) -> CrystalBatch:
    """Every structure of a source in its own cell and order of atoms.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when one of them is no usable crystal.
    """
    structures = []
    for item in read(source, limits=Limits(max_atoms=None)):
        if isinstance(item, Rejection):
            raise ValueError(
                f"init must hold usable structures, got {item.id} in {item.source}: {item.reason}"
            )
        structures.append(CrystalArrays(item.atomic_numbers, item.frac_coords, item.lattice))
    if not structures:
        raise ValueError(f"init must hold a structure, got none in {source}")
    return CrystalBatch.from_arrays(structures)
