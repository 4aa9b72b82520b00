"""Numbers and features of each structure alone, and the clock of steps.

The numbers are those of the table: cell, density, distances, SMACT, symmetry, supply risk. Features are rows of numbers
for the section of features: fingerprints need no network (`metrics/fingerprints.py`); latents need a VAE, one vector
per crystal: the mean of its atoms' latents, the feature space in which Chemeleon2 measures Fréchet distances and
diversity too. A crystal of which there is none has a row of NaN. What is slow is kept in the store by the crystal that
it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.data.properties import derive_rows
from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.evaluation.read import Crystals
from latentite.evaluation.store import ResultStore, kept_rows, namespace
from latentite.formulas import Composition, reduced_composition, usual_formula
from latentite.metrics import fingerprints
from latentite.metrics.composition import SmactRule, has_unknown_element, is_smact_valid, supply_risk
from latentite.metrics.fingerprints import NUM_CRYSTAL_NN_FEATURES, crystal_nn
from latentite.metrics.geometry import SYMPRECS, min_distances, volumes
from latentite.metrics.symmetry import Symmetry, symmetries
from latentite.models import load_vae
from latentite.nn.segment import segment_mean
from latentite.nn.vae import CrystalVAE
from latentite.symmetry.labels import SymmetryLabel

BeginStep = Callable[[str, int | None], Callable[[int], None]]
"""Told that a step of so many structures (None: unknown) begins; gives what to tell of those that are done."""


def silent(text: str, total: int | None) -> Callable[[int], None]:
    """A `BeginStep` that says nothing."""
    return lambda count: None


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the wall time of the block to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 3)


Cell = float | int | bool | str | None
"""A cell of the table; None where a metric gave nothing."""

_SYMMETRY_VERSION = 1
"""Raised when `metrics/symmetry.py` gives other numbers or labels."""
_DERIVED = ("composition", "chemical_system", "num_elements", "density", "volume_per_atom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One number per structure and property."""

    formulas: list[str]
    """Reduced, elements in alphabetical order: keys for comparison."""
    chemical_systems: list[str]
    num_atoms: np.ndarray
    num_elements: np.ndarray
    volume: np.ndarray
    """Å^3."""
    volume_per_atom: np.ndarray
    """Å^3."""
    density: np.ndarray
    """g/cm^3."""
    distance: np.ndarray
    """Å, smallest between two atoms; infinite for one atom, NaN where the cell cannot be reduced."""
    own_distance: np.ndarray
    """Å, smallest between an atom and its own image; NaN likewise."""
    compositions: list[Composition]
    space_groups: dict[float, np.ndarray]
    """By tolerance (Å); NaN where none is found."""
    symmetries: list[Symmetry]
    """With the labels at the usual tolerance."""

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Position, metric and reason of everything that could not be computed."""
        failures = [
            (int(position), "min_distance", "the cell is too flat to be reduced")
            for position in np.flatnonzero(np.isnan(self.own_distance))
        ]
        for symprec, groups in self.space_groups.items():
            reason = f"no space group was found at {symprec:g} Å"
            failures += [
                (int(p), f"space_group_{symprec:g}", reason) for p in np.flatnonzero(np.isnan(groups))
            ]
        failures += [
            (position, "wyckoff", symmetry.reason)
            for position, symmetry in enumerate(self.symmetries)
            if symmetry.reason is not None
        ]
        return failures

    def columns(self) -> dict[str, list[Cell]]:
        """The columns of the table, in its order."""
        risks = [supply_risk(composition) for composition in self.compositions]
        columns: dict[str, list[Cell]] = {
            "formula": [usual_formula(composition) for composition in self.compositions],
            "chemical_system": list(self.chemical_systems),
            "num_atoms": self.num_atoms.tolist(),
            "num_elements": [int(count) for count in self.num_elements],
            "volume": self.volume.tolist(),
            "volume_per_atom": self.volume_per_atom.tolist(),
            "density": self.density.tolist(),
            "min_distance": _cells(np.fmin(self.distance, self.own_distance)),
        }
        for rule in SmactRule:
            columns[rule.value] = [is_smact_valid(c, rule) for c in self.compositions]
        for rule in SmactRule:
            columns[f"{rule.value}_unknown_element"] = [
                has_unknown_element(c, rule) for c in self.compositions
            ]
        for symprec, groups in self.space_groups.items():
            columns[f"space_group_{symprec:g}"] = [None if np.isnan(g) else int(g) for g in groups]
        labels = [symmetry.label for symmetry in self.symmetries]
        for name in ("wyckoff", "site_symmetry", "prototype"):
            columns[name] = [None if label is None else getattr(label, name) for label in labels]
        columns["hhi_production"] = _cells(np.array([risk[0] for risk in risks]))
        columns["hhi_reserves"] = _cells(np.array([risk[1] for risk in risks]))
        return columns


def _cells(values: np.ndarray) -> list[Cell]:
    return [float(value) if np.isfinite(value) else None for value in values]


def measure(
    crystals: Crystals,
    *,
    workers: int | None,
    seconds: dict[str, float],
    stage: BeginStep,
    symprecs: Sequence[float] = SYMPRECS,
    name: str = "",
) -> Measured:
    """Measure each structure of a source.

    Args:
        crystals: what to measure.
        workers: processes; None for all cores.
        seconds: takes the wall time of each step.
        stage: hears of progress.
        symprecs: tolerances of the space groups, Å.
        name: begins the names of the steps.
    """
    with timed(seconds, f"{name}geometry"):
        derived = derive_rows(_DERIVED, crystals.arrays)
        between, own = min_distances(crystals.arrays)
    with timed(seconds, f"{name}composition"):
        compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in crystals.arrays]
    with timed(seconds, f"{name}space groups"):
        found = _symmetries(crystals, symprecs, workers, lambda count: stage(f"{name}space groups", count))

    def numbers_of(key: str) -> np.ndarray:
        return np.array([row[key] for row in derived], dtype=float)

    return Measured(
        formulas=[str(row["composition"]) for row in derived],
        chemical_systems=[str(row["chemical_system"]) for row in derived],
        num_atoms=np.array([crystal.num_atoms for crystal in crystals.arrays], dtype=int),
        num_elements=numbers_of("num_elements"),
        volume=volumes(crystals.arrays),
        volume_per_atom=numbers_of("volume_per_atom"),
        density=numbers_of("density"),
        distance=between,
        own_distance=own,
        compositions=compositions,
        # dtype=float makes NaN of None
        space_groups={
            symprec: np.array([symmetry.space_groups[i] for symmetry in found], dtype=float)
            for i, symprec in enumerate(symprecs)
        },
        symmetries=found,
    )


def _symmetries(
    crystals: Crystals,
    symprecs: Sequence[float],
    workers: int | None,
    begin: Callable[[int], Callable[[int], None]],
) -> list[Symmetry]:
    """Of each crystal, from the store where it is known; new ones go there as they come."""
    packages = {name: version(name) for name in ("spglib", "moyopy")}
    store = ResultStore.open(
        namespace("symmetry", _SYMMETRY_VERSION, {"symprecs": list(symprecs), **packages})
    )
    known = {digest: _from_plain(value) for digest, value in store.get_many(crystals.hashes).items()}
    first = {digest: place for place, digest in enumerate(crystals.hashes) if digest not in known}
    missing = list(first)

    def keep(start: int, found: Sequence[Symmetry]) -> None:
        store.put_many(dict(zip(missing[start:], map(asdict, found), strict=False)))

    if missing:
        computed = symmetries(
            [crystals.arrays[place] for place in first.values()],
            symprecs=symprecs,
            workers=workers,
            advance=begin(len(missing)),
            keep=keep,
        )
        known |= dict(zip(missing, computed, strict=True))
    return [known[digest] for digest in crystals.hashes]


def _from_plain(value: dict[str, Any]) -> Symmetry:
    label = value["label"]
    return Symmetry(
        space_groups=tuple(value["space_groups"]),
        label=None if label is None else SymmetryLabel(**label),
        reason=value["reason"],
    )


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
        network: of `latentite.models.load_vae`; features of different networks cannot be compared.
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
