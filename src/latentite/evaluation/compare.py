"""Two finished evaluations side by side, with intervals of their differences: `latentite evaluate compare A B`.

    comparison = compare_runs("report_a", "report_b")
    print(comparison.rates[0].difference)

Reads the folders that `report.py` leaves; needs neither structures nor the reference again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from latentite.base.files import parse_json, replacing, write_json
from latentite.evaluation.markup import Html, document, html_table
from latentite.evaluation.report import read_record
from latentite.metrics.rates import Difference, Rate, difference

MUST_AGREE = (
    "protocol.name",
    "protocol.matcher",
    "protocol.composition_rule",
    "protocol.min_distance",
    "protocol.min_volume",
    "protocol.own_images",
    "protocol.judges_relaxed",
    "protocol.stable_below",
    "protocol.msun",
    "matchers",
    "symprecs",
    "relax",
    "reference.content_hash",
    "energies.potential",
    "energies.settings",
    # By content: the same tables may have been named, or given by a path.
    "energies.hull.sha256",
    "energies.hull.theory",
    "energies.hull.element_references.terms",
    "energies.hull.element_references.num_rows",
    "energies.hull.element_references.mean_absolute_residual",
    "features.seed",
    "features.latents.sha256",
    "conditions.tolerances",
    "prediction.targets.content_hash",
)
"""Places in `summary.json` without which numbers mean different things. A summary that lacks one agrees with none."""

OPTIONAL = (
    "reference",
    "energies",
    "energies.hull",
    "features",
    "features.latents",
    "conditions",
    "prediction",
)
"""Parts of `summary.json` that an evaluation may do without: two without it agree."""

NOT_SAID = "not said"

SIDE_BY_SIDE = ("distributions", "features", "prediction")
"""Parts of `summary.json` whose numbers stand side by side."""

_NAMES = ("id", "source", "row", "ask", "conditions", "formula", "chemical_system")
_PREFIXES_OF_NAMES = ("asked_", "space_group_", "duplicate_of_", "matched_reference_")
"""Columns that may look like numbers and are names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePair:
    """A rate of both runs; None where a run has not counted it."""

    name: str
    label: str | None
    """For people; None for a rate that only the files have."""
    first: Rate | None
    second: Rate | None
    difference: Difference | None
    """Second minus first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberPair:
    """A number of both sets as a whole; None where a run has none."""

    name: str
    first: float | None
    second: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnPair:
    """A column of numbers of both runs."""

    name: str
    counts: tuple[int, int]
    """Structures with a value."""
    medians: tuple[float, float]
    p_value: float
    """Two-sided, of equal distributions (Mann-Whitney)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs side by side: what they share and where they differ."""

    names: tuple[str, str]
    """Of the sources."""
    folders: tuple[str, str]
    counts: tuple[dict[str, int], dict[str, int]]
    """`in`, `scored` and `failed`."""
    differing: dict[str, tuple[Any, Any]]
    """Settings that must agree and do not: empty unless forced."""
    versions: dict[str, tuple[Any, Any]]
    """Packages whose versions differ."""
    rates: tuple[RatePair, ...]
    numbers: tuple[NumberPair, ...]
    columns: tuple[ColumnPair, ...]

    def to_plain(self) -> dict[str, Any]:
        """For `compare.json`."""
        return {
            "names": list(self.names),
            "folders": list(self.folders),
            "counts": list(self.counts),
            "differing_settings": {name: list(values) for name, values in self.differing.items()},
            "differing_versions": {name: list(values) for name, values in self.versions.items()},
            "rates": {
                pair.name: {
                    "label": pair.label,
                    "first": pair.first and pair.first.to_plain(),
                    "second": pair.second and pair.second.to_plain(),
                    "second_minus_first": pair.difference and pair.difference.to_plain(),
                }
                for pair in self.rates
            },
            "numbers": {pair.name: [pair.first, pair.second] for pair in self.numbers},
            "columns": {
                pair.name: {
                    "counts": list(pair.counts),
                    "medians": list(pair.medians),
                    "mann_whitney_p": pair.p_value,
                }
                for pair in self.columns
            },
        }


def compare_runs(first: str | Path, second: str | Path, *, force: bool = False) -> Comparison:
    """Compare two folders of `latentite evaluate`.

    The intervals take the two sets for independent samples: for the same structures evaluated twice, or parts of one
    set, they are too wide or too narrow.

    Args:
        first: a folder.
        second: the one whose gain is asked for: differences are second minus first.
        force: compare also what was measured differently.

    Raises:
        FileNotFoundError: when a folder holds no evaluation.
        ValueError: when one is not finished, does not say how it was made, or was made with other settings
            (`MUST_AGREE`).
    """
    folders = (Path(first), Path(second))
    summaries = (_read_summary(folders[0]), _read_summary(folders[1]))
    differing = _differing(folders, summaries, force=force)
    if differing and not force:
        said = "; ".join(f"{name} is {a!r} and {b!r}" for name, (a, b) in differing.items())
        raise ValueError(
            f"two evaluations must have the same settings to be compared, got others: {said}; evaluate both in the "
            "same way, or add --force"
        )
    packages = dict.fromkeys(name for summary in summaries for name in summary["versions"])
    versions = {name: _at(summaries, f"versions.{name}") for name in packages}
    return Comparison(
        names=(summaries[0]["source"], summaries[1]["source"]),
        folders=(str(first), str(second)),
        counts=(_counts(summaries[0]), _counts(summaries[1])),
        differing=differing,
        versions={name: values for name, values in versions.items() if values[0] != values[1]},
        rates=tuple(_rates(summaries[0]["rates"], summaries[1]["rates"])),
        numbers=tuple(_numbers(summaries)),
        columns=tuple(_columns(_read_numbers(folders[0]), _read_numbers(folders[1]))),
    )


def write_comparison(comparison: Comparison, out_dir: str | Path) -> None:
    """Write `compare.json` and `compare.html` into a folder, which is made when missing."""

    folder = Path(out_dir)
    with replacing(folder / "compare.html") as temporary:
        temporary.write_text(_page(comparison), encoding="utf-8")
    write_json(folder / "compare.json", comparison.to_plain())


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} must be the folder of an evaluation, got none: there is no {path}")
    record = read_record(folder)
    if record is not None and record["status"] != "finished":
        raise ValueError(
            f"the evaluation in {folder} must be finished, got one that is {record['status']}; "
            "the same command with --resume goes on with it"
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "rates" not in content:
        raise ValueError(f"{path} must be the summary of an evaluation, got something else; evaluate again")
    return content


def _differing(
    folders: tuple[Path, Path], summaries: tuple[Mapping[str, Any], Mapping[str, Any]], *, force: bool
) -> dict[str, tuple[Any, Any]]:
    """The settings of both that must agree and do not."""
    differing = {}
    for name in MUST_AGREE:
        settings = [_setting(summary, name) for summary in summaries]
        for folder, setting in zip(folders, settings, strict=True):
            if setting == NOT_SAID and not force:
                raise ValueError(
                    f"{folder / 'summary.json'} must say {name}, which another version of latentite did not write: "
                    "evaluate again, or add --force"
                )
        if settings[0] != settings[1] or NOT_SAID in settings:
            differing[name] = (settings[0], settings[1])
    return differing


def _setting(summary: Mapping[str, Any], place: str) -> Any:
    """A setting; None in a part that the evaluation did without, `NOT_SAID` where it should stand and does not."""
    content: Any = summary
    keys = place.split(".")
    for depth, key in enumerate(keys, start=1):
        is_optional = ".".join(keys[:depth]) in OPTIONAL
        if not isinstance(content, Mapping) or (key not in content and not is_optional):
            return NOT_SAID
        content = content.get(key)
        if content is None and is_optional:
            return None
    return (
        content or None if isinstance(content, Mapping) else content
    )  # no tolerances are no section of them


def _at(summaries: tuple[Mapping[str, Any], Mapping[str, Any]], place: str) -> tuple[Any, Any]:
    def value(content: Any) -> Any:
        for key in place.split("."):
            content = content.get(key) if isinstance(content, Mapping) else None
        return content

    return value(summaries[0]), value(summaries[1])


def _counts(summary: Mapping[str, Any]) -> dict[str, int]:
    return {name: summary[f"num_{name}"] for name in ("in", "scored", "failed")}


def _rates(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[RatePair]:
    def rate(content: Mapping[str, Any] | None) -> Rate | None:
        if content is None:
            return None
        return Rate(numerator=content["numerator"], denominator=content["denominator"])

    for name in {**first, **second}:
        one, other = rate(first.get(name)), rate(second.get(name))
        change = None if one is None or other is None else difference(other, one)
        label = (second.get(name) or first[name]).get("label")
        yield RatePair(name=name, label=label, first=one, second=other, difference=change)


def _numbers(summaries: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Iterator[NumberPair]:
    sides = [{k: v for part in SIDE_BY_SIDE for k, v in _leaves(part, s.get(part))} for s in summaries]
    for name in sides[0] | sides[1]:
        yield NumberPair(name=name, first=sides[0].get(name), second=sides[1].get(name))


def _leaves(place: str, content: Any) -> Iterator[tuple[str, float]]:
    if isinstance(content, Mapping) and "numerator" in content:
        if content["rate"] is not None:
            yield place, content["rate"]
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(f"{place}.{key}", value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield place, content


def _read_numbers(folder: Path) -> dict[str, Float[np.ndarray, " structure"]]:
    """Columns of `structures.csv` of which every cell that is not empty is a number, without the empty cells."""
    columns = {}
    with (folder / "structures.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for name, cells in zip(header, zip(*rows, strict=True), strict=False):
        if name in _NAMES or name.startswith(_PREFIXES_OF_NAMES):
            continue
        try:
            columns[name] = np.array([float(cell) for cell in cells if cell])
        except ValueError:
            continue
    return columns


def _columns(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Iterator[ColumnPair]:
    from scipy.stats import mannwhitneyu

    for name, one in first.items():
        other = second.get(name, np.array([]))
        if len(one) and len(other):
            yield ColumnPair(
                name=name,
                counts=(len(one), len(other)),
                medians=(float(np.median(one)), float(np.median(other))),
                p_value=float(mannwhitneyu(one, other).pvalue),
            )


def _page(comparison: Comparison) -> str:
    """The whole page as text."""
    names = [escape(name) for name in comparison.names]
    columns = [f"A: {comparison.names[0]}", f"B: {comparison.names[1]}"]
    counts = "; ".join(
        f"<b>{letter}</b> {escape(folder)}: {count['in']:,} in = {count['scored']:,} scored + "
        f"{count['failed']:,} failed"
        for letter, folder, count in zip("AB", comparison.folders, comparison.counts, strict=True)
    )
    parts = [
        f"<h1>{names[0]} and {names[1]}</h1><p>{counts}.</p>",
        *(f"<p><b>{escape(line)}</b></p>" for line in warnings(comparison)),
        "<h2>Rates</h2>",
        html_table(["", *columns, "B - A", "95 %"], [_rate_row(pair) for pair in comparison.rates]),
        "<p class='small'>In bold: the 95 % interval of the difference (Newcombe's hybrid score interval) excludes 0. "
        "It takes the two sets for independent samples; of twenty rates that do not differ, one is expected to "
        "be bold.</p>",
        "<h2>Sets as a whole</h2>",
        html_table(["", *columns], [_number_row(pair) for pair in comparison.numbers]),
        "<h2>Medians</h2>",
        html_table(["", *columns, "p (Mann-Whitney)"], [_median_row(pair) for pair in comparison.columns]),
    ]
    return document(" and ".join(comparison.names), parts)


def warnings(comparison: Comparison) -> list[str]:
    """Sentences on what stands in the way of reading the numbers as a comparison."""
    settings = [
        f"Not comparable: {name} is {first!r} and {second!r}."
        for name, (first, second) in comparison.differing.items()
    ]
    versions = [
        f"Other versions of {name}: {first} and {second}."
        for name, (first, second) in comparison.versions.items()
    ]
    return settings + versions


def share(rate: Rate | None) -> str:
    """A rate as people read it, short enough for a table."""
    if rate is None or rate.denominator == 0:
        return "–"
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def change(pair: RatePair) -> tuple[str, str]:
    """Difference and interval of a pair in percentage points."""
    gap = pair.difference
    if gap is None or gap.value != gap.value:
        return "–", "–"
    return f"{100 * gap.value:+.1f}", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"


def _rate_row(pair: RatePair) -> list[str]:
    gap, interval = change(pair)
    if pair.difference is not None and pair.difference.is_clear:
        gap = Html(f"<b>{gap}</b>")
    return [pair.label or pair.name, share(pair.first), share(pair.second), gap, interval]


def _number_row(pair: NumberPair) -> list[str]:
    values = ["–" if value is None else f"{value:.4g}" for value in (pair.first, pair.second)]
    return [pair.name.replace(".", ", ").replace("_", " "), *values]


def _median_row(pair: ColumnPair) -> list[str]:
    return [pair.name, *(f"{median:.4g}" for median in pair.medians), f"{pair.p_value:.2g}"]
