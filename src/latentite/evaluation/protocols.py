"""Protocols: which of the numbers count as "valid", "unique" and "novel", as published systems have it.

Numbers of different protocols must not be compared with each other. Every protocol computes the same columns; it
only decides which of them stand behind the plain names. Comes after `match/` and `metrics/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from latentite.match.settings import LOOSE, STRICT, MatcherSettings
from latentite.metrics.composition import SmactRule

MATCHERS = (STRICT, LOOSE)
"""Every evaluation has the verdicts of both."""


class CompositionRule(StrEnum):
    """What makes a composition valid: the column of the table that says so."""

    SMACT_ICSD24 = SmactRule.ICSD24.value
    SMACT_PAULING = SmactRule.PAULING.value
    CHARGE_NEUTRAL = "charge_neutral"
    """Neutral by bond valences or by composition (`metrics/charge.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Thresholds and settings under one name."""

    name: str
    matcher: MatcherSettings
    """Decides `unique` and `novel`."""
    composition_rule: CompositionRule
    """Decides `composition_valid`."""
    min_distance: float = 0.5
    """Å; closer atoms make a structure invalid."""
    min_volume: float = 0.1
    """Å^3 of the cell; a smaller one makes a structure invalid."""
    own_images: bool = True
    """Whether the distance of an atom to its own periodic images counts as well."""
    judges_relaxed: bool = True
    """Whether `protocol_sun` and `protocol_msun` are of the relaxed structures, or of those that came."""
    stable_below: float = 0.0
    """eV/atom above hull; up to here a structure counts for `protocol_sun`."""
    msun: str | None = None
    """Which of `msun` (includes stable ones) and `msun_exclusive` it reports, if any."""
    note: str
    """Where it comes from, and what of it is not reproduced here."""


_DEFAULT_NOTE = "pymatgen's default tolerances and smact 4's default list of oxidation states"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="default",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_ICSD24,
            note=_DEFAULT_NOTE,
        ),
        Protocol(
            name="chemeleon2",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_ICSD24,
            judges_relaxed=False,
            msun="msun",
            note="Chemeleon2: StructureMatcher 0.2/0.3/5, unique = first of each group, SMACT icsd24",
        ),
        Protocol(
            name="mattergen",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_PAULING,
            own_images=False,
            stable_below=0.1,
            note="MatterGen with its ordered matcher 0.2/0.3/5; its disordered matcher, which that system takes "
            "by default and which counts more structures as known, is not reproduced",
        ),
        Protocol(
            name="cdvae",
            matcher=LOOSE,
            composition_rule=CompositionRule.SMACT_PAULING,
            own_images=False,
            note="CDVAE and its family: StructureMatcher 0.3/0.5/10, SMACT with the old list; coverage (COV-R, COV-P) "
            "with its fingerprints and cut-offs needs --fingerprints crystalnn, without it the cut-offs are "
            "calibrated and the numbers not CDVAE's",
        ),
        Protocol(
            name="lemat",
            matcher=STRICT,
            composition_rule=CompositionRule.CHARGE_NEUTRAL,
            judges_relaxed=False,
            msun="msun_exclusive",
            note="LeMat-GenBench's choice of the structure matcher; its fingerprint hash is not reproduced. A "
            "composition is valid when charges balance, in the order of its questions, but with frequencies of "
            "oxidation states in the ICSD and with mixed valence (see metrics/charge.py), so the rate is near its own "
            "and not equal to it",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]
