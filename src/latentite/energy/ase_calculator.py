"""Any ASE calculator as a potential, named by its import path; and 7net-0 (SevenNet), which comes with its weights.

MACE, ORB and MatterSim work where a user has them. ASE computes one crystal after the other; what it refuses becomes
a failure of that crystal alone. SevenNet's weights are those in its own wheel (the extra `sevennet`): Park et al. 2024,
J. Chem. Theory Comput. 20, 4857; trained on the energies of MPtrj as VASP gave them, without the corrections of MP2020.
Nothing here touches the network.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Collection, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentite.base.files import sha256_file
from latentite.crystal import CrystalBatch
from latentite.elements import MAX_ATOMIC_NUMBER
from latentite.energy.potential import EnergyForces, PotentialCard, TheoryLevel

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

log = logging.getLogger(__name__)

UNKNOWN_THEORY = TheoryLevel(functional="unknown", is_corrected=None)


class ASEPotential:
    """A calculator behind the protocol of `potential.py`.

    Args:
        path: `package.module:Class`, or a function that returns a calculator; or a calculator itself.
        arguments: its keyword arguments.
        name: for the card; `path`, or the calculator's class, when None.
        version: of its weights or package, for the card.
        sha256: of its weights, for the card.
        elements: atomic numbers that it knows; all when None.
        theory: level of its energies; `UNKNOWN_THEORY` when None, which no hull is compared with unless told.
        cutoff: Å, within which every atom must have a neighbour.

    Raises:
        ValueError: when the path names nothing that can be called, or the arguments are not those it takes.
    """

    def __init__(
        self,
        path: str | Calculator,
        *,
        arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        version: str = "unknown",
        sha256: str | None = None,
        elements: Collection[int] | None = None,
        theory: TheoryLevel | None = None,
        cutoff: float = 6.0,
    ) -> None:
        self._calculator = _build(path, dict(arguments or {})) if isinstance(path, str) else path
        self._card = PotentialCard(
            name=name or (path if isinstance(path, str) else type(path).__name__),
            version=version,
            sha256=sha256,
            elements=frozenset(elements or range(1, MAX_ATOMIC_NUMBER + 1)),
            theory=theory or UNKNOWN_THEORY,
            cutoff=cutoff,
        )

    @property
    def card(self) -> PotentialCard:
        """See `potential.Potential.card`."""
        return self._card

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        """See `potential.Potential.compute`."""
        return self._compute(crystals, has_derivatives=True)

    def compute_energy(self, crystals: CrystalBatch) -> EnergyForces:
        """See `potential.EnergyPotential.compute_energy`."""
        return self._compute(crystals, has_derivatives=False)

    def _compute(self, crystals: CrystalBatch, *, has_derivatives: bool) -> EnergyForces:
        energies = np.full(len(crystals), np.nan)
        forces = np.full((crystals.total_atoms, 3), np.nan)
        stresses = np.full((len(crystals), 3, 3), np.nan)
        failures: dict[int, str] = {}
        end = 0
        for position, atoms in enumerate(crystals.to_atoms()):
            start, end = end, end + len(atoms)
            atoms.calc = self._calculator
            try:
                energies[position] = atoms.get_potential_energy()
                if has_derivatives:
                    forces[start:end] = atoms.get_forces()
                    stresses[position] = atoms.get_stress(voigt=False)
            except Exception as error:  # noqa: BLE001 - calculators are not ours and raise whatever they like
                failures[position] = f"{self._card.name} raised {type(error).__name__}: {error}"
                energies[position] = np.nan
                forces[start:end] = np.nan
                log.warning("crystal %d: %s", position, failures[position])
        like = crystals.frac_coords
        return EnergyForces(
            energy=torch.from_numpy(energies).to(like),
            forces=torch.from_numpy(forces).to(like),
            stress=torch.from_numpy(stresses).to(like),
            failures=failures,
        )


def _build(path: str, arguments: dict[str, Any]) -> Calculator:
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(
            f"a calculator is named as package.module:Class, got {path!r} (for example ase.calculators.emt:EMT)"
        )
    try:
        maker = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"calculator {path!r} cannot be imported ({error}); install its package or correct the path"
        ) from error
    try:
        calculator: Calculator = maker(**arguments)
    except TypeError as error:
        raise ValueError(f"calculator {path!r} does not take the arguments {arguments}: {error}") from error
    return calculator


MODEL = "SevenNet_0__11Jul2024"
WEIGHTS = f"pretrained_potentials/{MODEL}/checkpoint_sevennet_0.pth"
THEORY = TheoryLevel(functional="PBE(+U)", is_corrected=False)
CUTOFF = 5.0
"""Å; of the model."""


def sevennet_potential() -> ASEPotential:
    """7net-0 of 11 July 2024 behind the protocol of `potential.py`, on the CPU.

    Raises:
        ImportError: when sevenn is not installed, or another version of it has other files.
    """
    spec = find_spec("sevenn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "7net-0 was asked for but sevenn cannot be imported; pip install 'latentite[sevennet]'"
        )
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS
    if not path.is_file():
        raise ImportError(
            f"sevenn {version('sevenn')} has no {WEIGHTS}; install a version that has it (0.13.0 does)"
        )
    calculator = _calculator(path)
    return ASEPotential(
        calculator,
        name="7net-0",
        version=f"{MODEL} (sevenn {version('sevenn')})",
        sha256=sha256_file(path),
        elements=frozenset(int(number) for number in calculator.type_map),
        theory=THEORY,
        cutoff=CUTOFF,
    )


def _calculator(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about accelerators that are not there
        from sevenn.calculator import SevenNetCalculator

        # sevenn unpickles its file, which comes with the package's own code and from nowhere else.
        return SevenNetCalculator(str(path), device="cpu")
