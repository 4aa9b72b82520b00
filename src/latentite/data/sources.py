"""Named data sets: where each is found on this machine, or downloaded from, and whether it is still what came.

`resolve` is what `data.name=mp_20` means. It looks in the folder that is given, in `LATENTITE_DATA_DIR`, in
`data/`, in the package and among earlier downloads; then it downloads, or makes it from others (`recipes.py`), or says
which files to put where. A folder appears under its name only when it is whole, and is used later only while it is what
came (`download_record.py`). `build.py` reads the files.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from latentite.base.download import DownloadError, Patience, fetch
from latentite.base.files import cache_dir, publishing, sha256_file
from latentite.data.download_record import check_download, given_checksums, write_download
from latentite.data.recipes import RECIPES, SPLITS

_ENDINGS = (
    ".safetensors .csv .csv.gz .parquet .json .json.gz .jsonl .jsonl.gz .extxyz .extxyz.gz .h5 .hdf5 .db .zip"
)

SPLIT_ENDINGS = tuple(_ENDINGS.split())

log = logging.getLogger(__name__)

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/{name}/{file}"
_DIFFCSP = "https://raw.githubusercontent.com/jiaor17/DiffCSP/main/data/{name}/{file}"
_MATTERGEN = "https://media.githubusercontent.com/media/microsoft/mattergen/main/data-release/alex-mp/{file}"

_PATIENCE = Patience(answer_s=40.0, read_s=20.0, tries=4)  # free servers of large files can be slow

MIRROR_VARIABLE = "LATENTITE_DATASETS_URL"
"""Environment variable: download `NAME/FILE` from this address in place of the public one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedDataset:
    """A data set that Latentite knows by name."""

    summary: str
    address: str | None = None
    """Of its files, with `{name}` and `{file}`; None where none is known, or the package has them."""
    archive: str | None = None
    """The zip file that holds the splits, where they do not stand alone."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of each split that is downloaded."""
    is_shipped: bool = False
    """Part of the package."""
    made_from: tuple[str, ...] = ()
    """The data sets that it is made from by its recipe (`recipes.py`)."""
    advice: str = ""
    """The way to get it, where it cannot be downloaded."""

    @property
    def downloads(self) -> list[str]:
        """Names of the files that are downloaded."""
        return [self.archive] if self.archive else [f"{split}.csv" for split in self.rows]


DATASETS: dict[str, NamedDataset] = {
    "prototypes": NamedDataset(
        summary="7,267 crystals made from AFLOW prototypes; comes with the package", is_shipped=True
    ),
    "mp_20": NamedDataset(
        summary="Materials Project, up to 20 atoms",
        address=_CDVAE,
        rows={"train": 27_136, "val": 9_047, "test": 9_046},
    ),
    "mpts_52": NamedDataset(
        summary="Materials Project in order of discovery, up to 52 atoms",
        address=_DIFFCSP,
        rows={"train": 27_380, "val": 5_000, "test": 8_096},
    ),
    "perov_5": NamedDataset(
        summary="perovskites of 5 atoms",
        address=_CDVAE,
        rows={"train": 11_356, "val": 3_787, "test": 3_785},
    ),
    "carbon_24": NamedDataset(
        summary="carbon, up to 24 atoms; only about 40 % distinct structures",
        address=_CDVAE,
        rows={"train": 6_091, "val": 2_032, "test": 2_030},
    ),
    "alex_mp_20": NamedDataset(
        summary="Alexandria and Materials Project, up to 20 atoms; no test split",
        address=_MATTERGEN,
        archive="alex_mp_20.zip",
        rows={"train": 607_683, "val": 67_521},
    ),
    "alex_mp_20_bandgap": NamedDataset(
        summary="the rows of Alex-MP-20 that have a band gap",
        advice="it has no public address that we know; keep the rows of alex_mp_20 with a band gap",
    ),
    "mp_120": NamedDataset(
        summary="Materials Project, up to 120 atoms",
        advice="it has no public address that we know; export it from the Materials Project",
    ),
    "mp_20_biternary": NamedDataset(
        summary="the rows of MP-20 with two or three elements, a formula in one split only",
        made_from=("mp_20",),
    ),
    "mp_mix": NamedDataset(
        summary="mp_20_biternary and MPTS-52 together (up to 52 atoms, any elements), split by formula",
        made_from=("mp_20_biternary", "mpts_52"),
    ),
}
"""Every name that `resolve` knows."""


