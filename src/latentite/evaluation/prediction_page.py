"""What page and terminal say of predicted structures."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from latentite.evaluation.protocols import MATCHERS
from latentite.match.settings import MatcherSettings
from latentite.metrics.rates import Rate

_ROWS = (
    ("k1_all_pairs", "first sample, all pairs"),
    ("k1_valid_pairs", "first sample, both sides valid"),
    ("any_all_pairs", "best of all samples, all pairs (METRe, cRMSE)"),
    ("any_valid_pairs", "best of all samples, both sides valid"),
)


def prediction_page(found: Mapping[str, Any]) -> str:
    """HTML: counts, and a table for each matcher."""
    targets, samples = found["targets"], found["samples_per_target"]
    parts = [
        f"<h2>Structure prediction</h2><p>{targets['num_targets']:,} targets of {escape(targets['name'])}, "
        f"{targets['num_formulas']:,} formulas; {targets['without_samples']:,} have no sample and count as not "
        f"matched. Samples per target: {samples['min']:,} to {samples['max']:,}.</p>"
    ]
    for matcher in MATCHERS:
        tolerances = f"{matcher.ltol:g}/{matcher.stol:g}/{matcher.angle_tol:g}°"
        rows = []
        for name, words in _ROWS:
            one = found["matchers"][matcher.name][name]
            numbers = "".join(f"<td class='n'>{_number(one[key])}</td>" for key in ("rmse", "corrected_rmse"))
            rows.append(f"<tr><td>{words}</td><td class='n'>{_rate(one)}</td>{numbers}</tr>")
        head = f"<tr><th>matched, {matcher.name} ({tolerances})</th><th></th><th>RMSE</th><th>corrected RMSE</th></tr>"
        parts.append(f"<table>{head}{''.join(rows)}</table>")
    return "".join(parts) + "<p class='small'>Each target stands in targets.csv.</p>"


def prediction_lines(found: Mapping[str, Any], matcher: MatcherSettings) -> tuple[tuple[str, str], ...]:
    """Label and value of what the terminal shows: over all pairs, by the protocol's matcher.

    Args:
        found: `prediction` of the summary.
        matcher: the protocol's.
    """
    targets, samples = found["targets"], found["samples_per_target"]
    first, best = (found["matchers"][matcher.name][f"{name}_all_pairs"] for name in ("k1", "any"))
    counts = f"{targets['num_targets']}, of which {targets['without_samples']} have no sample"
    return (
        ("targets", f"{counts}; {samples['min']} to {samples['max']} samples each"),
        (f"matched by the first sample ({matcher.name})", str(_rate(first))),
        (f"matched by any sample, METRe ({matcher.name})", str(_rate(best))),
        ("RMSE of those, first and best sample", f"{_number(first['rmse'])} and {_number(best['rmse'])}"),
        (f"cRMSE, {matcher.stol:g} for a target without match", _number(best["corrected_rmse"])),
    )


def _rate(one: Mapping[str, Any]) -> Rate:
    return Rate(numerator=one["rate"]["numerator"], denominator=one["rate"]["denominator"])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
