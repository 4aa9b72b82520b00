"""The section of charges: can the atoms carry plausible oxidation states that add up to zero, and why.

Before the section of validity, as a protocol may ask it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version

from latentite.evaluation.measure import Cell
from latentite.evaluation.read import Crystals
from latentite.evaluation.steps import Stage, timed
from latentite.evaluation.store import ResultStore, namespace
from latentite.evaluation.table import Section, Work
from latentite.metrics.charge import ChargeVerdict, charge_neutrality

_VERSION = 1
"""Raised when `metrics/charge.py` gives other verdicts."""
_AT_ONCE = 512


def charge_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Columns `charge_verdict` and `charge_neutral`; the rate stands with the validity of compositions."""
    with timed(work.seconds, "charges"):
        verdicts = charge_verdicts(work.crystals, work.stage)
    return Section(
        columns={
            "charge_verdict": [verdict.value for verdict in verdicts],
            "charge_neutral": [verdict.is_neutral for verdict in verdicts],
        },
        summary={"charge_verdicts": dict(Counter(verdict.value for verdict in verdicts))},
    )


def charge_verdicts(crystals: Crystals, stage: Stage) -> list[ChargeVerdict]:
    """The verdict on each crystal, from the store where it is known; new ones go there block by block."""
    packages = {name: version(name) for name in ("pymatgen-core", "numpy")}
    store = ResultStore.open(namespace("charge", _VERSION, packages))
    known = store.get_many(crystals.hashes)
    first = {digest: place for place, digest in enumerate(crystals.hashes) if digest not in known}
    missing = list(first)
    advance = stage("charges", len(missing)) if missing else lambda count: None
    for start in range(0, len(missing), _AT_ONCE):
        block = missing[start : start + _AT_ONCE]
        verdicts = charge_neutrality([crystals.arrays[first[digest]] for digest in block])
        found = {digest: verdict.value for digest, verdict in zip(block, verdicts, strict=True)}
        store.put_many(found)
        known |= found
        advance(len(block))
    return [ChargeVerdict(known[digest]) for digest in crystals.hashes]
