"""Protocols: which of the numbers count as "valid", "unique" and "novel", as published systems have it.

Numbers of different protocols must not be compared with each other. Every protocol computes the same columns; it
only decides which of them stand behind the plain names. What of a system is not reproduced is said in `note`, which
the terminal, the page and `summary.json` repeat.

MatterGen compares by default with a matcher for disordered structures: elements whose radii differ by at most 0.3 and
whose electronegativities by at most 1 may stand for each other. How it relabels sites, which radii and
electronegativities it takes, and how it scales is not fixed by these two numbers, and a rule made up here would give
numbers that only look like its own. So `mattergen` takes the ordered matcher, which that system offers too. At equal
tolerances, what matches under it also matches where elements may be exchanged besides: `unique`, `novel` and SUN are
to be read as upper bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from latentite.match.reduced import LOOSE, STRICT, MatcherSettings
from latentite.metrics.composition import SmactRule

MATCHERS = (STRICT, LOOSE)
"""Every evaluation has the verdicts of both."""


class CompositionRule(StrEnum):
    """The rule that makes a composition valid, named as its column of the table."""

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
    """The distance of an atom to its own periodic images counts as well."""
    judges_relaxed: bool = True
    """`protocol_sun` and `protocol_msun` are of the relaxed structures, else of those that came."""
    stable_below: float = 0.0
    """eV/atom above hull; up to here a structure counts for `protocol_sun`."""
    msun: str | None = None
    """`msun` (includes stable ones) or `msun_exclusive`, whichever it reports, if any."""
    note: str
    """Its origin, and what of it is not reproduced here."""


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
            note="MatterGen with its ordered matcher (StructureMatcher 0.2/0.3/5), the old list of SMACT, and stable "
            "up to 0.1 eV/atom above the hull; not reproduced: its disordered matcher, which it takes by default and "
            "which counts more structures as copies and as known, so that unique, novel and SUN are to be read as "
            "upper bounds of its own; potential and hull (there MatterSim, Alexandria and MP, corrected) are those "
            "that --relax and --hull name",
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
