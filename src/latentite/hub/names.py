"""Names of checkpoints: the public ones, those in the `ckpts` folders, and what a mistyped one may mean."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from latentite.base.download import DownloadError

REPOSITORY = "hspark1212/chemeleon2-checkpoints"
PUBLIC: dict[str, str] = {
    "mp_20_vae": "v0.0.1/mp_20/vae/dng_m4owq4i5_v0.ckpt",
    "alex_mp_20_vae": "v0.0.1/alex_mp_20/vae/dng_j1jgz9t0_v1.ckpt",
    "mp_20_ldm_base": "v0.0.1/mp_20/ldm/ldm_null_4tfw67aq.ckpt",
    "alex_mp_20_ldm_base": "v0.0.1/alex_mp_20/ldm/ldm_null_k744ob4i.ckpt",
    "mp_20_ldm_rl": "v0.0.1/mp_20/ldm/ldm_rl_dng_xxq3a0mn.ckpt",
    "alex_mp_20_ldm_rl": "v0.0.1/alex_mp_20/ldm/ldm_rl_dng_tuor5vgd.ckpt",
}
"""The public Chemeleon2 checkpoints: name -> path in `REPOSITORY`."""

DEFAULT_GPT = "mp_mix_gpt"
"""The bundled model that is sampled from when none is named."""
DEFAULT_LDM = "mp_20_biternary_ldm"
"""The bundled latent diffusion model."""
BUNDLE_PRECISION: Final = "fp16"
"""Number format of the matrices of a bundled model, unless something else is asked for (`checkpoint.StoredFormat`)."""
BUNDLED = {
    DEFAULT_GPT: "crystal GPT, conditional",
    "mp_20_biternary_vae": "crystal VAE",
    DEFAULT_LDM: "latent diffusion, unconditional",
    "mp_20_biternary_ldm_composition": "latent diffusion by formula",
    "mp_20_biternary_ldm_formation_energy": "latent diffusion by formation energy",
    "mp_20_biternary_ldm_rl": "the unconditional model after reinforcement learning",
    "mp_20_biternary_predictor_formation_energy": "predictor of the formation energy",
    "mp_20_biternary_predictor_band_gap": "predictor of the band gap",
}
"""Names that this repository is to have in `ckpts/`, and what each is; `bundled_files` says which are there."""

SUFFIXES = (".safetensors", ".ckpt")  # in the order in which they are preferred


class HubError(DownloadError):
    """A checkpoint cannot be had: offline, unreachable, refused, or damaged. One sentence says what to do."""


class Origin(StrEnum):
    """Origins of a name."""

    BUNDLED = "bundled"
    PUBLIC = "public"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One name that `resolve` knows."""

    name: str
    kind: Origin
    where: str
    """The file of a bundled checkpoint; repository and path of a public one."""
    path: Path | None
    """The file on this machine, or None when it has not been downloaded."""
    sha256: str | None
    """As recorded; None when nothing is recorded."""
    size: int | None
    """Bytes of the file on this machine."""


def unknown_name(name: str, names: Iterable[str]) -> ValueError:
    """The error for a name that is none of `names`; near ones are suggested."""
    known = {candidate.lower(): candidate for candidate in names}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)]
    advice = f"did you mean {' or '.join(close)}?" if close else f"the names are {', '.join(known.values())}"
    return ValueError(f"there is no checkpoint named {name!r}; {advice}")


def missing_bundled(name: str) -> ValueError:
    """The error for a name of `BUNDLED` that is not on this machine."""
    folders = ", ".join(map(str, bundled_folders()))
    return ValueError(
        f"{name} ({BUNDLED[name]}) comes with a clone of Latentite's repository, in its folder ckpts, and is not in "
        f"{folders}; work in a clone, set LATENTITE_CKPT_DIR to such a folder, or name another checkpoint: a file, or "
        "a name of `latentite hub list`"
    )


def bundled_folders() -> list[Path]:
    """Folders of bundled checkpoints: LATENTITE_CKPT_DIR if it is set, and nowhere else then; otherwise
    `ckpts` inside the installed package, of the checkout that the package runs from, and of the working directory."""
    if own := os.environ.get("LATENTITE_CKPT_DIR"):
        return [Path(own)]
    package = Path(__file__).parents[1]
    folders = [package / "ckpts", package.parents[1] / "ckpts", Path.cwd() / "ckpts"]
    return list(dict.fromkeys(folders))


def bundled_files() -> dict[str, Path]:
    """Name -> file of every checkpoint in the `ckpts` folders; the first folder that has a name wins."""
    files: dict[str, Path] = {}
    for folder in bundled_folders():
        for suffix in SUFFIXES:
            for path in sorted(folder.glob(f"*{suffix}")):
                files.setdefault(path.name.removesuffix(suffix), path)
    return files
