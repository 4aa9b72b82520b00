"""Element references: from a potential's total energies to formation energies and energies above a table's hull.

A potential gives total energies, a table formation energies; between them stands one reference energy per element,
fitted by ridge least squares on rows of the table: E_potential - E_formation = sum_i x_i mu_i. Where the potential
predicts uncorrected energies and the table holds corrected ones, the difference also depends on what an element does
in the compound; further terms take that up, as MP2020 does it (Wang et al. 2021, Sci. Rep. 11, 15496): one per anion
and one per transition metal in oxides and fluorides.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.elements import ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS
from latentite.energy.hull import Hull
from latentite.energy.potential import TheoryLevel
from latentite.formulas import compositions
from latentite.nn.segment import segment_count

_ANIONS = tuple(ATOMIC_NUMBER[s] for s in ["N", "O", "F", "Si", "S", "Cl", "Se", "Br", "Sb", "Te", "I"])
_U_METALS = tuple(ATOMIC_NUMBER[s] for s in ["V", "Cr", "Mn", "Fe", "Co", "Ni", "Mo", "W"])
_U_ANIONS = tuple(ATOMIC_NUMBER[s] for s in ["O", "F"])


class ReferenceTerms(StrEnum):
    """Terms that the difference between potential and table depends on."""

    ELEMENTS = "elements"
    """The fraction of each element."""
    CORRECTIONS = "corrections"
    """Also the fraction of the most electronegative element where MP2020 corrects it, and of V, Cr, Mn, Fe, Co,
    Ni, Mo and W in oxides and fluorides; for a potential that predicts uncorrected energies."""


def features(crystals: CrystalBatch, terms: ReferenceTerms) -> Float[np.ndarray, "crystal term"]:
    """Fractions of the elements, and of what the corrections act on."""
    count = len(crystals)
    index, numbers = crystals.crystal_index.cpu(), crystals.atomic_numbers.cpu()
    amounts = segment_count(index * NUM_ELEMENTS + numbers - 1, count * NUM_ELEMENTS)
    fractions = amounts.reshape(count, NUM_ELEMENTS).double() / crystals.num_atoms.cpu()[:, None]
    if terms == ReferenceTerms.ELEMENTS:
        return fractions.numpy()
    strength = torch.from_numpy(_electronegativities())
    leader = torch.where(fractions > 0, strength, -1.0).argmax(1) + 1
    is_compound = (fractions > 0).sum(1) > 1
    anions = [
        fractions[:, n - 1] * ((leader == n) & is_compound) for n in _ANIONS
    ]  # an element alone is not an anion
    metals = [
        fractions[:, n - 1] * ((leader == anion) & is_compound) for anion in _U_ANIONS for n in _U_METALS
    ]
    return torch.cat([fractions, torch.stack([*anions, *metals], dim=1)], dim=1).numpy()


def _electronegativities() -> Float[np.ndarray, " element"]:
    """Pauling's; 0 where there is none."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each element without
        return np.nan_to_num(np.array([float(Element(symbol).X) for symbol in SYMBOLS]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ElementReferences:
    """Fitted references; see `fit_references`."""

    terms: ReferenceTerms
    weights: Float[np.ndarray, " term"]
    """eV/atom; the first 118 are the elements, by atomic number."""
    elements: frozenset[int]
    """Atomic numbers that occurred in the fit; for others there is no reference."""
    theory: TheoryLevel | None
    """Level of theory of the potential whose energies were fitted."""
    table_theory: TheoryLevel | None
    """Level of theory of the formation energies."""
    num_rows: int
    mean_absolute_residual: float
    """eV/atom on the rows of the fit; rows that it has not seen are worse (`residual`)."""
    left_out_residual: float
    """eV/atom; mean of how far off each row is in a fit without it: what to expect of rows not seen. Rows that
    alone have an element (or term) do not count; NaN where all do."""

    def formation_energy(
        self, crystals: CrystalBatch, energy: Float[Tensor, " crystal"]
    ) -> tuple[Float[Tensor, " crystal"], list[str | None]]:
        """eV/atom from the potential's total energies, and for each crystal why there is none (then NaN).

        Args:
            crystals: whose compositions count.
            energy: eV per cell.
        """
        per_atom = energy.double() / crystals.num_atoms
        reference = torch.from_numpy(features(crystals, self.terms) @ self.weights)
        unseen = torch.tensor(sorted(set(range(1, NUM_ELEMENTS + 1)) - self.elements))
        reasons: list[str | None] = [None] * len(crystals)
        foreign = torch.isin(crystals.atomic_numbers, unseen).nonzero().flatten()
        owners, numbers = crystals.crystal_index[foreign].tolist(), crystals.atomic_numbers[foreign].tolist()
        missing: dict[int, set[int]] = {}
        for owner, number in zip(owners, numbers, strict=True):
            missing.setdefault(owner, set()).add(number)
        for owner, elements in missing.items():
            names = ", ".join(SYMBOLS[number - 1] for number in sorted(elements))
            reasons[owner] = f"no element reference for {names}: the table that was fitted has none"
        result = per_atom.cpu() - reference
        result[[reason is not None for reason in reasons]] = torch.nan
        return result, reasons

    def to_json(self) -> dict[str, Any]:
        """As plain values, for `from_json`."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        value |= {"weights": self.weights.tolist(), "elements": sorted(self.elements)}
        value |= {name: value[name] and asdict(value[name]) for name in ("theory", "table_theory")}
        return value

    @staticmethod
    def from_json(value: dict[str, Any]) -> ElementReferences:
        """References of `to_json`.

        Raises:
            ValueError: for other values.
        """
        try:
            theories = {
                name: value[name] and TheoryLevel(**value[name]) for name in ("theory", "table_theory")
            }
            return ElementReferences(
                **value
                | theories
                | {
                    "terms": ReferenceTerms(value["terms"]),
                    "weights": np.array(value["weights"], dtype=float),
                    "elements": frozenset(value["elements"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"element references written by latentite were expected, got {error!r}"
            ) from error

    def residual(
        self,
        crystals: CrystalBatch,
        energy: Float[Tensor, " crystal"],
        formation_energy: Float[Tensor, " crystal"],
    ) -> Float[Tensor, " crystal"]:
        """Predicted minus true formation energy, eV/atom; for rows that the fit has not seen."""
        return self.formation_energy(crystals, energy)[0] - formation_energy.double()


def fit_references(
    crystals: CrystalBatch,
    energy: Float[Tensor, " crystal"],
    formation_energy: Float[Tensor, " crystal"],
    *,
    terms: ReferenceTerms = ReferenceTerms.ELEMENTS,
    ridge: float = 1e-3,
    theory: TheoryLevel | None = None,
    table_theory: TheoryLevel | None = None,
    allow_mixed_theory: bool = False,
) -> ElementReferences:
    """References by ridge least squares; rows where a number is missing (NaN) do not enter.

    Args:
        crystals: rows of the table.
        energy: of the potential, eV per cell.
        formation_energy: of the table, eV/atom.
        terms: what the difference depends on.
        ridge: added to the diagonal of the normal equations; keeps rare elements from running away.
        theory: of the potential.
        table_theory: of the table.
        allow_mixed_theory: fit although the two levels differ (or one is unknown).

    Raises:
        ValueError: when no row is complete, a number of rows does not match, or levels of theory are mixed.
    """
    check_same_theory(theory, table_theory, allow_mixed_theory=allow_mixed_theory, terms=terms)
    for name, values in (("energies", energy), ("formation energies", formation_energy)):
        if values.shape != (len(crystals),):
            raise ValueError(
                f"one of the {name} per crystal is needed, got {len(values)} for {len(crystals)}"
            )
    if terms not in list(ReferenceTerms):
        raise ValueError(f"terms must be one of {', '.join(ReferenceTerms)}, got {terms!r}")
    if not ridge >= 0.0:
        raise ValueError(f"ridge must be 0 or more, got {ridge}")
    difference = (energy.double() / crystals.num_atoms - formation_energy.double()).cpu().numpy()
    is_complete = np.isfinite(difference)
    if not is_complete.any():
        raise ValueError("references need rows with both energies, got none")
    chosen = crystals.select(torch.from_numpy(np.flatnonzero(is_complete)))
    columns, target = features(chosen, terms), difference[is_complete]
    occurs = (columns != 0).any(0)
    used = columns[:, occurs]
    # Ridge as rows below the system: better conditioned than the normal equations.
    system = np.vstack([used, np.sqrt(ridge) * np.eye(used.shape[1])])
    padded = np.concatenate([target, np.zeros(used.shape[1])])
    weights = np.zeros(columns.shape[1])
    weights[occurs] = np.linalg.lstsq(system, padded, rcond=None)[0]
    residual = columns @ weights - target
    return ElementReferences(
        terms=ReferenceTerms(terms),
        weights=weights,
        elements=frozenset((np.flatnonzero(occurs[:NUM_ELEMENTS]) + 1).tolist()),
        theory=theory,
        table_theory=table_theory,
        num_rows=len(target),
        mean_absolute_residual=float(np.abs(residual).mean()),
        left_out_residual=_left_out_residual(used, system, residual),
    )


def _left_out_residual(
    used: Float[np.ndarray, "row term"],
    system: Float[np.ndarray, "equation term"],
    residual: Float[np.ndarray, " row"],
) -> float:
    """A row left out is missed by its residual over one minus its leverage (Allen 1974, Technometrics 16, 125)."""
    basis, values, _ = np.linalg.svd(system, full_matrices=False)
    leverage = (basis[: len(used), values > 1e-10 * values[0]] ** 2).sum(1)
    is_alone = (used[:, (used != 0).sum(0) == 1] != 0).any(1)
    if is_alone.all():
        return float("nan")
    return float(np.abs(residual[~is_alone] / (1.0 - leverage[~is_alone])).mean())


def check_same_theory(
    first: TheoryLevel | None,
    second: TheoryLevel | None,
    *,
    allow_mixed_theory: bool = False,
    terms: ReferenceTerms = ReferenceTerms.ELEMENTS,
) -> None:
    """Refuses to compare energies of two levels of theory, of which the second is the table's or hull's.

    Raises:
        ValueError: when they differ or one is unknown, unless that is allowed, or the terms of the fit make up
            for missing corrections of the same functional.
    """
    if allow_mixed_theory:
        return
    is_known = (
        first is not None and second is not None and None not in (first.is_corrected, second.is_corrected)
    )
    if first is not None and second is not None and is_known:
        if first == second:
            return
        if terms == ReferenceTerms.CORRECTIONS and first.functional == second.functional:
            return
    raise ValueError(
        f"energies of the potential ({first or 'unknown'}) and of the table ({second or 'unknown'}) must be of one "
        "level of theory; declare both, fit terms=corrections where only the corrections differ, or allow the "
        "mixture (allow_mixed_theory)"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """Of one crystal."""

    formation_energy: float | None
    """eV/atom."""
    energy_above_hull: float | None
    """eV/atom, negative below the hull; None where unknown."""
    num_competing: int
    """Phases that the hull knows in the chemical system, the elements not counted."""
    reason: str | None
    """Reason for which the energy above hull is unknown."""


def stability(
    crystals: CrystalBatch,
    energy: Float[Tensor, " crystal"],
    references: ElementReferences,
    hull: Hull,
    *,
    allow_mixed_theory: bool = False,
) -> list[Stability]:
    """One row per crystal, in order.

    Args:
        crystals: as the potential judged them.
        energy: eV per cell, NaN where there is none.
        references: fitted to a table of the hull's level of theory.
        hull: what competes.
        allow_mixed_theory: also where the levels of theory of table and hull differ, or are not known.

    Raises:
        ValueError: when levels of theory are mixed.
    """
    check_same_theory(references.table_theory, hull.theory, allow_mixed_theory=allow_mixed_theory)
    formation, reasons = references.formation_energy(crystals, energy)
    above, num_competing = hull.energy_above_hull(compositions(crystals), formation.tolist())
    rows = []
    for value, height, count, reason in zip(formation.tolist(), above, num_competing, reasons, strict=True):
        if reason is None and value != value:
            reason = "the potential gave no energy"
        elif reason is None and height is None:
            reason = "the hull has no references in this chemical system"
        rows.append(
            Stability(
                formation_energy=value if value == value else None,
                energy_above_hull=height,
                num_competing=count,
                reason=reason,
            )
        )
    return rows
