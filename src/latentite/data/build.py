"""Sources to data sets, through the cache.

`build_split` makes one `CrystalDataset` of one source; `build_splits` those of the splits of one data set, whose
columns are decided on together; `load_splits` those of a folder with train, val and test files; `read_source` one of
whatever a user names. All look into the cache first, under names that change with the content of the source, the
canonical form and the limits, so that nothing stale is ever served. Crystals, the cells of all their columns, and what
is computed from the crystals lie in files of their own: other labels of the same source need no crystal to be parsed
again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from latentite.base.files import cache_dir as default_cache_dir
from latentite.data.cells import derived_columns
from latentite.data.dataset import CrystalDataset, read_dataset, read_rejections
from latentite.data.labels import (
    DecidedLabels,
    LabelRequest,
    SplitLabels,
    decide_labels,
    log_labels,
    read_decided,
    request_key,
    share_categories,
    with_labels,
    write_decided,
)
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.data.readers.records import Rejection, Source
from latentite.data.source_rows import cache_key, read_rows
from latentite.data.sources import DATASETS, SPLIT_ENDINGS, resolve, split_files

log = logging.getLogger(__name__)

WHOLE = "whole"
"""Key of the one result of a source that is still to be divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """One built split; `num_in = len(dataset) + len(rejections)`."""

    dataset: CrystalDataset
    rejections: tuple[Rejection, ...]
    num_in: int
    path: Path | None
    """The cache file of the crystals, None when none was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltSplits:
    """The built splits of one data set, and what there is to be said of their columns."""

    results: dict[str, BuildResult]
    labels: DecidedLabels


def build_split(
    source: Source,
    *,
    options: BuildOptions | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    use_cache: bool = True,
) -> BuildResult:
    """The dataset of one source, from the cache when it holds exactly this one.

    Args:
        source: a file, a folder, a list of crystals, or one of these with a table of labels (`Labelled`).
        options: limits, labels and canonical form.
        cache_dir: where caches live; None for `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`.
        workers: processes; None for all cores.
        progress: show a progress bar when the terminal can.
        use_cache: False neither reads nor writes the cache.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source as a whole is unusable, or a property that was asked for does not exist.
    """
    built = build_splits(
        {WHOLE: source},
        options=options,
        cache_dir=cache_dir,
        workers=workers,
        progress=progress,
        use_cache=use_cache,
    )
    log_labels(built.labels)
    return built.results[WHOLE]


def build_splits(
    sources: Mapping[str, Source],
    *,
    options: BuildOptions | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    use_cache: bool = True,
) -> BuiltSplits:
    """The splits of one data set, each from its source; what a column is, is decided once for all of them.

    Args: see `build_split`; `sources` by split.

    Raises:
        FileNotFoundError: when a path does not exist.
        ValueError: when a source as a whole is unusable, or a property that was asked for does not exist or cannot be
            read.
    """
    options = options or BuildOptions()
    folder = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) if use_cache else None
    request = LabelRequest(
        properties=options.properties, categorical=options.categorical, if_present=options.if_present
    )
    keys = {split: cache_key(source, options) if folder else "" for split, source in sources.items()}
    paths = {split: folder and folder / "packed" / f"{key}.safetensors" for split, key in keys.items()}
    kept = folder and folder / "decided" / f"{request_key(keys, asdict(options))}.safetensors"
    decided = None if kept is None else read_decided(kept)
    wanted = request.names() if decided is None else ()
    rows = {
        split: read_rows(source, options, workers, progress, path=paths[split], wanted=wanted)
        for split, source in sources.items()
    }
    if decided is None:
        known = {}
        for split, content in rows.items():
            derived = derived_columns(
                options.derived,
                content.crystals.crystals,
                symprec=options.symprec,
                workers=workers,
                near=paths[split],
            )
            known[split] = SplitLabels(raw=content.labels, ids=content.crystals.ids, derived=derived)
        decided = decide_labels(known, request)
        if kept is not None:
            write_decided(kept, decided)
    results = {}
    for split, content in rows.items():
        dataset = with_labels(content.crystals, decided.properties[split], decided.categories)
        num_in = len(dataset) + len(content.rejections)
        results[split] = BuildResult(
            dataset=dataset, rejections=content.rejections, num_in=num_in, path=paths[split]
        )
    return BuiltSplits(results=results, labels=decided)


def load_splits(
    data_dir: str | Path,
    *,
    options: BuildOptions | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, CrystalDataset]:
    """The splits of a folder by name: one made by `latentite data build`, or one with train, val and test
    files.

    Files that are already built are read as they are; tables are built through the cache. Categorical
    properties have the same codes in every split.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no split.
        ValueError: when a file is unusable, or no crystal of a split is left.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data folder must exist, got {folder}; check data.data_dir or LATENTITE_DATA_DIR"
        )
    files = split_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder} must hold train, val and test files ({', '.join(SPLIT_ENDINGS)}), got none; "
            "make them with `latentite data build SOURCE --out DIR`"
        )
    tables = {split: path for split, path in files.items() if path.suffix != ".safetensors"}
    built = build_splits(tables, options=options, cache_dir=cache_dir, workers=workers, progress=progress)
    log_labels(built.labels)
    for split, result in built.results.items():
        _log_rejections(files[split], result)
    read = {split: read_dataset(path) for split, path in files.items() if split not in tables}
    datasets = read | {split: result.dataset for split, result in built.results.items()}
    return share_categories({split: datasets[split] for split in files})


