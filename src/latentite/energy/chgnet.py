"""CHGNet as a potential, batched, from the weights in its own wheel; never touches the network.

Deng et al. 2023, Nature Machine Intelligence 5, 1031. The package is the extra `energy`; only its network is used:
the graph of a whole batch is made here at once (theirs is made crystal by crystal, bond by bond, which takes as long
as the network itself), the weights are read without unpickling, and the derivatives are taken without the
second-order graph that only training needs. Tests hold the numbers equal to its own `predict_structure`.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentite.base.files import sha256_file
from latentite.crystal import CrystalBatch
from latentite.energy.neighbours import NeighbourList, neighbour_list
from latentite.energy.potential import EnergyForces, PotentialCard, TheoryLevel, without_derivatives

if TYPE_CHECKING:
    from chgnet.model.model import BatchedGraph, CHGNet

WEIGHTS = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
"""Models by name, and where the wheel carries them."""

THEORY = {
    "0.3.0": TheoryLevel(functional="PBE(+U)", is_corrected=True),
    "r2scan": TheoryLevel(functional="r2SCAN", is_corrected=None),
}
"""CHGNet was trained on energies of MPtrj with the corrections of MP2020."""

_KNOWN = frozenset(range(1, 95))


class CHGNetPotential:
    """CHGNet behind the protocol of `potential.py`.

    Args:
        model: `0.3.0` (MPtrj, the default) or `r2scan`.
        max_atoms: most atoms in one pass of the network; larger batches are cut (memory, not the result).
        dtype: of the network; float32 as it was trained, float64 for finite differences.

    Raises:
        ImportError: when chgnet is not installed.
        ValueError: for an unknown model.
    """

    def __init__(
        self, model: str = "0.3.0", *, max_atoms: int = 512, dtype: torch.dtype = torch.float32
    ) -> None:
        if model not in WEIGHTS:
            raise ValueError(f"CHGNet model must be one of {', '.join(WEIGHTS)}, got {model!r}")
        if max_atoms < 1:
            raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
        self._network, sha256 = _load(model)
        self._network.to(dtype)
        self._references = self._network.state_dict()["composition_model.fc.weight"].flatten()
        self._dtype = dtype
        self._max_atoms = max_atoms
        settings = self._network.model_args
        self._bond_cutoff = float(settings["bond_graph_cutoff"])
        self._card = PotentialCard(
            name="CHGNet",
            version=f"{model} (chgnet {version('chgnet')})",
            sha256=sha256,
            elements=_KNOWN,
            theory=THEORY[model],
            cutoff=float(settings["atom_graph_cutoff"]),
        )

    @property
    def card(self) -> PotentialCard:
        """See `potential.Potential.card`."""
        return self._card

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        """See `potential.Potential.compute`."""
        parts = [self._compute(crystals.select(chunk)) for chunk in self._chunks(crystals)]
        like = crystals.frac_coords

        def joined(tensors: list[Tensor], *shape: int) -> Tensor:
            return torch.cat([*tensors, torch.zeros(0, *shape, dtype=self._dtype)]).to(like)

        return EnergyForces(
            energy=joined([part.energy for part in parts]),
            forces=joined([part.forces for part in parts], 3),
            stress=joined([part.stress for part in parts], 3, 3),
        )

    @torch.no_grad()
    def compute_energy(self, crystals: CrystalBatch) -> EnergyForces:
        """See `potential.EnergyPotential.compute_energy`: one pass of the network, none backwards."""
        energies = [torch.zeros(0, dtype=self._dtype)]
        for chunk in self._chunks(crystals):
            part = crystals.select(chunk).to("cpu")
            energies.append(self._energy(part, self._graph(part)[0]))
        return without_derivatives(torch.cat(energies).to(crystals.frac_coords), crystals)

    def _chunks(self, crystals: CrystalBatch) -> list[Tensor]:
        """Positions of neighbouring crystals with at most `max_atoms` atoms, or of one that has more."""
        chunks: list[list[int]] = []
        size = 0
        for position, count in enumerate(crystals.num_atoms.tolist()):
            if not chunks or size + count > self._max_atoms:
                chunks.append([])
                size = 0
            chunks[-1].append(position)
            size += count
        return [torch.tensor(chunk, device=crystals.device) for chunk in chunks]

    def _compute(self, crystals: CrystalBatch) -> EnergyForces:
        crystals = crystals.to("cpu")
        graph, strain = self._graph(crystals)
        energy = self._energy(crystals, graph)
        by_cart, by_strain = torch.autograd.grad(energy.sum(), [graph.atom_positions[0], strain])
        # The absolute volume: chgnet divides by the determinant, so left-handed cells get the wrong sign there.
        stress = by_strain / crystals.volume.to(self._dtype)[:, None, None]
        return EnergyForces(
            energy=energy.detach(), forces=-by_cart, stress=0.5 * (stress + stress.transpose(1, 2))
        )

    def _energy(self, crystals: CrystalBatch, graph: BatchedGraph) -> Tensor:
        """eV per cell."""
        per_atom: Tensor = self._network._compute(graph)["e"] + self._composition_energy(crystals)
        return per_atom * crystals.num_atoms

    def _composition_energy(self, crystals: CrystalBatch) -> Tensor:
        """eV/atom of CHGNet's linear composition model, one reference energy per element."""
        total = torch.zeros(len(crystals), dtype=self._dtype)
        total.index_add_(0, crystals.crystal_index, self._references[crystals.atomic_numbers - 1])
        return total / crystals.num_atoms

    def _graph(self, crystals: CrystalBatch) -> tuple[BatchedGraph, Tensor]:
        """The batch as CHGNet's network wants it, and the strain [crystal 3 3] that it is a function of."""
        from chgnet.model.model import BatchedGraph

        pairs = neighbour_list(crystals, self._card.cutoff)
        bond, one_direction = undirected_bonds(pairs)
        first, second, image = (torch.from_numpy(a) for a in (pairs.first, pairs.second, pairs.image))
        owner = crystals.crystal_index

        # Without a gradient to take (`compute_energy`) the strain stays a plain zero.
        strain = torch.zeros(len(crystals), 3, 3, dtype=self._dtype, requires_grad=torch.is_grad_enabled())
        lattice = crystals.lattice.to(self._dtype) @ (torch.eye(3, dtype=self._dtype) + strain)
        cart = torch.einsum("ai,aij->aj", crystals.frac_coords.to(self._dtype), lattice[owner])
        shift = torch.einsum("pi,pij->pj", image.to(self._dtype), lattice[owner[first]])
        vectors = cart[first] - cart[second] - shift
        lengths = vectors.norm(dim=1)
        directions = vectors / lengths[:, None]
        expansion = self._network.bond_basis_expansion
        bond_lengths = lengths[torch.from_numpy(one_direction)]

        left, right = (torch.from_numpy(a) for a in angles(pairs, self._bond_cutoff))
        bonds = torch.from_numpy(bond)
        graph = BatchedGraph(
            atomic_numbers=crystals.atomic_numbers.int(),
            bond_bases_ag=expansion.rbf_expansion_ag(bond_lengths),
            bond_bases_bg=expansion.rbf_expansion_bg(bond_lengths),
            angle_bases=self._network.angle_basis_expansion(directions[left], directions[right]),
            batched_atom_graph=torch.stack([first, second], dim=1).int(),
            batched_bond_graph=torch.stack([first[left], bonds[left], bonds[right]], dim=1).int(),
            atom_owners=owner.int(),
            directed2undirected=bonds.int(),
            atom_positions=[cart],
            strains=[strain],
            volumes=crystals.volume,
        )
        return graph, strain


