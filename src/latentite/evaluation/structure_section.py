"""The sections of single structures: where each comes from, what is measured of it, its charges, its validity.

Charges (can the atoms carry plausible oxidation states that add up to zero, and why) stand before validity, as a
protocol may ask them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from latentite.data.properties import SYMPREC
from latentite.evaluation.measure import BeginStep, Cell, Measured, timed
from latentite.evaluation.options import Protocol
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import Counted, Section, Table, Work, all_of
from latentite.evaluation.store import ResultStore, kept_values, namespace
from latentite.metrics.charge import ChargeVerdict, charge_neutrality
from latentite.metrics.composition import SmactRule

_CHARGE_VERSION = 1
"""Raised when `metrics/charge.py` gives other verdicts."""
_ASKED = ("ask", "conditions")
"""Labels of a sampling run that stand in the table."""


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


def charge_verdicts(crystals: Crystals, stage: BeginStep) -> list[ChargeVerdict]:
    """The verdict on each crystal, from the store where it is known; new ones go there block by block."""
    packages = {name: version(name) for name in ("pymatgen-core", "numpy")}
    store = ResultStore.open(namespace("charge", _CHARGE_VERSION, packages))

    def compute(places: list[int]) -> list[str]:
        return [verdict.value for verdict in charge_neutrality([crystals.arrays[place] for place in places])]

    values = kept_values(store, crystals.hashes, compute, begin=lambda count: stage("charges", count))
    return [ChargeVerdict(value) for value in values]


def source_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """The origin of each structure, and for samples what was asked of the model."""
    crystals = work.crystals
    columns: Table = {
        "id": list(crystals.ids),
        "source": list(crystals.sources),
        "row": list(crystals.rows),
    }
    summary: dict[str, Any] = {}
    if crystals.sampling is not None:
        asked = {name: crystals.labels.get(name, ()) for name in _ASKED}
        columns |= {name: list(values) for name, values in asked.items() if any(values)}
        keys = ["status", "settings", "checkpoint", "counts"]
        keys += [key for key in ("parts", "runs") if key in crystals.sampling]  # merged, or several sources
        summary["sampling"] = {key: crystals.sampling.get(key) for key in keys}
    return Section(columns=columns, summary=summary)


def measured_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Numbers of each structure alone."""
    columns = work.measured.columns()
    groups = columns[f"space_group_{SYMPREC:g}"]
    columns["symmetric"] = [None if group is None else group != 1 for group in groups]
    unknown = {
        rule.value: sum(cell is True for cell in columns[f"{rule.value}_unknown_element"])
        for rule in SmactRule
    }
    return Section(
        columns=columns,
        failures=tuple(work.measured.failures),
        summary={"smact_unknown_element": unknown},
    )


def validity_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Validity of structure and composition, as the protocol has it."""
    protocol, measured = work.protocol, work.measured
    columns = structure_validity(protocol, measured)
    columns["composition_valid"] = table[protocol.composition_rule.value]
    columns["valid"] = all_of(columns["structure_valid"], columns["composition_valid"])
    return Section(
        columns=columns,
        counted=(
            Counted(column="min_distance_ok", label="no atoms closer than the limit"),
            Counted(column="volume_ok", label="cell not flat"),
            Counted(column="structure_valid", label="structure valid (both)"),
            Counted(column="smact_icsd24", label="composition valid, SMACT icsd24"),
            Counted(column="smact_pauling", label="composition valid, SMACT as in older papers"),
            Counted(column="charge_neutral", label="charge neutral (bond valence or composition)"),
            Counted(column="composition_valid"),
            Counted(column="valid", label="valid (structure and composition)"),
        ),
    )


def structure_validity(protocol: Protocol, measured: Measured) -> Table:
    """Columns `min_distance_ok`, `volume_ok` and `structure_valid`, as the protocol has it."""
    distance = (
        np.minimum(measured.distance, measured.own_distance) if protocol.own_images else measured.distance
    )
    far, big = distance >= protocol.min_distance, measured.volume >= protocol.min_volume
    is_known = np.isfinite(measured.own_distance)
    return {
        "min_distance_ok": [bool(f) if k else None for f, k in zip(far, is_known, strict=True)],
        "volume_ok": big.tolist(),
        # A cell too flat to be reduced has no known distance, and is no valid structure either way.
        "structure_valid": (far & big & is_known).tolist(),
    }
