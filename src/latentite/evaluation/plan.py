"""Which optional sections an evaluation has: energies, CrystalNN, latents, conditions, targets.

Everything that a user can get wrong is refused here, before anything heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from latentite.evaluation.condition_section import check_tolerances, condition_section
from latentite.evaluation.descriptors import LatentSpace, open_latent_space
from latentite.evaluation.energy_options import EnergyOptions, reference_hull
from latentite.evaluation.energy_section import energy_section
from latentite.evaluation.feature_section import feature_section
from latentite.evaluation.prediction_section import prediction_section
from latentite.evaluation.read import Crystals
from latentite.evaluation.table import MakeSection


class Fingerprints(StrEnum):
    """By which coverage is measured."""

    RADIAL = "radial"
    CRYSTALNN = "crystalnn"
    """CDVAE's as well: about 0.3 s a crystal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Options that were checked."""

    energies: EnergyOptions | None
    fingerprints: Fingerprints
    space: LatentSpace | None
    tolerances: Mapping[str, float]

    @property
    def relax(self) -> str:
        """In a few words."""
        return "none" if self.energies is None else self.energies.name

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for the record of a run."""
        return {
            "relax": "none" if self.energies is None else self.energies.to_plain(),
            "fingerprints": self.fingerprints.value,
            "vae (sha256)": None if self.space is None else self.space.sha256,
            "tolerances": dict(self.tolerances),
        }

    def check_source(self, crystals: Crystals) -> None:
        """What can only be said of the options once the source is read.

        Raises:
            ValueError: for tolerances of what was not asked, or an energy that was asked to be 0 without one.
        """
        check_tolerances(self.tolerances, crystals, has_energies=self.energies is not None)

    def sections(self, targets: Crystals | None) -> tuple[MakeSection, ...]:
        """The sections in their order, after those that every evaluation has."""
        found = [
            feature_section(with_crystal_nn=self.fingerprints is Fingerprints.CRYSTALNN, space=self.space)
        ]
        if self.energies is not None:
            found.append(energy_section(self.energies))
        found.append(condition_section(self.tolerances))  # after the energies, which may be asked
        if targets is not None:
            found.append(prediction_section(targets))
        return tuple(found)


def make_plan(
    *,
    relax: str | EnergyOptions,
    hull: str | Path | Sequence[str | Path] | None,
    reference: object,
    fingerprints: str,
    vae: str | Path | None,
    tolerances: Mapping[str, float] | None,
) -> Plan:
    """The plan for options as users give them; `run.evaluate` says what they mean and raise."""
    if fingerprints not in list(Fingerprints):
        raise ValueError(f"--fingerprints must be one of {', '.join(Fingerprints)}, got {fingerprints!r}")
    chosen = Fingerprints(fingerprints)
    for option, is_given in (("--fingerprints crystalnn", chosen is Fingerprints.CRYSTALNN), ("--vae", vae)):
        if is_given and reference is None:
            raise ValueError(f"{option} must be given together with --reference, got nothing to compare with")
    return Plan(
        energies=_energy_options(relax, hull, reference),
        fingerprints=chosen,
        space=None if vae is None else open_latent_space(vae),
        tolerances=dict(tolerances or {}),
    )


def _energy_options(
    relax: str | EnergyOptions, hull: str | Path | Sequence[str | Path] | None, reference: object
) -> EnergyOptions | None:
    """What is asked of energies, checked before anything heavy."""
    if relax == "none":
        if hull is not None:
            raise ValueError("--hull must be given together with --relax, got no potential to judge by")
        return None
    options = EnergyOptions(potential=relax) if isinstance(relax, str) else relax
    if hull is not None:
        options = replace(options, hull=(hull,) if isinstance(hull, str | Path) else tuple(hull))
    elif not options.hull:
        options = replace(options, hull=reference_hull(reference))
    options.check()
    return options
