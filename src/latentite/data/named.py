"""Whatever a user names as a source of crystals, as one data set.

A path that the readers know, a data set file or folder of `latentite data build`, or the name of a data set. Comes
after `build.py` and `sources.py`; the commands that use a trained network read their crystals here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentite.data.dataset import CrystalDataset
from latentite.data.readers.records import Rejection

if TYPE_CHECKING:
    from latentite.data.build import BuildOptions


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
    from latentite.data.build import BuildOptions
    from latentite.data.checks import Limits

    options = BuildOptions(limits=Limits(max_atoms=max_atoms or None), properties=())
    return read_labelled(source, split=split, options=options)


def read_labelled(
    source: str, *, split: str, options: BuildOptions
) -> tuple[CrystalDataset, tuple[Rejection, ...]]:
    """As `read_source`, with the labels and limits that the options ask for; built datasets are as they are.

    What a column of a folder's tables is, is decided over all its splits.
    """
    from latentite.data.build import build_splits, split_files
    from latentite.data.cache import read_dataset, read_rejections
    from latentite.data.labels import log_labels
    from latentite.data.sources import DATASETS, resolve

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
