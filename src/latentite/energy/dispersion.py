"""D3(BJ) dispersion energies (Grimme et al. 2011, J. Comput. Chem. 32, 1456) through the library dftd3.

Imports nothing of ours; `predictor/exported.py` adds it to what a model says. Needs the extra `dispersion`.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

_WANTED = ("s6", "s8", "a1", "a2", "alp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispersion:
    """Damping parameters of one functional, without the three-body term (s9 = 0)."""

    method: str
    """As dftd3 spells it."""
    parameters: dict[str, float]
    """s6, s8, a1, a2 (Bohr), alp, s9."""
    source: str
    """DOI of the parameters."""

    def describe(self) -> str:
        """On one line."""
        values = ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())
        return f"D3(BJ) for {self.method}: {values} ({self.source})"


def d3bj(method: str) -> Dispersion:
    """The parameters that dftd3 has for a functional.

    Raises:
        ValueError: without dftd3, or for a name that is not exactly one of its functionals with BJ damping.
    """
    _library()
    from importlib.resources import files

    table = tomllib.loads((files("dftd3") / "parameters.toml").read_text(encoding="utf-8"))
    known = {
        name: entry["d3"]["bj"] for name, entry in table["parameter"].items() if "bj" in entry.get("d3", {})
    }
    if method not in known:
        near = difflib.get_close_matches(method.lower(), known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"a functional must be one that dftd3 has D3(BJ) parameters for, in its spelling, got {method!r}{hint}"
        )
    defaults = table["default"]["parameter"]["d3"]["bj"]
    row = {**defaults, **known[method]}
    parameters = {name: float(row[name]) for name in _WANTED} | {"s9": 0.0}
    return Dispersion(method=method, parameters=parameters, source=str(row.get("doi", "no source given")))


def dispersion_energy(dispersion: Dispersion, atoms: Atoms) -> float:
    """eV per cell of a periodic crystal.

    Raises:
        ValueError: without dftd3, or for what the library refuses.
    """
    from ase.units import Bohr, Hartree

    interface = _library()
    try:
        model = interface.DispersionModel(
            np.asarray(atoms.numbers),
            np.asarray(atoms.positions) / Bohr,
            lattice=np.asarray(atoms.cell) / Bohr,
            periodic=np.array([True, True, True]),
        )
        damping = interface.RationalDampingParam(**dispersion.parameters)
        return float(model.get_dispersion(damping, grad=False)["energy"]) * Hartree
    except RuntimeError as error:
        raise ValueError(
            f"dftd3 gives no dispersion energy of {atoms.get_chemical_formula()}: {error}"
        ) from error


def _library() -> Any:
    try:
        import dftd3.interface
    except ImportError as error:
        raise ValueError(
            "D3 dispersion needs the library dftd3; install it with `pip install 'latentite[dispersion]'`"
        ) from error
    return dftd3.interface
