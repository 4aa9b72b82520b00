"""The folder that an evaluation leaves.

Its files:

    evaluation.json  what is evaluated and how, and whether it is finished (`resume.py`, which writes it)
    structures.csv   one row per structure, every metric; an empty cell is a metric that gave nothing
    failed.csv       source, row, id, step and reason of every failure
    summary.json     every rate with numerator, denominator and interval; settings, hashes, versions
    report.html      one page for people, self-contained (`page.py`)
    relaxed.extxyz   with `relax`: geometry, energy, forces, stress and steps of each structure
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from latentite import __version__
from latentite.base.files import replacing, write_json
from latentite.base.tables import write_csv
from latentite.evaluation.page import make_page
from latentite.evaluation.protocols import MATCHERS
from latentite.evaluation.run import Evaluation
from latentite.metrics.symmetry import SYMPRECS

_PACKAGES = ("pymatgen", "pymatgen-core", "smact", "spglib", "numpy", "scipy")


def write_report(result: Evaluation, out_dir: str | Path, *, seed: int = 0) -> None:
    """Write the folder that the module's docstring describes; an older report there is replaced.

    Args:
        result: what was found.
        out_dir: the folder; made when missing.
        seed: draws the structures of the gallery.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(result.table)
    rows = zip(*result.table.values(), strict=True)
    write_csv(folder / "structures.csv", columns, rows)
    failures = ([item.source, item.row, item.id, item.step, item.reason] for item in result.failures)
    write_csv(folder / "failed.csv", ["source", "row", "id", "step", "reason"], failures)
    for section in result.sections:
        for name, write in section.files.items():
            write(folder / name)
    content = summary(result)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(make_page(result, content, seed=seed), encoding="utf-8")
    write_json(folder / "summary.json", content)


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