def near_names(name: str) -> str:
    """Near names for one that is no data set's, as the end of a sentence."""
    near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"take one of {', '.join(DATASETS)}"


def resolve(name: str, *, data_dir: Path | None = None, patience: Patience | None = None) -> Path:
    """Folder with the train, val and test files of a named dataset.

    Looks in `data_dir` and `data_dir/NAME` (and nowhere else, when it is given); then in
    `$LATENTITE_DATA_DIR/NAME`, `data/NAME`, the package and the cache; then downloads it, once.

    Args:
        name: one of `DATASETS`, exactly.
        data_dir: a folder of the user's choice.
        patience: time-outs and tries of the download; None for the defaults.

    Raises:
        ValueError: an unknown name, with near ones suggested.
        FileNotFoundError: `data_dir` is given and does not hold the dataset.
        DownloadError: it is not here and cannot be had; the message says which files to put where. Or an earlier
            download is no longer what it was.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise ValueError(f"a dataset must be one that Latentite knows, got {name!r}; {near_names(name)}")
    if data_dir is not None:
        for folder in (data_dir, data_dir / name):
            if _has_splits(folder):
                return folder
        raise FileNotFoundError(
            f"data_dir must hold {_files(name)}, or a folder {name} with them, got {data_dir} without"
        )
    for folder in _local_folders(name):
        if _has_splits(folder):
            log.info("dataset %s: %s", name, folder)
            return folder
    if dataset.is_shipped:
        return Path(__file__).with_name(name)
    folder = cache_dir() / "datasets" / name
    if folder.is_dir():
        check_download(folder, name, dataset.downloads)
    elif dataset.made_from:
        _make(name, dataset, folder, patience)
    else:
        _fetch(name, dataset, folder, patience or _PATIENCE)
    return folder


def splits_folder(name: str, data_dir: Path | None = None) -> Path:
    """Folder of a data set that may be anyone's: `data_dir` itself, a folder in it of that name, or, without
    `data_dir`, the one that `resolve` finds."""
    if data_dir is None:
        return resolve(name)
    inside = data_dir / name
    return inside if not split_files(data_dir) and inside.is_dir() else data_dir


def split_files(folder: Path) -> dict[str, Path]:
    """The train, val and test files of a folder, by split; the first ending of `SPLIT_ENDINGS` wins."""
    by_split: dict[str, Path] = {}
    for split in SPLITS:
        for stem in (split, "validation") if split == "val" else (split,):
            for ending in SPLIT_ENDINGS:
                if split not in by_split and (folder / f"{stem}{ending}").is_file():
                    by_split[split] = folder / f"{stem}{ending}"
    return by_split


def _local_folders(name: str) -> list[Path]:
    root = os.environ.get("LATENTITE_DATA_DIR")
    folders = [Path(root).expanduser() / name] if root else []
    return [*folders, Path("data") / name]


def _has_splits(folder: Path) -> bool:
    return folder.is_dir() and "train" in split_files(folder)


def _files(name: str) -> str:
    splits = list(DATASETS[name].rows) or ["train", "val", "test"]
    return ", ".join(f"{split}.csv" for split in splits[:-1]) + f" and {splits[-1]}.csv"


def _fetch(name: str, dataset: NamedDataset, folder: Path, patience: Patience) -> None:
    """Download a dataset into a folder that appears only when every file is there, whole and counted."""
    root = os.environ.get("LATENTITE_DATA_DIR")
    places = f"{Path(root) / name if root else f'LATENTITE_DATA_DIR/{name}'} or data/{name}"
    by_hand = f"put {_files(name)} (.csv.gz and .parquet do too) into {places}"
    if dataset.address is None:
        raise DownloadError(f"{name} is not on this machine; {dataset.advice}; then {by_hand}")
    mirror = os.environ.get(MIRROR_VARIABLE)
    address = f"{mirror.rstrip('/')}/{{name}}/{{file}}" if mirror else dataset.address
    files = dataset.downloads
    urls = [address.format(name=name, file=file) for file in files]
    sums = given_checksums(name, files)
    log.info("downloading %s (%s) to %s", name, dataset.summary, folder)
    try:
        with publishing(folder) as temporary:
            for file, url in zip(files, urls, strict=True):
                fetch(url, temporary / file, patience=patience, sha256=sums.get(file))
            downloads = {file: sha256_file(temporary / file) for file in files}
            if dataset.archive:
                _unpack(temporary / dataset.archive, list(dataset.rows), urls[0])
            for split, rows in dataset.rows.items():
                _check_rows(temporary / f"{split}.csv", rows)
            kept = {f"{split}.csv": rows for split, rows in dataset.rows.items()}
            write_download(temporary, addresses=urls, downloads=downloads, rows=kept)
    except DownloadError as error:
        raise DownloadError(
            f"{name} is not on this machine, and {error}; check the network, or {by_hand} "
            f"(public address: {urls[0]})"
        ) from error


def _make(name: str, dataset: NamedDataset, folder: Path, patience: Patience | None) -> None:
    """Make a dataset from others, which are looked for and downloaded like any.

    Raises:
        DownloadError: when one of these cannot be had, or its tables cannot be used.
    """
    try:
        parents = {parent: split_files(resolve(parent, patience=patience)) for parent in dataset.made_from}
        for parent, files in parents.items():
            if set(files) != set(SPLITS):
                raise DownloadError(f"{parent} must have train, val and test, got {', '.join(files)}")
        log.info("making %s (%s) in %s", name, dataset.summary, folder)
        with publishing(folder) as temporary:
            rows = RECIPES[name](parents, temporary)
            made_from = {
                f"{parent}/{path.name}": sha256_file(path)
                for parent, files in parents.items()
                for path in files.values()
            }
            kept = {f"{split}.csv": count for split, count in rows.items()}
            write_download(temporary, addresses=[], downloads={}, rows=kept, made_from=made_from)
    except (DownloadError, ValueError) as error:
        raise DownloadError(
            f"{name} is not on this machine, and is made from {' and '.join(dataset.made_from)}: {error}"
        ) from error


def _unpack(archive: Path, splits: list[str], url: str) -> None:
    """Take the CSV of each split, in whatever folder it is, out of a zip file, and remove the zip file."""
    try:
        with zipfile.ZipFile(archive) as members:
            names = {Path(member).name: member for member in members.namelist()}
            for split in splits:
                if f"{split}.csv" not in names:
                    raise DownloadError(f"{url} must hold {split}.csv, got {', '.join(sorted(names))}")
                target = archive.with_name(f"{split}.csv")
                # Written under a name of ours: a member's own path could point outside the folder.
                with members.open(names[f"{split}.csv"]) as source, target.open("wb") as sink:
                    while chunk := source.read(1 << 20):
                        sink.write(chunk)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{url} must be a zip file, got a broken one ({error})") from error
    archive.unlink()


def _check_rows(path: Path, rows: int) -> None:
    """Count the rows of a downloaded CSV.

    Raises:
        DownloadError: when the number of rows is not the expected one.
    """
    csv.field_size_limit(max(2**30, csv.field_size_limit()))  # CIFs can be longer than the default of 128 KiB
    with path.open(encoding="utf-8", errors="replace", newline="") as handle:
        count = max(0, sum(1 for row in csv.reader(handle) if row) - 1)
    if count != rows:
        raise DownloadError(f"the {path.name} that came must have {rows:,} rows, got {count:,}")
