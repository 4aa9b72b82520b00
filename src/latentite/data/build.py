"""Sources to datasets, through the cache.

`build_split` makes one `CrystalDataset` of one source; `build_splits` those of the splits of one data set, whose
columns are decided on together; `load_splits` those of a folder with train, val and test files. All look into the
cache first, under names that change with the content of the source, the canonical form and the limits, so that
nothing stale is ever served. Crystals, the cells of all their columns, and what is computed from the crystals lie in
files of their own: other labels of the same source need no crystal to be parsed again.

`build_dataset` divides one source and writes a folder that `load_splits` reads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentite.base.files import cache_dir as default_cache_dir
from latentite.base.files import write_json
from latentite.base.plain import check_seed
from latentite.data import cache
from latentite.data.dataset import CrystalDataset
from latentite.data.decided import read_decided, request_key, write_decided
from latentite.data.derived import derived_columns
from latentite.data.labels import (
    DecidedLabels,
    LabelRequest,
    SplitLabels,
    decide_labels,
    log_labels,
    share_categories,
    with_labels,
)
from latentite.data.options import SPLITS, BuildOptions, DatasetOptions
from latentite.data.readers.label_table import labelled
from latentite.data.readers.records import Rejection, Source, fingerprint, name_of
from latentite.data.report import BuildSummary, count_reasons, report, write_rejections
from latentite.data.source_rows import build_notes, cache_key, read_rows
from latentite.data.splits import check_fractions, divide, shared_formulas

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

log = logging.getLogger(__name__)

__all__ = [
    "READY_MADE",
    "SPLIT_ENDINGS",
    "WHOLE",
    "BuildOptions",
    "BuildResult",
    "BuiltSplits",
    "build_dataset",
    "build_split",
    "build_splits",
    "cache_key",
    "load_splits",
    "log_rejections",
    "split_files",
]

WHOLE = "whole"
"""Key of the one result of a source that is still to be divided."""

READY_MADE = "ready-made"
"""What the summary calls the grouping of a source that came with its own splits."""

_ENDINGS = (
    ".safetensors .csv .csv.gz .parquet .json .json.gz .jsonl .jsonl.gz .extxyz .extxyz.gz .h5 .hdf5 .db .zip"
)
SPLIT_ENDINGS = tuple(_ENDINGS.split())


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
        for split, found in rows.items():
            derived = derived_columns(
                options.derived,
                found.crystals.crystals,
                symprec=options.symprec,
                workers=workers,
                near=paths[split],
            )
            known[split] = SplitLabels(raw=found.labels, ids=found.crystals.ids, derived=derived)
        decided = decide_labels(known, request)
        if kept is not None:
            write_decided(kept, decided)
    results = {}
    for split, found in rows.items():
        dataset = with_labels(found.crystals, decided.properties[split], decided.categories)
        num_in = len(dataset) + len(found.rejections)
        results[split] = BuildResult(
            dataset=dataset, rejections=found.rejections, num_in=num_in, path=paths[split]
        )
    return BuiltSplits(results=results, labels=decided)


def split_files(folder: Path) -> dict[str, Path]:
    """The train, val and test files of a folder, by split; the first ending of `SPLIT_ENDINGS` wins."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for stem in (split, "validation") if split == "val" else (split,):
            for ending in SPLIT_ENDINGS:
                if split not in found and (folder / f"{stem}{ending}").is_file():
                    found[split] = folder / f"{stem}{ending}"
    return found


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
        log_rejections(files[split], result)
    read = {split: cache.read_dataset(path) for split, path in files.items() if split not in tables}
    datasets = read | {split: result.dataset for split, result in built.results.items()}
    return share_categories({split: datasets[split] for split in files})


def log_rejections(path: Path, result: BuildResult) -> None:
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


