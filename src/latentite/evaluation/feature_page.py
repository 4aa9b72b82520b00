"""What the report's page says of features: distances, diversity and coverage with their rulers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

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


def feature_page(found: Mapping[str, Any]) -> str:
    """HTML of the section.

    Args:
        found: what the summary says of features.
    """
    used, all_in = found["reference"]["num_used"], found["reference"]["num_structures"]
    sample = "" if used == all_in else f" {used:,} of the reference's {all_in:,} crystals are used."
    parts = [
        f"<h2>Features</h2><p class='small'>Descriptors: {escape(found['fingerprints'])}; clipped at "
        f"{found['clipped_at']:g} standard deviations for distances.{sample} Distances and Vendi scores depend on the "
        "number of crystals: compare sets of equal size.</p>"
    ]
    if found["descriptors"] is not None:
        parts.append(_distances("descriptors", found["descriptors"]))
    if (latents := found["latents"]) is not None:
        parts.append(_distances(f"latents of {latents['vae']} ({latents['sha256'][:12]})", latents))
    titles = {"radial": "own fingerprints, not comparable with CDVAE's", "crystalnn": "CrystalNN and Magpie"}
    parts += [_coverage(titles[name], one) for name, one in found["coverage"].items() if one is not None]
    return "".join(parts)


def _distances(space: str, found: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{words}</td>{_number(found[name]['all'])}{_number(found[name]['valid'])}</tr>"
        for name, words in _ROWS
    ]
    head = f"<tr><th>in the space of {escape(space)}</th><th>all</th><th>valid only</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _coverage(title: str, found: Mapping[str, Any]) -> str:
    cutoffs = found["cutoffs"]
    rows = [
        f"<tr><td>{words}</td>{_share(found[name]['rate'])}<td class='n'>{found[name]['numerator']:,} of "
        f"{found[name]['denominator']:,}</td></tr>"
        for name, words in _RATES
    ]
    head = f"<tr><th>covered, by {escape(title)}</th><th></th><th></th></tr>"
    return (
        f"<table>{head}{''.join(rows)}</table><p class='small'>Cut-offs: structure {cutoffs['structure']:.3g}, "
        f"composition {cutoffs['composition']:.3g}; {escape(cutoffs['source'])}.</p>"
    )


def _number(value: float | None) -> str:
    return f"<td class='n'>{'–' if value is None else f'{value:.4g}'}</td>"


def _share(value: float | None) -> str:
    return f"<td class='n'>{'–' if value is None else f'{100 * value:.1f} %'}</td>"