def undirected_bonds(pairs: NeighbourList) -> tuple[np.ndarray, np.ndarray]:
    """For each ordered pair the bond that it shares with its reverse, and for each bond one of its pairs.

    The reverse of (i, j, image) is (j, i, -image); the smaller of the two stands for both.
    """
    forward = np.column_stack([pairs.first, pairs.second, pairs.image])
    backward = np.column_stack([pairs.second, pairs.first, -pairs.image])
    differs = forward != backward
    column = differs.argmax(axis=1)
    rows = np.arange(len(forward))
    is_smaller = forward[rows, column] <= backward[rows, column]
    names = np.where(is_smaller[:, None], forward, backward)
    _, one_direction, bond = np.unique(names, axis=0, return_index=True, return_inverse=True)
    return bond.reshape(-1), one_direction


def angles(pairs: NeighbourList, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of every two different pairs that start at the same atom and are shorter than `cutoff` (Å)."""
    short = np.flatnonzero(pairs.distance < cutoff)
    short = short[np.argsort(pairs.first[short], kind="stable")]
    centres = pairs.first[short]
    count = np.bincount(centres, minlength=int(centres.max(initial=-1)) + 1)
    start = np.cumsum(count) - count
    partners = count[centres]  # of each short pair, itself included
    left = np.repeat(np.arange(len(short)), partners)
    place = np.arange(len(left)) - np.repeat(np.cumsum(partners) - partners, partners)
    right = start[centres[left]] + place
    is_other = left != right
    return short[left[is_other]], short[right[is_other]]


@cache
def _weights_file(model: str) -> tuple[Path, str]:
    import chgnet

    path = Path(chgnet.__file__).parent / "pretrained" / WEIGHTS[model]
    return path, sha256_file(path)


def _load(model: str) -> tuple[CHGNet, str]:
    """The network and the hash of its weights."""
    try:
        from chgnet.model.model import CHGNet
    except ImportError as error:
        raise ImportError(
            "CHGNet was asked for but chgnet cannot be imported; pip install 'latentite[energy]'"
        ) from error
    path, sha256 = _weights_file(model)
    # The file holds tensors and plain settings only, so nothing needs to be unpickled.
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    with redirect_stdout(StringIO()):  # it announces itself
        network = CHGNet(**state["model_args"] | {"mlp_out_bias": False})  # as its own `load` does
    network.load_state_dict(state["state_dict"])
    return network.eval().requires_grad_(False), sha256