def build_dataset(
    source: str | Path | Sequence[Structure | Atoms],
    out_dir: str | Path,
    *,
    options: BuildOptions | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
    **division: Any,
) -> BuildSummary:
    """Read a source, divide it, and write a folder that `load_splits` and the data module read.

    The folder holds `train.safetensors`, `val.safetensors` and `test.safetensors` (those with a fraction
    above 0), `dataset.json` (what was done) and `rejected.csv` (source, row, id, reason of every row that
    did not enter).

    Args:
        source: a file, a folder of structure files, a list of crystals, or a folder with ready-made train,
            val and test files, which are then kept and fractions, grouping and seed ignored.
        out_dir: the folder to write.
        options: limits, labels and canonical form.
        cache_dir: where caches live; None for `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`.
        progress: show a progress bar when the terminal can.
        division: `fractions`, `group_by`, `seed`, `labels`, `id_column` and `workers` of `DatasetOptions`.

    Raises:
        FileNotFoundError: when the source or the table of labels does not exist.
        ValueError: for impossible fractions, an unusable source, or when no crystal is left.
    """
    chosen = DatasetOptions(**division)
    shares = check_fractions(chosen.fractions)
    check_seed(chosen.seed)
    options, out = options or BuildOptions(), Path(out_dir)
    ready = _ready_made(source)
    _check_places(source, out)
    whole = labelled(source, chosen.labels, chosen.id_column, is_divided=bool(ready))
    parts: Mapping[str, Source] = ready or {WHOLE: whole}
    built = build_splits(
        parts, options=options, cache_dir=cache_dir, workers=chosen.workers, progress=progress
    )
    results = built.results
    _report_rejections(results, source, out / "rejected.csv")
    if ready:
        splits = {split: result.dataset for split, result in results.items()}
    else:
        splits = divide(results[WHOLE].dataset, shares, group_by=chosen.group_by, seed=chosen.seed)
    summary = _summarise(out, built, splits, group_by=READY_MADE if ready else chosen.group_by)
    request = {
        "source": name_of(source),
        "labels": None if chosen.labels is None else str(chosen.labels),
        "source_sha256": fingerprint(whole),
        "seed": chosen.seed,
        "fractions": None if ready else shares,
        "options": asdict(options),
    }
    _write_folder(out, splits, options)
    write_json(out / "dataset.json", report(summary, splits, request))
    return summary


def _report_rejections(
    results: Mapping[str, BuildResult], source: str | Path | Sequence[Structure | Atoms], path: Path
) -> None:
    """Writes down every rejected row, then refuses a split that has no other; one without rows leaves no file."""
    named = {str(source) if split == WHOLE else f"{source}: {split}": one for split, one in results.items()}
    for name, result in named.items():
        if not result.num_in:
            raise ValueError(f"{name} must hold at least one usable crystal, got no rows")
    write_rejections(path, _rejections(results))
    for name, result in named.items():
        _refuse_empty(result, name, path)


def _rejections(results: Mapping[str, BuildResult]) -> list[Rejection]:
    return [rejection for result in results.values() for rejection in result.rejections]


def _summarise(
    out: Path, built: BuiltSplits, splits: Mapping[str, CrystalDataset], *, group_by: str
) -> BuildSummary:
    """Counts what entered the splits and what did not; together they are every row that was read."""
    results = built.results
    rejections = _rejections(results)
    summary = BuildSummary(
        out_dir=out,
        num_in=sum(result.num_in for result in results.values()),
        num_accepted=sum(map(len, splits.values())),
        num_rejected=len(rejections),
        counts={split: len(dataset) for split, dataset in splits.items()},
        group_by=group_by,
        reasons=count_reasons(rejections),
        shared_formulas=shared_formulas(splits),
        left_out=built.labels.left_out,
        remarks=built.labels.remarks,
    )
    assert summary.num_in == summary.num_accepted + summary.num_rejected, summary
    return summary


def _check_places(source: str | Path | Sequence[Structure | Atoms], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"the output must be a folder, got the file {out}")
    if isinstance(source, (str, Path)) and Path(source).is_dir() and out.resolve() == Path(source).resolve():
        raise ValueError(f"the output folder must differ from the source, got {out} for both")


def _refuse_empty(result: BuildResult, name: str, rejected: Path) -> None:
    if len(result.dataset):
        return
    reasons = list(count_reasons(result.rejections).items())[:3]
    common = ", ".join(f"{reason} ({count})" for reason, count in reasons)
    raise ValueError(
        f"{name} must hold at least one usable crystal, got none of {result.num_in} rows: {common}; "
        f"each row's reason is in {rejected}"
    )


def _ready_made(source: str | Path | Sequence[Structure | Atoms]) -> dict[str, Path]:
    if not isinstance(source, (str, Path)) or not Path(source).is_dir():
        return {}
    files = split_files(Path(source))
    if any(path.suffix == ".safetensors" for path in files.values()):
        raise ValueError(f"{source} is built already (it holds .safetensors splits); use it as it is")
    return files if "train" in files else {}


def _write_folder(out: Path, splits: Mapping[str, CrystalDataset], options: BuildOptions) -> None:
    # Splits of an earlier build must never stand beside new ones, not even after an interruption: so they go
    # first, and the train split, without which nothing starts, comes last.
    for name in ("dataset.json", *(f"{split}.safetensors" for split in SPLITS)):
        (out / name).unlink(missing_ok=True)
    for split in reversed(SPLITS):
        if split in splits:
            cache.write_dataset(out / f"{split}.safetensors", splits[split], notes=build_notes(options))
