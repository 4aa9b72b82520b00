"""Element references between a potential and a table: fitted once on a sample of rows, then kept.

They cost minutes, so they lie in the cache under the content of the table and the identity of the potential. Comes
after `references.py`, `table.py` and `parallel.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from latentite.base.files import parse_json, write_json
from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENTS
from latentite.energy.parallel import RelaxHow, relax_many
from latentite.energy.potential import TheoryLevel
from latentite.energy.reference_terms import ReferenceTerms
from latentite.energy.references import ElementReferences, check_same_theory, fit_references
from latentite.energy.relaxation import RelaxCell, RelaxSettings
from latentite.energy.table import FORMATION_ENERGY, EnergyTable, kept_path, read_rows

log = logging.getLogger(__name__)


def table_references(
    table: EnergyTable,
    how: RelaxHow,
    *,
    count: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    allow_mixed_theory: bool = False,
) -> ElementReferences:
    """Element references between a potential and a table, fitted on single points of a sample and kept.

    Where the potential predicts uncorrected energies of the table's functional, terms for the corrections are
    fitted as well. Rows that the potential cannot judge do not enter.

    Args:
        table: formation energies.
        how: the potential; its settings do not count.
        count: rows of the sample, see `spread_sample`.
        seed: of the sample.
        workers: processes; None for all cores.
        advance: told of how many more rows the energy is known; up to `count` in all.
        allow_mixed_theory: fit although the levels of theory of potential and table differ or are unknown.

    Raises:
        ImportError: when the potential's package is not installed.
        ValueError: when levels of theory are mixed, or no row can be judged.
    """
    how = replace(how, settings=RelaxSettings(cell=RelaxCell.NONE, energy_only=True))
    theory = how.load().card.theory
    terms = matching_terms(theory, table.theory)
    check_same_theory(theory, table.theory, allow_mixed_theory=allow_mixed_theory, terms=terms)
    identity = how.identity()
    key = {"how": identity, "table": table.sha256, "theory": str(table.theory), "terms": terms.value}
    path = None if identity is None else kept_path("references", key | {"count": count, "seed": seed})
    if path is not None and path.is_file():
        try:
            return ElementReferences.from_json(parse_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            log.warning("element references in the cache are damaged and are fitted again: %s", error)
    rows = read_rows(table)
    chosen = rows.select(spread_sample(rows, count, seed=seed))
    result = relax_many(chosen.to_arrays(), how, workers=workers, advance=advance)
    references = fit_references(
        chosen,
        result.energy,
        chosen.properties[FORMATION_ENERGY],
        terms=terms,
        theory=theory,
        table_theory=table.theory,
        allow_mixed_theory=allow_mixed_theory,
    )
    if path is not None:
        write_json(path, references.to_json())
    return references


def matching_terms(theory: TheoryLevel | None, table: TheoryLevel | None) -> ReferenceTerms:
    """Terms for the corrections where the table has them and the potential has not."""
    is_gap = theory is not None and table is not None and theory.functional == table.functional
    if (
        is_gap
        and theory is not None
        and table is not None
        and (theory.is_corrected, table.is_corrected) == (False, True)
    ):
        return ReferenceTerms.CORRECTIONS
    return ReferenceTerms.ELEMENTS


def spread_sample(
    crystals: CrystalBatch, count: int, *, seed: int = 0, per_element: int = 10
) -> Int[Tensor, " row"]:
    """Positions of rows with a formation energy, drawn so that no element of the table is left out.

    In a random order, first those rows are taken that have an element of which fewer than `per_element` were
    taken, then any others until there are `count`; more than `count` where the elements need them.

    Returns:
        [row] positions, ascending.
    """
    usable = (~crystals.properties[FORMATION_ENERGY].isnan()).nonzero().flatten().numpy()
    order = np.random.default_rng(seed).permutation(usable)
    index, numbers = crystals.crystal_index.numpy(), crystals.atomic_numbers.numpy()
    has = np.zeros((len(crystals), NUM_ELEMENTS + 1), dtype=bool)
    has[index, numbers] = True
    taken = np.zeros(NUM_ELEMENTS + 1, dtype=int)
    first = []
    for row in order.tolist():
        if (taken[has[row]] < per_element).any():
            taken += has[row]
            first.append(row)
    chosen = set(first)
    others = [row for row in order.tolist() if row not in chosen]
    return torch.tensor(sorted([*first, *others[: max(0, count - len(first))]]), dtype=torch.long)
