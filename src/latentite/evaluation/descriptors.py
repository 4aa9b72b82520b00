"""Features of the crystals of an evaluation, each kept in the store by the crystal that it belongs to.

Fingerprints need no network (`metrics/fingerprints.py`, `metrics/crystal_nn.py`), latents need a VAE. A crystal of
which there is none has a row of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.evaluation.kept_rows import kept_rows
from latentite.evaluation.steps import Stage
from latentite.evaluation.store import ResultStore, namespace
from latentite.metrics import fingerprints
from latentite.metrics.crystal_nn import NUM_FEATURES, crystal_nn

if TYPE_CHECKING:
    from latentite.nn.vae import CrystalVAE

_RADIAL_VERSION = _CRYSTAL_NN_VERSION = _LATENTS_VERSION = 1
"""Raised when the code behind gives other rows."""

Features = Float[np.ndarray, "crystal feature"]


def radial_features(
    arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, stage: Stage, name: str
) -> Features:
    """`fingerprints.radial`, about 3 ms a crystal when it is new.

    Args:
        arrays: the crystals.
        hashes: `structure_hash` of each.
        stage: hears of progress.
        name: of the step.
    """
    settings = {
        "radii": fingerprints.RADII.tolist(),
        "width": fingerprints.WIDTH,
        "cutoff": fingerprints.CUTOFF,
        "smact": version("smact"),
    }
    store = ResultStore.open(namespace("radial", _RADIAL_VERSION, settings))
    width = 4 * len(fingerprints.RADII)
    return _kept(arrays, hashes, store, fingerprints.radial, width, stage, name)


def crystal_nn_features(
    arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, workers: int | None, stage: Stage, name: str
) -> Features:
    """`crystal_nn.crystal_nn`, about 0.3 s a crystal when it is new; arguments as in `radial_features`."""
    settings = {"pymatgen-core": version("pymatgen-core")}
    store = ResultStore.open(namespace("crystal_nn", _CRYSTAL_NN_VERSION, settings))

    compute = partial(crystal_nn, workers=workers)
    return _kept(arrays, hashes, store, compute, NUM_FEATURES, stage, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpace:
    """The VAE whose latents are the features."""

    path: str
    sha256: str
    """Of the file with the weights."""
    weights: str
    network: CrystalVAE


def open_latent_space(name_or_path: str | Path) -> LatentSpace:
    """The VAE of a name or path, on the CPU.

    Raises:
        CheckpointError: when the file is no VAE checkpoint.
        ValueError: for an unknown name.
    """
    from latentite.models import load_vae

    network, _, record = load_vae(name_or_path)
    return LatentSpace(
        path=str(name_or_path), sha256=record.sha256, weights=record.weights.value, network=network
    )


def latent_rows(
    arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, space: LatentSpace, stage: Stage, name: str
) -> Features:
    """Pooled latents of the crystals in canonical form; NaN for a cell that has none."""
    from latentite.crystal import CrystalBatch
    from latentite.evaluation.latent_features import latent_features

    width = space.network.config.latent_dim

    def compute(block: Sequence[CrystalArrays]) -> Features:
        rows = np.full((len(block), width), np.nan)
        known = _canonical(block)
        if known:
            rows[list(known)] = latent_features(space.network, CrystalBatch.from_arrays(list(known.values())))
        return rows

    settings = {"sha256": space.sha256, "weights": space.weights}
    store = ResultStore.open(namespace("latents", _LATENTS_VERSION, settings))
    return _kept(arrays, hashes, store, compute, width, stage, name)


def _canonical(arrays: Sequence[CrystalArrays]) -> dict[int, CrystalArrays]:
    """Canonical forms by position, of those crystals that have one."""
    try:
        return dict(enumerate(canonicalize_many(arrays)))
    except ValueError:
        if len(arrays) == 1:
            return {}
    # One flat cell refuses all: each alone, which gives the same bits.
    return {place: form for place, one in enumerate(arrays) for form in _canonical([one]).values()}


def _kept(
    arrays: Sequence[CrystalArrays],
    hashes: Sequence[str],
    store: ResultStore,
    compute: Callable[[Sequence[CrystalArrays]], Features],
    width: int,
    stage: Stage,
    name: str,
) -> Features:
    rows = kept_rows(
        store,
        hashes,
        lambda places: compute([arrays[place] for place in places]),
        begin=lambda count: stage(name, count),
    )
    return np.stack(rows) if rows else np.zeros((0, width))
