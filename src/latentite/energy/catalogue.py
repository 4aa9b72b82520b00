"""Potentials by the name that a user types: those with an adapter here, or any ASE calculator by its import path.

MACE, ORB and MatterSim work where a user has them. ASE computes one crystal after the other; what it refuses becomes
a failure of that crystal alone. SevenNet's weights (7net-0) are those in its own wheel (the extra `sevennet`): Park et
al. 2024, J. Chem. Theory Comput. 20, 4857; trained on the energies of MPtrj as VASP gave them, without the corrections
of MP2020. Nothing here touches the network.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentite.base.files import sha256_file
from latentite.crystal import CrystalBatch
from latentite.elements import MAX_ATOMIC_NUMBER
from latentite.energy.chgnet import CHGNetPotential
from latentite.energy.potential import EnergyForces, Potential, PotentialCard, TheoryLevel

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


SEVENNET = "SevenNet_0__11Jul2024"
SEVENNET_WEIGHTS = f"pretrained_potentials/{SEVENNET}/checkpoint_sevennet_0.pth"
SEVENNET_THEORY = TheoryLevel(functional="PBE(+U)", is_corrected=False)
SEVENNET_CUTOFF = 5.0
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
    path = Path(spec.submodule_search_locations[0]) / SEVENNET_WEIGHTS
    if not path.is_file():
        raise ImportError(
            f"sevenn {version('sevenn')} has no {SEVENNET_WEIGHTS}; install a version that has it (0.13.0 does)"
        )
    calculator = _calculator(path)
    return ASEPotential(
        calculator,
        name="7net-0",
        version=f"{SEVENNET} (sevenn {version('sevenn')})",
        sha256=sha256_file(path),
        elements=frozenset(int(number) for number in calculator.type_map),
        theory=SEVENNET_THEORY,
        cutoff=SEVENNET_CUTOFF,
    )


def _calculator(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about accelerators that are not there
        from sevenn.calculator import SevenNetCalculator

        # sevenn unpickles its file, which comes with the package's own code and from nowhere else.
        return SevenNetCalculator(str(path), device="cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPotential:
    """A potential with an adapter of its own."""

    make: Callable[[], Potential]
    extra: str
    """Of the package, with which pip installs what it needs."""


POTENTIALS: dict[str, NamedPotential] = {
    "chgnet": NamedPotential(make=CHGNetPotential, extra="energy"),
    "7net-0": NamedPotential(make=sevennet_potential, extra="sevennet"),
}
ALIASES = {"sevennet": "7net-0"}

_THEORY = re.compile(r"(?P<functional>[^,]+), (?P<kind>corrected|uncorrected)")


def potential_by_name(
    name: str, *, arguments: Mapping[str, Any] | None = None, theory: TheoryLevel | None = None
) -> Potential:
    """The potential of a name.

    Args:
        name: `chgnet`, `7net-0` (or `sevennet`), or `package.module:Class` for any ASE calculator.
        arguments: keyword arguments of such a calculator.
        theory: level of its energies; those with an adapter here know their own.

    Raises:
        ImportError: when its package is not installed, with the extra that installs it.
        ValueError: for an unknown name, or arguments that it does not take.
    """
    if ":" in name:
        return ASEPotential(
            name,
            arguments=arguments,
            version=_version(name, arguments or {}),
            sha256=_weights_hash(arguments or {}),
            theory=theory,
        )
    known = POTENTIALS.get(ALIASES.get(name, name))
    if known is None:
        listed = ", ".join(
            f"{key} (pip install 'latentite[{item.extra}]')" for key, item in POTENTIALS.items()
        )
        raise ValueError(
            f"a potential must be {listed} or package.module:Class of an ASE calculator, got {name!r}"
        )
    if arguments:
        raise ValueError(f"{name} takes no arguments, got {', '.join(arguments)}")
    potential = known.make()
    if theory not in (None, potential.card.theory):
        raise ValueError(
            f"{name} predicts energies of {potential.card.theory}, not of {theory}; leave it out"
        )
    return potential


def identity(card: PotentialCard) -> dict[str, str | None] | None:
    """Identity of a potential, for the keys of caches; None where nobody can tell."""
    if card.sha256 is None and card.version == "unknown":
        return None
    return {"name": card.name, "version": card.version, "sha256": card.sha256, "theory": str(card.theory)}


def parse_theory(text: str) -> TheoryLevel:
    """A level of theory as `TheoryLevel` prints it: `PBE(+U), corrected` or `PBE(+U), uncorrected`.

    Raises:
        ValueError: for anything else.
    """
    match = _THEORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"a level of theory is written as 'PBE(+U), corrected' or 'PBE(+U), uncorrected', got {text!r}"
        )
    return TheoryLevel(functional=match["functional"].strip(), is_corrected=match["kind"] == "corrected")


def _version(path: str, arguments: Mapping[str, Any]) -> str:
    """Distribution and version of a calculator's module, and what it was made with."""
    names = _distributions().get(path.partition(".")[0].partition(":")[0], [])
    if not names:
        return "unknown"
    made_with = "".join(f", {key}={value!r}" for key, value in sorted(arguments.items()))
    return f"{names[0]} {version(names[0])}{made_with}"


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _weights_hash(arguments: Mapping[str, Any]) -> str | None:
    """Of the file that one of the arguments names, if only one does."""
    files = [Path(value) for value in arguments.values() if isinstance(value, (str, Path)) and str(value)]
    files = [path for path in files if path.is_file()]
    return sha256_file(files[0]) if len(files) == 1 else None
