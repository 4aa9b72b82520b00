"""The section of distributions: entropies of what was generated, and how far it is from the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from latentite.data.properties import SYMPREC
from latentite.elements import NUM_ELEMENTS
from latentite.evaluation.measure import Cell, Measured
from latentite.evaluation.table import Section, Work
from latentite.metrics.distributions import entropy_bits, jensen_shannon_bits, wasserstein

_WASSERSTEIN_LABELS = {
    "density_g_per_cm3": "density, g/cm³",
    "num_elements": "number of elements",
    "num_atoms": "number of atoms",
    "volume_per_atom_A3": "volume per atom, Å³",
}


def distribution_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Numbers of the whole set; units in the names.

    `all` is over all structures, `valid` over those that are valid under the protocol, as CDVAE has it.
    """
    generated, reference = work.measured, work.reference_measured
    groups = _known_groups(generated)
    found: dict[str, Any] = {
        "entropy_bits": {
            "space_group": finite(entropy_bits(groups)),
            "formula": finite(entropy_bits(generated.formulas)),
            "chemical_system": finite(entropy_bits(generated.chemical_systems)),
        }
    }
    if reference is not None:
        is_valid = np.array([cell is True for cell in table["valid"]], dtype=bool)
        found["wasserstein"] = _wasserstein(generated, reference, is_valid)
        found["jensen_shannon_bits"] = {
            "space_group": finite(jensen_shannon_bits(groups, _known_groups(reference))),
            "element": finite(jensen_shannon_bits(_elements(generated), _elements(reference))),
        }
        absent = (element_shares(generated) > 0) & (element_shares(reference) == 0)
        found["elements_not_in_reference"] = np.flatnonzero(absent).tolist()
    return Section(summary={"distributions": found}, page=lambda: _page(found))


def element_shares(measured: Measured) -> Float[np.ndarray, "119"]:
    """Share of the structures that contain each element, by atomic number."""
    counts = np.zeros(NUM_ELEMENTS + 1)
    for composition in measured.compositions:
        counts[[number for number, _ in composition]] += 1
    return counts / max(1, len(measured.compositions))


def finite(value: float) -> float | None:
    """The number itself, or None where there is none."""
    return value if math.isfinite(value) else None


def _wasserstein(generated: Measured, reference: Measured, is_valid: np.ndarray) -> dict[str, Any]:
    pairs = {
        "density_g_per_cm3": (generated.density, reference.density),
        "num_elements": (generated.num_elements, reference.num_elements),
        "num_atoms": (generated.num_atoms, reference.num_atoms),
        "volume_per_atom_A3": (generated.volume_per_atom, reference.volume_per_atom),
    }
    return {
        name: {
            "all": finite(wasserstein(ours, theirs)),
            "valid": finite(wasserstein(ours[is_valid], theirs)),
        }
        for name, (ours, theirs) in pairs.items()
    }


def _known_groups(measured: Measured) -> list[int]:
    groups = measured.space_groups[SYMPREC]
    return groups[np.isfinite(groups)].astype(int).tolist()


def _elements(measured: Measured) -> list[int]:
    return [number for composition in measured.compositions for number, _ in composition]


def _page(found: Mapping[str, Any]) -> str:
    if "wasserstein" not in found:
        return ""

    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = [
        f"<tr><td>{_WASSERSTEIN_LABELS[name]}</td><td class='n'>{show(sides['all'])}</td>"
        f"<td class='n'>{show(sides['valid'])}</td></tr>"
        for name, sides in found["wasserstein"].items()
    ]
    head = "<tr><th>Wasserstein distance to the reference</th><th>all</th><th>valid only</th></tr>"
    return f"<h2>Distributions</h2><table>{head}{''.join(rows)}</table>"
