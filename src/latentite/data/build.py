"""Sources to datasets, through the cache.

`build_split` makes one `CrystalDataset` of one source; `load_splits` those of a folder with train, val and
test files. Both look into the cache first, under a name that changes with the content of the source, the
canonical form and the options, so that nothing stale is ever served.

`build_dataset` divides one source and writes a folder that `load_splits` reads.

Comes after `pack.py`, `cache.py` and `splits.py`; `commands.py` and the data module come after it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data import cache
from latentite.data.canonical import CANONICAL_VERSION
from latentite.data.checks import Limits
from latentite.data.dataset import CrystalDataset
from latentite.data.label_table import with_labels
from latentite.data.labels import LabelColumns, share_categories, unique_ids
from latentite.data.pack import Packed, PackOptions, pack
from latentite.data.progress import row_progress
from latentite.data.records import Rejection, Source, fingerprint, name_of, open_records
from latentite.data.report import BuildSummary, count_reasons, report, write_rejections
from latentite.data.splits import DEFAULT_FRACTIONS, SPLITS, check_fractions, divide, shared_formulas
from latentite.data.walk import pair, walk
from latentite.files import cache_dir as default_cache_dir
from latentite.files import write_json
from latentite.plain import check_seed

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

log = logging.getLogger(__name__)

WHOLE = "whole"
"""Key of the one result of a source that is still to be divided."""

READY_MADE = "ready-made"
"""What the summary calls the grouping of a source that came with its own splits."""

READER_VERSION = 3
"""Raised whenever the same source gives other rows or labels; caches of another version are rebuilt."""

_ENDINGS = (
    ".safetensors .csv .csv.gz .parquet .json .json.gz .jsonl .jsonl.gz .extxyz .extxyz.gz .h5 .hdf5 .db .zip"
)
SPLIT_ENDINGS = tuple(_ENDINGS.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How rows become a dataset; part of the name of its cache."""

    limits: Limits = field(default_factory=Limits)
    properties: tuple[str, ...] | None = None
    """Property columns to keep; None for all numeric ones. A column of text becomes categorical when named
    here."""
    derived: tuple[str, ...] = ()
    """Properties to compute from the structures (`latentite.data.properties`)."""
    categorical: tuple[str, ...] = ()
    """Numeric columns to treat as names (for example `space_group`)."""
    canonical: bool = True
    """Bring every crystal to the canonical form; False keeps cell, origin and order of the source."""
    symprec: float = 0.1
    """Å; tolerance of a derived space group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """One built split; `num_in = len(dataset) + len(rejections)`."""

    dataset: CrystalDataset
    rejections: tuple[Rejection, ...]
    num_in: int
    path: Path | None
    """The cache file, None when none was written."""


def cache_key(source: Source, options: BuildOptions) -> str:
    """sha256 over the content of the source, the version of the canonical form and the options."""
    parts = {
        "content": fingerprint(source),
        "canonical": CANONICAL_VERSION,
        "reader": READER_VERSION,
        "format": cache.FORMAT,
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
    options = options or BuildOptions()
    path = None
    if use_cache:
        folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        path = folder / "packed" / f"{cache_key(source, options)}.safetensors"
        if path.is_file():
            dataset, rejections = cache.read_dataset(path), tuple(cache.read_rejections(path))
            return BuildResult(
                dataset=dataset, rejections=rejections, num_in=len(dataset) + len(rejections), path=path
            )
    result = _build(source, options, workers, progress)
    if path is None:
        return result
    cache.write_dataset(path, result.dataset, rejections=result.rejections, notes=build_notes(options))
    return BuildResult(dataset=result.dataset, rejections=result.rejections, num_in=result.num_in, path=path)


def build_notes(options: BuildOptions) -> dict[str, str]:
    """What the header of a dataset file says about its making."""
    return {"canonical_version": str(CANONICAL_VERSION), "options": json.dumps(asdict(options))}


def _build(source: Source, options: BuildOptions, workers: int | None, progress: bool) -> BuildResult:
    pack_options = PackOptions(
        limits=options.limits, canonical=options.canonical, derived=options.derived, symprec=options.symprec
    )
    chunks: list[Packed] = []
    ids: list[str] = []
    rejections: list[Rejection] = []
    labels = LabelColumns()
    num_in = 0
    description = name_of(source)
    with row_progress(f"reading {Path(description).name}", enabled=progress) as advance:
        work = partial(pack, options=pack_options)
        for chunk, packed in walk(open_records(source), work, workers=workers, on_chunk=advance):
            num_in += len(chunk)
            chunks.append(packed)
            for item in pair(chunk, packed.outcomes):
                if isinstance(item, Rejection):
                    rejections.append(item)
                else:
                    record, derived = item
                    ids.append(record.id)
                    labels.add({**record.properties, **derived})
    assert num_in == len(ids) + len(rejections), (num_in, len(ids), len(rejections))
    properties, categories = labels.finish(
        properties=options.properties, always=options.derived, categorical=options.categorical
    )
    crystals = CrystalBatch(
        atomic_numbers=_join(chunks, "atomic_numbers"),
        frac_coords=_join(chunks, "frac_coords"),
        lattice=_join(chunks, "lattice"),
        num_atoms=_join(chunks, "num_atoms"),
        properties=properties,
    )
    unique = unique_ids(ids)
    digest = cache.content_hash(crystals, unique, categories)
    dataset = CrystalDataset(crystals=crystals, ids=tuple(unique), categories=categories, content_hash=digest)
    log.info("%s: %d in = %d accepted + %d rejected", description, num_in, len(dataset), len(rejections))
    return BuildResult(dataset=dataset, rejections=tuple(rejections), num_in=num_in, path=None)


def _join(chunks: Sequence[Packed], name: str) -> Tensor:
    if not chunks:
        empty = {"frac_coords": (0, 3), "lattice": (0, 3, 3)}.get(name)
        return torch.zeros(empty) if empty else torch.zeros(0, dtype=torch.long)
    return torch.from_numpy(np.concatenate([getattr(chunk, name) for chunk in chunks]))


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
    splits: dict[str, CrystalDataset] = {}
    for split, path in files.items():
        if path.suffix == ".safetensors":
            splits[split] = cache.read_dataset(path)
            continue
        result = build_split(path, options=options, cache_dir=cache_dir, workers=workers, progress=progress)
        if not len(result.dataset):
            first = result.rejections[0].reason if result.rejections else "it has no rows"
            raise ValueError(
                f"{path} must hold at least one usable crystal, got none of {result.num_in} ({first})"
            )
        if result.rejections:
            log.warning(
                "%s: %d rows = %d accepted + %d rejected (first: %s)",
                path.name,
                result.num_in,
                len(result.dataset),
                len(result.rejections),
                result.rejections[0].reason,
            )
        splits[split] = result.dataset
    return share_categories(splits)


def build_dataset(
    source: str | Path | Sequence[Structure | Atoms],
    out_dir: str | Path,
    *,
    fractions: Mapping[str, float] | None = None,
    group_by: str = "formula",
    seed: int = 0,
    options: BuildOptions | None = None,
    labels: str | Path | None = None,
    id_column: str | None = None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> BuildSummary:
    """Read a source, divide it, and write a folder that `load_splits` and the data module read.

    The folder holds `train.safetensors`, `val.safetensors` and `test.safetensors` (those with a fraction
    above 0), `dataset.json` (what was done) and `rejected.csv` (source, row, id, reason of every row that
    did not enter).

    Args:
        source: a file, a folder of structure files, a list of crystals, or a folder with ready-made train,
            val and test files, which are then kept and fractions, grouping and seed ignored.
        out_dir: the folder to write.
        fractions: of crystals per split; None for 0.8, 0.1, 0.1.
        group_by: `formula`, `none` or a property: what must not be torn apart.
        seed: of the draw.
        options: limits, labels and canonical form.
        labels: a table (CSV or Parquet) whose rows are joined to the crystals by id (`label_table.py`).
        id_column: its column of ids; None for `material_id` or `id`.
        cache_dir: where caches live; None for `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`.
        workers: processes; None for all cores.
        progress: show a progress bar when the terminal can.

    Raises:
        FileNotFoundError: when the source or the table of labels does not exist.
        ValueError: for impossible fractions, an unusable source, or when no crystal is left.
    """
    shares = check_fractions(DEFAULT_FRACTIONS if fractions is None else fractions)
    check_seed(seed)
    options, out = options or BuildOptions(), Path(out_dir)
    ready = _ready_made(source)
    _check_places(source, out)
    whole = with_labels(source, labels, id_column, is_divided=bool(ready))
    parts: Mapping[str, Source] = ready or {WHOLE: whole}
    results = {
        split: build_split(part, options=options, cache_dir=cache_dir, workers=workers, progress=progress)
        for split, part in parts.items()
    }
    _report_rejections(results, source, out / "rejected.csv")
    if ready:
        splits = share_categories({split: result.dataset for split, result in results.items()})
    else:
        splits = divide(results[WHOLE].dataset, shares, group_by=group_by, seed=seed)
    summary = _summarise(out, results, splits, group_by=READY_MADE if ready else group_by)
    request = {
        "source": name_of(source),
        "labels": None if labels is None else str(labels),
        "source_sha256": fingerprint(whole),
        "seed": seed,
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
    out: Path, results: Mapping[str, BuildResult], splits: Mapping[str, CrystalDataset], *, group_by: str
) -> BuildSummary:
    """Counts what entered the splits and what did not; together they are every row that was read."""
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
