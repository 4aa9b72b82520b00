"""Features of the crystals of an evaluation, each kept in the store by the crystal that it belongs to.

Fingerprints need no network (`metrics/fingerprints.py`); latents need a VAE, one vector per crystal: the mean of its
atoms' latents, the feature space in which Chemeleon2 measures Fréchet distances and diversity too. A crystal of which
there is none has a row of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.evaluation.measure import BeginStep
from latentite.evaluation.store import ResultStore, kept_rows, namespace
from latentite.metrics import fingerprints
from latentite.metrics.fingerprints import NUM_CRYSTAL_NN_FEATURES, crystal_nn
from latentite.models import load_vae
from latentite.nn.segment import segment_mean
from latentite.nn.vae import CrystalVAE


@torch.inference_mode()
def latent_features(
    network: CrystalVAE,
    crystals: CrystalBatch,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "crystal channel"]:
    """Posterior means averaged over the atoms of each crystal, in the order of the crystals.

    Args:
        network: of `latentite.evaluation.reconstruct.load_vae`; features of different networks cannot be compared.
        crystals: in canonical form (`data/canonical.py`), both sides of a comparison alike: the encoder sees cell,
            orientation and origin.
        batch_size: crystals at once; it does not change the result.
        device: where the network works.

    Raises:
        ValueError: for a batch size below 1.
    """
    network = network.to(device).eval()
    pooled = torch.zeros(len(crystals), network.config.latent_dim, dtype=torch.float64)
    for chosen in epoch_batches(crystals.num_atoms, BatchPlan(batch_size=batch_size, shuffle=False)):
        batch = crystals.select(chosen).with_properties({}).to(device)
        mean = network.encode(batch).mean
        pooled[chosen] = segment_mean(mean, batch.crystal_index, len(batch)).cpu().double()
    return pooled.numpy()


_RADIAL_VERSION = _CRYSTAL_NN_VERSION = _LATENTS_VERSION = 1
"""Raised when the code behind gives other rows."""

Features = Float[np.ndarray, "crystal feature"]


def radial_features(
    arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, stage: BeginStep, name: str
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
    arrays: Sequence[CrystalArrays],
    hashes: Sequence[str],
    *,
    workers: int | None,
    stage: BeginStep,
    name: str,
) -> Features:
    """`crystal_nn.crystal_nn`, about 0.3 s a crystal when it is new; arguments as in `radial_features`."""
    settings = {"pymatgen-core": version("pymatgen-core")}
    store = ResultStore.open(namespace("crystal_nn", _CRYSTAL_NN_VERSION, settings))

    compute = partial(crystal_nn, workers=workers)
    return _kept(arrays, hashes, store, compute, NUM_CRYSTAL_NN_FEATURES, stage, name)


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

    network, _, record = load_vae(name_or_path)
    return LatentSpace(
        path=str(name_or_path), sha256=record.sha256, weights=record.weights.value, network=network
    )


def latent_rows(
    arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, space: LatentSpace, stage: BeginStep, name: str
) -> Features:
    """Pooled latents of the crystals in canonical form; NaN for a cell that has none."""
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
    stage: BeginStep,
    name: str,
) -> Features:
    rows = kept_rows(
        store,
        hashes,
        lambda places: compute([arrays[place] for place in places]),
        begin=lambda count: stage(name, count),
    )
    return np.stack(rows) if rows else np.zeros((0, width))
