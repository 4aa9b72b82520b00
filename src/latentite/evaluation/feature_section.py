"""The section of features: how far the generated set is from the reference, how varied, and how much it covers.

The descriptors are `fingerprints.radial` (structure) and `magpie` (composition), each number standardised by the
reference. Distances and diversity take both together, clipped at `CLIP` standard deviations: of 900 real test
crystals a single one lies 100 deviations out in one number, and alone makes most of a Fréchet distance. Coverage
takes them apart and not clipped. A VAE's pooled latents are a second space, CrystalNN and `CDVAE_CUTOFFS` a second
coverage; both are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation.markup import html_table, number_text
from latentite.evaluation.measure import (
    Cell,
    Features,
    LatentSpace,
    crystal_nn_features,
    latent_rows,
    radial_features,
    timed,
)
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import MakeSection, Section, Work, finite
from latentite.metrics.distributions import (
    CDVAE_CUTOFFS,
    Cutoffs,
    FingerprintSet,
    calibrated_cutoffs,
    coverage,
    fit_gaussian,
    frechet_distance,
    frechet_diversity,
    vendi_score,
)
from latentite.metrics.fingerprints import fit_scaling, magpie

CLIP = 5.0
"""Standard deviations."""
FLOOR = 1e-4
"""Atoms/Å^3. At radii where the reference has no neighbours the radial densities are tails of Gaussians, 1e-30 or so:
to standardise these would make them count like all others. One neighbour at 1 Å of one atom in ten gives 0.01."""
MAX_REFERENCE = 10_000
QUANTILE = 0.9
"""Of distances between real crystals, for the cut-offs of coverage."""

_REASONS = {
    "fingerprint": "too dense, too sparse or too flat for a search for neighbours",
    "crystal_nn": "CrystalNN finds no neighbours",
    "latent": "a cell too flat to have a canonical form",
}

_ROWS = (
    ("frechet", "Fréchet distance to the reference"),
    ("diversity", "1 / (1 + Fréchet distance)"),
    ("vendi", "Vendi score: effective number of different crystals"),
)
_RATES = (
    ("recall", "of the reference, both cut-offs by one crystal"),
    ("precision", "of the generated, both cut-offs by one crystal"),
    ("recall_separate", "of the reference, each cut-off on its own (as in CDVAE's code)"),
    ("precision_separate", "of the generated, each cut-off on its own (as in CDVAE's code)"),
)

Failures = list[tuple[int, str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """Crystals of which features are asked."""

    name: str
    arrays: Sequence[CrystalArrays]
    hashes: Sequence[str]


def feature_section(*, with_crystal_nn: bool = False, space: LatentSpace | None = None) -> MakeSection:
    """The section; empty without a reference.

    Args:
        with_crystal_nn: coverage by CrystalNN as well.
        space: whose latents are compared as well.
    """

    def make(work: Work, table: Mapping[str, list[Cell]]) -> Section:
        """Features of both sides, then what is counted of them."""
        if work.reference is None:
            return Section()
        failures: Failures = []
        places, is_first_half = reference_sample(work.reference.hashes, seed=work.seed)
        theirs = _side(work.reference, places, name="reference: ")
        ours = _side(work.crystals, np.arange(len(work.crystals)), name="")
        is_valid = np.array([cell is True for cell in table["valid"]], dtype=bool)
        with timed(work.seconds, "features"):
            content = _fingerprints(work, ours, theirs, is_valid, is_first_half, failures)
            if with_crystal_nn:
                content["coverage"]["crystalnn"] = _by_crystal_nn(work, ours, theirs, failures)
            content["latents"] = (
                None if space is None else _by_latents(work, ours, theirs, space, is_valid, failures)
            )
        content["reference"] = {"num_structures": len(work.reference), "num_used": len(places)}
        return Section(
            failures=tuple(failures),
            summary={"features": content},
            page=lambda: feature_page(content),
        )

    return make


def reference_sample(
    hashes: Sequence[str], *, seed: int, most: int = MAX_REFERENCE
) -> tuple[Int[np.ndarray, " chosen"], Bool[np.ndarray, " chosen"]]:
    """Positions of the crystals of a reference that are used, and those that make one half of these.

    Both follow from a hash of seed and crystal, so they do not depend on the order of the reference, and equal
    crystals stay together.

    Args:
        hashes: `structure_hash` of each.
        seed: draws.
        most: crystals that are used.
    """
    drawn = [hashlib.sha256(f"{seed}\0{digest}".encode()).digest() for digest in hashes]
    chosen = sorted(sorted(range(len(drawn)), key=drawn.__getitem__)[:most])
    # The order looks at the first bytes, the halves at the last: independent of each other.
    return np.array(chosen, dtype=int), np.array([drawn[place][-1] % 2 == 0 for place in chosen], dtype=bool)


def _side(crystals: Crystals, places: np.ndarray, *, name: str) -> _Side:
    return _Side(
        name=name,
        arrays=[crystals.arrays[place] for place in places],
        hashes=[crystals.hashes[place] for place in places],
    )


def _fingerprints(
    work: Work,
    ours: _Side,
    theirs: _Side,
    is_valid: np.ndarray,
    is_first_half: np.ndarray,
    failures: Failures,
) -> dict[str, Any]:
    radial = [
        radial_features(s.arrays, s.hashes, stage=work.stage, name=f"{s.name}fingerprints")
        for s in (ours, theirs)
    ]
    failures += _missing("fingerprint", radial[0])
    unknown = [int((~np.isfinite(rows).all(axis=-1)).sum()) for rows in radial]
    content: dict[str, Any] = {
        "fingerprints": "radial and magpie, standardised by the reference",
        "seed": work.seed,
        "clipped_at": CLIP,
        "without_fingerprint": {"generated": unknown[0], "reference": unknown[1]},
        "coverage": {"radial": None},
    }
    if unknown[1] == len(radial[1]):
        return content | {"descriptors": None}
    structure = _scaled(radial, smallest=FLOOR)
    composition = _scaled([magpie(ours.arrays), magpie(theirs.arrays)])
    sets = [FingerprintSet(structure=s, composition=c) for s, c in zip(structure, composition, strict=True)]
    joined = [np.clip(np.hstack([s.structure, s.composition]), -CLIP, CLIP) for s in sets]
    content["descriptors"] = _distances(joined[0], joined[1], is_valid)
    halves = [
        FingerprintSet(structure=sets[1].structure[side], composition=sets[1].composition[side])
        for side in (is_first_half, ~is_first_half)
    ]
    if all(half.is_known.any() for half in halves):
        how = f"{QUANTILE:g} quantile of distances between two halves of the reference (by hash, seed {work.seed})"
        content["coverage"]["radial"] = _coverage(
            sets[0], sets[1], calibrated_cutoffs(*halves, quantile=QUANTILE), how
        )
    return content


def _by_crystal_nn(work: Work, ours: _Side, theirs: _Side, failures: Failures) -> dict[str, Any]:
    """Coverage as CDVAE has it: CrystalNN as it is, Magpie standardised."""
    rows = [
        crystal_nn_features(
            s.arrays, s.hashes, workers=work.workers, stage=work.stage, name=f"{s.name}CrystalNN"
        )
        for s in (ours, theirs)
    ]
    failures += _missing("crystal_nn", rows[0])
    composition = _scaled([magpie(ours.arrays), magpie(theirs.arrays)])
    sets = [FingerprintSet(structure=s, composition=c) for s, c in zip(rows, composition, strict=True)]
    assert work.reference is not None
    name, cutoffs = published_cutoffs(work.reference.name)
    return _coverage(sets[0], sets[1], cutoffs, f"CDVAE's for {name}")


def published_cutoffs(reference: str) -> tuple[str, Cutoffs]:
    """CDVAE's cut-offs for a reference, and for which data set they are: those of MP-20 unless it is another.

    Args:
        reference: name as `Crystals` has it, such as `perov_5 (test)`.
    """
    name = Path(reference.split(" (")[0]).name
    name = name if name in CDVAE_CUTOFFS else "mp_20"
    return name, CDVAE_CUTOFFS[name]


def _by_latents(
    work: Work, ours: _Side, theirs: _Side, space: LatentSpace, is_valid: np.ndarray, failures: Failures
) -> dict[str, Any]:
    rows = [
        latent_rows(s.arrays, s.hashes, space=space, stage=work.stage, name=f"{s.name}latents")
        for s in (ours, theirs)
    ]
    failures += _missing("latent", rows[0])
    vae = {"vae": space.path, "sha256": space.sha256, "weights": space.weights}
    return vae | _distances(rows[0], rows[1], is_valid)


def _distances(
    ours: Float[np.ndarray, "ours feature"], theirs: Float[np.ndarray, "theirs feature"], is_valid: np.ndarray
) -> dict[str, Any]:
    """Null where a side has fewer than two crystals."""
    numbers: dict[str, Any] = {"frechet": {}, "diversity": {}, "vendi": {}}
    is_known = np.isfinite(ours).all(axis=-1)
    enough = int(np.isfinite(theirs).all(axis=-1).sum()) >= 2
    reference = fit_gaussian(theirs) if enough else None
    for name, chosen in (("all", is_known), ("valid", is_known & is_valid)):
        distance = None
        if reference is not None and chosen.sum() >= 2:
            distance = frechet_distance(fit_gaussian(ours[chosen]), reference)
        numbers["frechet"][name] = distance
        numbers["diversity"][name] = None if distance is None else frechet_diversity(distance)
        numbers["vendi"][name] = finite(vendi_score(ours[chosen]))
    return numbers


def _coverage(ours: FingerprintSet, theirs: FingerprintSet, cutoffs: Cutoffs, how: str) -> dict[str, Any]:
    result = coverage(ours, theirs, cutoffs)
    rates = ("recall", "precision", "recall_separate", "precision_separate")
    means = (f"{kind}_{side}_distance" for kind in ("structure", "composition") for side in rates[:2])
    return {
        "cutoffs": {"structure": cutoffs.structure, "composition": cutoffs.composition, "source": how},
        **{name: getattr(result, name).to_plain() for name in rates},
        **{name: finite(getattr(result, name)) for name in means},
    }


def _scaled(
    rows: Sequence[Float[np.ndarray, "_ feature"]], *, smallest: float = 0.0
) -> list[Float[np.ndarray, "_ feature"]]:
    """Both sides in standard deviations of the second, which is the reference, or in `smallest` ones."""
    scaling = fit_scaling(rows[1])
    scaling = replace(scaling, deviation=np.maximum(scaling.deviation, smallest))
    return [scaling.apply(side) for side in rows]


def _missing(step: str, rows: Features) -> Failures:
    return [(int(place), step, _REASONS[step]) for place in np.flatnonzero(~np.isfinite(rows).all(axis=-1))]


def feature_page(content: Mapping[str, Any]) -> str:
    """HTML of the section.

    Args:
        content: what the summary says of features.
    """
    used, all_in = content["reference"]["num_used"], content["reference"]["num_structures"]
    sample = "" if used == all_in else f" {used:,} of the reference's {all_in:,} crystals are used."
    parts = [
        f"<h2>Features</h2><p class='small'>Descriptors: {escape(content['fingerprints'])}; clipped at "
        f"{content['clipped_at']:g} standard deviations for distances.{sample} Distances and Vendi scores depend on "
        "the number of crystals: compare sets of equal size.</p>"
    ]
    if content["descriptors"] is not None:
        parts.append(_distance_table("descriptors", content["descriptors"]))
    if (latents := content["latents"]) is not None:
        parts.append(_distance_table(f"latents of {latents['vae']} ({latents['sha256'][:12]})", latents))
    titles = {"radial": "own fingerprints, not comparable with CDVAE's", "crystalnn": "CrystalNN and Magpie"}
    parts += [
        _coverage_table(titles[name], one) for name, one in content["coverage"].items() if one is not None
    ]
    return "".join(parts)


def _distance_table(space: str, content: Mapping[str, Any]) -> str:
    rows = [
        [words, number_text(content[name]["all"]), number_text(content[name]["valid"])]
        for name, words in _ROWS
    ]
    return html_table([f"in the space of {space}", "all", "valid only"], rows)


def _coverage_table(title: str, content: Mapping[str, Any]) -> str:
    cutoffs = content["cutoffs"]
    rows = []
    for name, words in _RATES:
        rate = content[name]
        percent = None if rate["rate"] is None else 100 * rate["rate"]
        counts = f"{rate['numerator']:,} of {rate['denominator']:,}"
        rows.append([words, number_text(percent, ".1f", "%"), counts])
    return html_table([f"covered, by {title}", "", ""], rows) + (
        f"<p class='small'>Cut-offs: structure {cutoffs['structure']:.3g}, composition {cutoffs['composition']:.3g}; "
        f"{escape(cutoffs['source'])}.</p>"
    )
