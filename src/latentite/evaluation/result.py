"""The result of an evaluation: one row per structure, what was counted, and `summary.json` of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from latentite import __version__
from latentite.evaluation.measure import Measured
from latentite.evaluation.protocols import MATCHERS, Protocol
from latentite.evaluation.read import Crystals
from latentite.evaluation.table import Failure, Section, Table
from latentite.metrics.geometry import SYMPRECS
from latentite.metrics.rates import Rate

_PACKAGES = ("pymatgen", "pymatgen-core", "smact", "spglib", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One row per structure, and what was counted."""

    crystals: Crystals
    reference: Crystals | None
    protocol: Protocol
    relax: str
    table: Table
    """Columns, in the order of the crystals."""
    failures: tuple[Failure, ...]
    rates: dict[str, Rate]
    """Of the structures for which the metric has a value; `readable` and `valid_unique_novel` of all that came
    in."""
    labels: dict[str, str]
    """Words for those rates that people are shown, in their order."""
    sections: tuple[Section, ...]
    """One for each group of metrics: its part of summary and page."""
    measured: Measured
    reference_measured: Measured | None
    seconds: dict[str, float]
    """Wall time of each step."""

    def column(self, name: str) -> np.ndarray:
        """A column as numbers, NaN where it is empty."""
        return np.array([np.nan if cell is None else cell for cell in self.table[name]], dtype=float)


def summary(result: Evaluation) -> dict[str, Any]:
    """Plain values for `summary.json`; numbers that do not exist are null."""
    crystals, protocol = result.crystals, result.protocol
    rates: dict[str, Any] = {}
    for name, rate in result.rates.items():
        rates[name] = {"label": result.labels.get(name), **rate.to_plain()}
        if rate.denominator < len(crystals):
            rates[name]["not_computed"] = len(crystals) - rate.denominator
    content: dict[str, Any] = {
        "source": crystals.name,
        "source_content_hash": crystals.content_hash,
        "num_in": crystals.num_in,
        "num_scored": len(crystals),
        "num_failed": len(crystals.rejections),
        "failures_by_step": dict(Counter(item.step for item in result.failures)),
        "protocol": {
            "name": protocol.name,
            "note": protocol.note,
            "matcher": protocol.matcher.name,
            "composition_rule": protocol.composition_rule.value,
            "min_distance": protocol.min_distance,
            "min_volume": protocol.min_volume,
            "own_images": protocol.own_images,
            "judges_relaxed": protocol.judges_relaxed,
            "stable_below": protocol.stable_below,
            "msun": protocol.msun,
        },
        "relax": result.relax,
        "rates": rates,
        "symprecs": list(SYMPRECS),
        "matchers": {m.name: {"ltol": m.ltol, "stol": m.stol, "angle_tol": m.angle_tol} for m in MATCHERS},
        "reference": None,
        "versions": {"latentite": __version__, **{name: _version(name) for name in _PACKAGES}},
        "seconds": result.seconds,
    }
    if result.reference is not None:
        content["reference"] = {
            "name": result.reference.name,
            "content_hash": result.reference.content_hash,
            "num_structures": len(result.reference),
            "num_failed": len(result.reference.rejections),
        }
    for section in result.sections:
        content |= section.summary
    return content


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
