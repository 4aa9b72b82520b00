"""Potentials by the name that a user types: those with an adapter here, or any ASE calculator by import path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from latentite.base.files import sha256_file
from latentite.energy.ase_calculator import ASEPotential, sevennet_potential
from latentite.energy.chgnet import CHGNetPotential
from latentite.energy.potential import Potential, PotentialCard, TheoryLevel


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
