"""The folder that an evaluation leaves.

    structures.csv   one row per structure, every metric; an empty cell is a metric that gave nothing
    failed.csv       source, row, id, step and reason of every failure
    summary.json     every rate with numerator, denominator and interval; settings, hashes, versions
    report.html      one page for people, self-contained (`page.py`)

Comes after `run.py`, which calls it.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from latentite import __version__
from latentite.data.properties import SYMPREC
from latentite.evaluation.charts import element_shares
from latentite.evaluation.page import make_page
from latentite.evaluation.protocols import MATCHERS
from latentite.evaluation.run import Cell, Evaluation
from latentite.files import replacing, write_json
from latentite.metrics.distributions import entropy_bits, jensen_shannon_bits, wasserstein
from latentite.metrics.symmetry import SYMPRECS

_PACKAGES = ("pymatgen", "pymatgen-core", "smact", "moyopy", "numpy", "scipy")


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
    _write_csv(folder / "structures.csv", columns, ([_text(cell) for cell in row] for row in rows))
    failures = ([item.source, item.row, item.id, item.step, item.reason] for item in result.failures)
    _write_csv(folder / "failed.csv", ["source", "row", "id", "step", "reason"], failures)
    content = summary(result)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(make_page(result, content, seed=seed), encoding="utf-8")
    write_json(folder / "summary.json", content)


def summary(result: Evaluation) -> dict[str, Any]:
    """Plain values for `summary.json`; numbers that do not exist are null."""
    crystals, protocol = result.crystals, result.protocol
    rates: dict[str, Any] = {}
    for name, rate in result.rates.items():
        rates[name] = rate.to_plain()
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
            "smact": protocol.smact.value,
            "min_distance": protocol.min_distance,
            "min_volume": protocol.min_volume,
            "own_images": protocol.own_images,
        },
        "relax": result.relax,
        "rates": rates,
        "smact_unknown_element": {
            name: sum(cell is True for cell in result.table[f"{name}_unknown_element"])
            for name in ("smact_pauling", "smact_icsd24")
        },
        "distributions": distributions(result),
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
            "not_comparable": result.reference_failures,
        }
    return content


def distributions(result: Evaluation) -> dict[str, Any]:
    """Entropies of the generated structures, and their distances from the reference; units in the names.

    `all` is over all structures, `valid` over those that are valid under the protocol, as CDVAE has it.
    """
    generated, reference = result.measured, result.reference_measured
    groups = result.table[f"space_group_{SYMPREC:g}"]
    found: dict[str, Any] = {
        "entropy_bits": {
            "space_group": _number(entropy_bits(group for group in groups if group is not None)),
            "formula": _number(entropy_bits(generated.formulas)),
            "chemical_system": _number(entropy_bits(generated.chemical_systems)),
        }
    }
    if reference is None:
        return found
    is_valid = np.array([cell is True for cell in result.table["valid"]], dtype=bool)
    pairs = {
        "density_g_per_cm3": (generated.density, reference.density),
        "num_elements": (generated.num_elements, reference.num_elements),
        "num_atoms": (generated.num_atoms, reference.num_atoms),
        "volume_per_atom_A3": (generated.volume_per_atom, reference.volume_per_atom),
    }
    found["wasserstein"] = {
        name: {
            "all": _number(wasserstein(ours, theirs)),
            "valid": _number(wasserstein(ours[is_valid], theirs)),
        }
        for name, (ours, theirs) in pairs.items()
    }
    theirs = reference.space_groups[SYMPREC]
    found["jensen_shannon_bits"] = {
        "space_group": _number(
            jensen_shannon_bits((g for g in groups if g is not None), theirs[np.isfinite(theirs)].tolist())
        ),
        "element": _number(
            jensen_shannon_bits(
                (number for c in generated.compositions for number, _ in c),
                (number for c in reference.compositions for number, _ in c),
            )
        ),
    }
    absent = (element_shares(generated) > 0) & (element_shares(reference) == 0)
    found["elements_not_in_reference"] = np.flatnonzero(absent).tolist()
    return found


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
