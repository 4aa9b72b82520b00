"""The section of structure prediction: given what a crystal is made of, is the generated structure the right one?

Targets are crystals whose structures are known. The samples of a target are those of its reduced formula, in their
order; k = 1 looks at the first, "any" at all of them. Targets of one formula (polymorphs) share its samples, so that
the rate of "any" over all pairs is METRe at once, and its corrected RMSE cRMSE (arXiv 2509.12178). A target without
samples is not matched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from latentite.base.files import write_csv
from latentite.data.properties import SYMPREC
from latentite.evaluation.markup import html_table, number_text
from latentite.evaluation.measure import Cell, Measured, measure, timed
from latentite.evaluation.options import MATCHERS, CompositionRule
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import MakeSection, Section, Work, finite
from latentite.evaluation.store import ResultStore, kept_rows, namespace
from latentite.evaluation.structure_section import charge_verdicts, structure_validity
from latentite.match.reduced import MatcherSettings
from latentite.metrics.composition import SmactRule, is_smact_valid
from latentite.metrics.crystal_structure_prediction import MatchRate, match_rate, sample_distances
from latentite.metrics.rates import Rate

_VERSION = 1
"""Raised when `metrics/crystal_structure_prediction.py` gives other distances."""
_ROWS = (
    ("k1_all_pairs", "first sample, all pairs"),
    ("k1_valid_pairs", "first sample, both sides valid"),
    ("any_all_pairs", "best of all samples, all pairs (METRe, cRMSE)"),
    ("any_valid_pairs", "best of all samples, both sides valid"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predicted:
    """Targets, their samples and the distances between them."""

    targets: Crystals
    formulas: list[str]
    """Of the targets."""
    samples: Int[np.ndarray, "target sample"]
    """Positions of the samples of each target in their order, at the end -1 for none."""
    is_valid: Bool[np.ndarray, "target sample"]
    """True where both sides are valid under the protocol."""
    distances: dict[str, Float[np.ndarray, "target sample"]]
    """Normalised RMS distance by matcher, NaN where they do not match."""

    @property
    def num_samples(self) -> Int[np.ndarray, " target"]:
        """Samples of each target."""
        return (self.samples >= 0).sum(axis=1)


def prediction_section(targets: Crystals) -> MakeSection:
    """The section for these targets."""

    def make(work: Work, table: Mapping[str, list[Cell]]) -> Section:
        """Samples beside the targets of their formulas."""
        with timed(work.seconds, "targets"):
            result = _find(work, table, targets)
        content = _summary(result, work)
        return Section(
            summary={"prediction": content},
            page=lambda: prediction_page(content),
            lines=prediction_lines(content, work.protocol.matcher),
            files={"targets.csv": lambda path: _write(path, result)},
        )

    return make


def samples_by_formula(formulas: Sequence[str], targets: Sequence[str]) -> Int[np.ndarray, "target sample"]:
    """Positions of the samples of each target in their order, filled up with -1.

    Args:
        formulas: of the samples, reduced.
        targets: of the targets, reduced.
    """
    places: dict[str, list[int]] = {}
    for place, formula in enumerate(formulas):
        places.setdefault(formula, []).append(place)
    rows = [places.get(formula, []) for formula in targets]
    table = np.full((len(rows), max(map(len, rows), default=0) or 1), -1)
    for row, members in zip(table, rows, strict=True):
        row[: len(members)] = members
    return table


def _find(work: Work, table: Mapping[str, list[Cell]], targets: Crystals) -> _Predicted:
    measured = measure(
        targets,
        workers=work.workers,
        seconds=work.seconds,
        stage=work.stage,
        symprecs=(SYMPREC,),
        name="targets: ",
    )
    samples = samples_by_formula(work.measured.formulas, measured.formulas)
    valid = np.array([*(cell is True for cell in table["valid"]), False])  # the last stands for no sample
    return _Predicted(
        targets=targets,
        formulas=measured.formulas,
        samples=samples,
        is_valid=_valid_targets(work, targets, measured)[:, None] & valid[samples],
        distances={matcher.name: _distances(work, targets, samples, matcher) for matcher in MATCHERS},
    )


def _valid_targets(work: Work, targets: Crystals, measured: Measured) -> Bool[np.ndarray, " target"]:
    rule = work.protocol.composition_rule
    if rule is CompositionRule.CHARGE_NEUTRAL:
        verdicts = charge_verdicts(targets, work.stage)
        composition = np.array([verdict.is_neutral for verdict in verdicts], dtype=bool)
    else:
        smact = SmactRule(rule.value)
        composition = np.array([is_smact_valid(c, smact) for c in measured.compositions], dtype=bool)
    structure = structure_validity(work.protocol, measured)["structure_valid"]
    return composition & np.array(structure, dtype=bool)


def _distances(
    work: Work, targets: Crystals, samples: np.ndarray, matcher: MatcherSettings
) -> Float[np.ndarray, "target sample"]:
    """Kept by a target and its samples."""
    crystals = work.crystals
    rows = [row[row >= 0].tolist() for row in samples]
    asked = [place for place, row in enumerate(rows) if row]
    keys = [
        hashlib.sha256(
            "\n".join([targets.hashes[place], *(crystals.hashes[k] for k in rows[place])]).encode()
        ).hexdigest()
        for place in asked
    ]

    def compute(block: list[int]) -> list[np.ndarray]:
        chosen = [asked[number] for number in block]
        distances = sample_distances(
            [targets.arrays[place] for place in chosen],
            [[crystals.arrays[k] if k >= 0 else None for k in samples[place]] for place in chosen],
            settings=matcher,
            workers=work.workers,
        )
        return [row[: len(rows[place])] for row, place in zip(distances, chosen, strict=True)]

    settings = {"matcher": astuple(matcher), "pymatgen-core": version("pymatgen-core")}
    store = ResultStore.open(namespace("prediction", _VERSION, settings))
    name = f"match targets, {matcher.name}"
    distances = np.full(samples.shape, np.nan)
    rows_of_asked = kept_rows(store, keys, compute, begin=lambda count: work.stage(name, count))
    for place, row in zip(asked, rows_of_asked, strict=True):
        distances[place, : len(row)] = row
    return distances


def _summary(result: _Predicted, work: Work) -> dict[str, Any]:
    formulas = set(result.formulas)
    num_samples = result.num_samples
    content: dict[str, Any] = {
        "targets": {
            "name": result.targets.name,
            "content_hash": result.targets.content_hash,
            "num_targets": len(result.targets),
            "num_failed": len(result.targets.rejections),
            "num_formulas": len(formulas),
            "without_samples": int((num_samples == 0).sum()),
        },
        "samples_per_target": {
            "min": int(num_samples.min()),
            "max": int(num_samples.max()),
        },
        "samples_without_target": sum(formula not in formulas for formula in work.measured.formulas),
        "matchers": {},
    }
    for matcher in MATCHERS:
        distances = result.distances[matcher.name]
        content["matchers"][matcher.name] = {
            f"{first}_{pairs}": _to_plain(match_rate(distances, k=k, is_valid=is_valid, stol=matcher.stol))
            for first, k in (("k1", 1), ("any", None))
            for pairs, is_valid in (("all_pairs", None), ("valid_pairs", result.is_valid))
        }
    return content


def _to_plain(result: MatchRate) -> dict[str, Any]:
    return {
        "rate": result.rate.to_plain(),
        "rmse": finite(result.rmse),
        "corrected_rmse": finite(result.corrected_rmse),
    }


def _write(path: Path, result: _Predicted) -> None:
    """One row per target."""
    header = ["id", "formula", "samples"]
    for matcher in MATCHERS:
        header += [f"{name}_{matcher.name}" for name in ("matched_k1", "matched_any", "rms_k1", "best_rms")]
    rows = []
    for place, name in enumerate(result.targets.ids):
        row: list[object] = [name, result.formulas[place], int(result.num_samples[place])]
        for matcher in MATCHERS:
            distances = result.distances[matcher.name][place]
            first, known = distances[0], distances[np.isfinite(distances)]
            best = known.min() if len(known) else np.nan
            row += [*(not math.isnan(value) for value in (first, best)), float(first), float(best)]
        rows.append(row)
    write_csv(path, header, rows)


def prediction_page(content: Mapping[str, Any]) -> str:
    """HTML: counts, and a table for each matcher."""
    targets, samples = content["targets"], content["samples_per_target"]
    parts = [
        f"<h2>Structure prediction</h2><p>{targets['num_targets']:,} targets of {escape(targets['name'])}, "
        f"{targets['num_formulas']:,} formulas; {targets['without_samples']:,} have no sample and count as not "
        f"matched. Samples per target: {samples['min']:,} to {samples['max']:,}.</p>"
    ]
    for matcher in MATCHERS:
        tolerances = f"{matcher.ltol:g}/{matcher.stol:g}/{matcher.angle_tol:g}°"
        rows = []
        for name, words in _ROWS:
            one = content["matchers"][matcher.name][name]
            errors = [number_text(one[key], ".4f") for key in ("rmse", "corrected_rmse")]
            rows.append([words, str(_rate_of(one)), *errors])
        head = [f"matched, {matcher.name} ({tolerances})", "", "RMSE", "corrected RMSE"]
        parts.append(html_table(head, rows))
    return "".join(parts) + "<p class='small'>Each target stands in targets.csv.</p>"


def prediction_lines(content: Mapping[str, Any], matcher: MatcherSettings) -> tuple[tuple[str, str], ...]:
    """Label and value of what the terminal shows: over all pairs, by the protocol's matcher.

    Args:
        content: `prediction` of the summary.
        matcher: the protocol's.
    """
    targets, samples = content["targets"], content["samples_per_target"]
    first, best = (content["matchers"][matcher.name][f"{name}_all_pairs"] for name in ("k1", "any"))
    counts = f"{targets['num_targets']}, of which {targets['without_samples']} have no sample"
    return (
        ("targets", f"{counts}; {samples['min']} to {samples['max']} samples each"),
        (f"matched by the first sample ({matcher.name})", str(_rate_of(first))),
        (f"matched by any sample, METRe ({matcher.name})", str(_rate_of(best))),
        (
            "RMSE of those, first and best sample",
            f"{number_text(first['rmse'], '.4f')} and {number_text(best['rmse'], '.4f')}",
        ),
        (f"cRMSE, {matcher.stol:g} for a target without match", number_text(best["corrected_rmse"], ".4f")),
    )


def _rate_of(one: Mapping[str, Any]) -> Rate:
    return Rate(numerator=one["rate"]["numerator"], denominator=one["rate"]["denominator"])
