"""A source to the folder of a data set: divided, written, with what was done (`dataset.json`) and what was rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentite import __version__
from latentite.base.files import write_csv, write_json
from latentite.base.plain import check_seed
from latentite.data.build import WHOLE, BuildResult, BuiltSplits, build_splits
from latentite.data.canonical import CANONICAL_VERSION
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.data.options import BuildOptions, DatasetOptions
from latentite.data.readers.label_table import labelled
from latentite.data.readers.opening import fingerprint
from latentite.data.readers.records import Rejection, Source, name_of
from latentite.data.recipes import SPLITS
from latentite.data.source_rows import build_notes
from latentite.data.sources import split_files
from latentite.data.splits import check_fractions, divide, shared_formulas

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """Counts of a finished `build_dataset`; `num_in = num_accepted + num_rejected`."""

    out_dir: Path
    num_in: int
    num_accepted: int
    num_rejected: int
    counts: dict[str, int]
    """Crystals per split."""
    group_by: str
    reasons: dict[str, int]
    """Rejections by the beginning of their reason, most frequent first."""
    shared_formulas: int
    """Reduced formulas of the test split that the train split has too."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns of the source that are no property, and why."""
    remarks: tuple[str, ...] = ()
    """Cells that were taken as missing, cleaned or worth a look."""


READY_MADE = "ready-made"
"""The summary's name for the grouping of a source that came with its own splits."""


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
            write_dataset(out / f"{split}.safetensors", splits[split], notes=build_notes(options))


# ------------------------------------------------------------------------------- summary, rejections


def report(
    summary: BuildSummary, splits: Mapping[str, CrystalDataset], request: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `dataset.json`; `request` is what the user asked for."""
    details = {}
    for split, dataset in splits.items():
        labels = dataset.crystals.properties
        details[split] = {
            "file": f"{split}.safetensors",
            "crystals": len(dataset),
            "atoms": dataset.crystals.total_atoms,
            "content_hash": dataset.content_hash,
            "missing_labels": {name: int(values.isnan().sum()) for name, values in labels.items()},
        }
    first = next(iter(splits.values()))
    return {
        "format": 1,
        "latentite": __version__,
        "canonical_version": CANONICAL_VERSION,
        **request,
        "group_by": summary.group_by,
        "num_in": summary.num_in,
        "num_accepted": summary.num_accepted,
        "num_rejected": summary.num_rejected,
        "rejection_reasons": summary.reasons,
        "formulas_of_test_also_in_train": summary.shared_formulas,
        "splits": details,
        "properties": list(first.crystals.properties),
        "categories": {name: list(values) for name, values in first.categories.items()},
        "columns_left_out": summary.left_out,
        "remarks": list(summary.remarks),
    }


def write_rejections(path: Path, rejections: Sequence[Rejection]) -> None:
    """A CSV with source, row, id and reason; only the header when nothing was rejected."""
    rows = ([item.source, item.row, item.id, item.reason] for item in rejections)
    write_csv(path, ["source", "row", "id", "reason"], rows)


def count_reasons(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejections by kind of reason (its text without numbers and details), most frequent first."""
    kinds = Counter(_kind(rejection.reason) for rejection in rejections)
    return dict(kinds.most_common())


def _kind(reason: str) -> str:
    if "apart, closer than" in reason:
        return "atoms too close"
    if "more than the limit" in reason:
        return "more atoms than the limit"
    return reason.split(":")[0].split(" (")[0]
