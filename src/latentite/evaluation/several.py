"""Several sources as one: parts of a sampled run, runs, files, in the order given.

Nothing of what was asked is lost: every attempt that a run was asked for stays counted, with its conditions. Parts of
one run give what the merged run gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from latentite.data.labels import unique_ids
from latentite.evaluation.read import Crystals, Source, find_manifest, read_crystals, require_source
from latentite.sampling.folder import Counts
from latentite.sampling.manifest import difference

log = logging.getLogger(__name__)

_SHOWN = 3
"""Sources whose names stand in a title."""


def sources_of(source: Source | Sequence[str | Path]) -> tuple[Source, ...]:
    """The sources that a user means: a list of paths and names is several, a list of structures is one.

    Raises:
        FileNotFoundError: when there is no such path, and no dataset of that name.
        ValueError: for an empty list, paths beside structures, a path twice, or a folder of runs.
    """
    sources: tuple[Any, ...] = (source,)
    if isinstance(source, list | tuple):
        are_paths = [isinstance(item, str | Path) for item in source]
        if not source or any(are_paths) != all(are_paths):
            what = "a list of both" if source else "an empty list"
            raise ValueError(f"SOURCE must be paths and names, or structures, got {what}")
        sources = tuple(source) if all(are_paths) else sources
    places = []
    for item in sources:
        require_source("SOURCE", item)
        if isinstance(item, str | Path):
            _refuse_folder_of_runs(Path(item))
            places.append(Path(item).resolve())
    twice = [str(place) for place in places if places.count(place) > 1]
    if twice:
        raise ValueError(f"SOURCE must be given once each, got {twice[0]} twice")
    return sources


def read_sources(
    sources: Sequence[Source], *, split: str, advance: Callable[[int], None] = lambda count: None
) -> Crystals:
    """All crystals of all sources, as `read_crystals` reads each.

    Raises:
        ValueError: also when two sources hold the same crystals of one run.
    """
    parts = [read_crystals(source, split=split, advance=advance) for source in sources]
    for part in parts:
        _tell_unfinished(part)
    if len(parts) == 1:
        return parts[0]
    runs = [part.sampling for part in parts if part.sampling is not None]
    for first, second in combinations([part for part in parts if part.sampling is not None], 2):
        _refuse_overlap(first, second)
    is_one_run = len(runs) == len(parts) and all(_is_same_run(runs[0], run) for run in runs[1:])
    if is_one_run:
        parts.sort(key=lambda part: (part.sampling or {})["range"]["first"])
    return _joined(parts, _joined_runs(parts, is_one_run=is_one_run) if runs else None)


def _joined(parts: Sequence[Crystals], sampling: Mapping[str, Any] | None) -> Crystals:
    names = [part.name for part in parts]
    shown = ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[:2])} and {len(names) - 2} more"
    labels = dict.fromkeys(name for part in parts for name in part.labels)
    return Crystals(
        name=shown,
        ids=tuple(unique_ids([name for part in parts for name in part.ids])),
        sources=tuple(f"{part.name}/{source}" for part in parts for source in part.sources),
        rows=tuple(row for part in parts for row in part.rows),
        arrays=tuple(arrays for part in parts for arrays in part.arrays),
        hashes=tuple(digest for part in parts for digest in part.hashes),
        rejections=tuple(
            replace(item, source=f"{part.name}/{item.source}") for part in parts for item in part.rejections
        ),
        labels={
            name: tuple(value for part in parts for value in part.labels.get(name, (None,) * len(part)))
            for name in labels
        },
        sampling=sampling,
    )


def _joined_runs(parts: Sequence[Crystals], *, is_one_run: bool) -> dict[str, Any]:
    """The summary's entry on all runs: their own words, and for parts of one run those that they share."""
    kept = ("status", "settings", "checkpoint", "range", "counts")
    runs: list[dict[str, Any]] = [
        {"folder": part.name, **{key: part.sampling.get(key) for key in kept}}
        for part in parts
        if part.sampling is not None
    ]
    counts = Counts()
    for run in runs:
        counts = counts.plus(Counts(**(run["counts"] or {})))
    joined: dict[str, Any] = {"counts": counts.to_plain(), "runs": runs}
    if is_one_run:
        statuses = sorted({str(run["status"]) for run in runs})
        settings = {name: value for name, value in runs[0]["settings"].items() if name != "shard"}
        joined |= {"status": ", ".join(statuses), "settings": settings, "checkpoint": runs[0]["checkpoint"]}
    return joined


def _is_same_run(first: Mapping[str, Any], second: Mapping[str, Any], *, without: Sequence[str] = ()) -> bool:
    """True when crystals of one index are the same in both, but for rounding."""
    return difference(first, second, without=("shard", "format", "trajectory", *without)) is None


def _refuse_overlap(first: Crystals, second: Crystals) -> None:
    one, other = first.sampling or {}, second.sampling or {}
    low = max(one["range"]["first"], other["range"]["first"])
    high = min(one["range"]["stop"], other["range"]["stop"])
    # With one request the index alone says which crystal it is, however many are asked for.
    is_one_request = all(run["range"].get("total") == run["settings"]["num_samples"] for run in (one, other))
    without = ("num_samples", "batch_size") if is_one_request else ("batch_size",)
    if low < high and _is_same_run(one, other, without=without):
        raise ValueError(
            f"SOURCE must hold each crystal once, but {first.name} and {second.name} are parts of one run that both "
            f"hold the indices {low} to {high - 1}; leave one of them out"
        )


def _refuse_folder_of_runs(path: Path) -> None:
    """A folder of run folders would be read as a heap of files, without what was asked and what failed."""
    if not path.is_dir() or find_manifest(path) is not None:
        return
    runs = [item.name for item in sorted(path.iterdir()) if item.is_dir() and find_manifest(item) is not None]
    if runs:
        raise ValueError(
            f"SOURCE must be the folder of a run, but {path} holds the folders of runs ({', '.join(runs[:_SHOWN])}"
            f"{', ...' if len(runs) > _SHOWN else ''}); give each, such as {path / runs[0]}"
        )


def _tell_unfinished(crystals: Crystals) -> None:
    """Say when a run is evaluated before its end."""
    run = crystals.sampling
    if run is None or run["status"] in ("finished", None):
        return
    asked = run["range"]["stop"] - run["range"]["first"]
    log.warning(
        "%s: the run is %s, and %d of its %d crystals count so far",
        crystals.name,
        run["status"],
        crystals.num_in,
        asked,
    )