def _log_rejections(path: Path, result: BuildResult) -> None:
    """Say how many rows of a file did not enter.

    Raises:
        ValueError: when none did.
    """
    first = result.rejections[0].reason if result.rejections else "it has no rows"
    if not len(result.dataset):
        raise ValueError(
            f"{path} must hold at least one usable crystal, got none of {result.num_in} ({first})"
        )
    if result.rejections:
        log.warning(
            "%s: %d rows = %d accepted + %d rejected (first: %s)",
            path.name, result.num_in, len(result.dataset), len(result.rejections), first,
        )  # fmt: skip


def read_source(source: str, *, split: str, max_atoms: int) -> tuple[CrystalDataset, tuple[Rejection, ...]]:
    """A dataset of whatever the user named, in canonical form, and what was rejected on the way.

    Args:
        source: a path that the readers know, a dataset file or folder of `latentite data build`, or the name
            of a dataset.
        split: which of the splits, where there are several.
        max_atoms: cells with more atoms are rejected; 0 for no limit.

    Raises:
        FileNotFoundError: when there is no such path and no dataset of that name.
        ValueError: when the source as a whole cannot be used.
    """
    options = BuildOptions(limits=Limits(max_atoms=max_atoms or None), properties=())
    return read_labelled(source, split=split, options=options)


def read_labelled(
    source: str, *, split: str, options: BuildOptions
) -> tuple[CrystalDataset, tuple[Rejection, ...]]:
    """As `read_source`, with the labels and limits that the options ask for; built datasets are as they are.

    What a column of a folder's tables is, is decided over all its splits.
    """
    path = Path(source)
    if not path.exists() and source in DATASETS:
        path = resolve(source)
    files = split_files(path) if path.is_dir() else {}
    if files and split not in files:
        raise ValueError(f"--split {split} must be one of {', '.join(files)} in {path}")
    files = files or {split: path}
    if files[split].suffix == ".safetensors":
        return read_dataset(files[split]), tuple(read_rejections(files[split]))
    tables = {name: file for name, file in files.items() if file.suffix != ".safetensors"}
    if options.properties == () and not options.categorical:
        tables = {split: files[split]}
    built = build_splits(tables, options=options)
    log_labels(built.labels)
    return built.results[split].dataset, built.results[split].rejections
