"""Random crystals in any of the 530 settings of space groups, expanded by spglib's operations, with their lines of CIF.

The truth of a case is made here by plain arithmetic, so that it shares nothing with the readers under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import spglib

from fuzz.case import Arrays
from latentite.elements import SYMBOLS

NUM_SETTINGS = 530
_SPECIAL = (0.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.75, 0.125, 0.375, 1 / 3, 2 / 3)
_ELEMENTS = (
    *(
        "Li",
        "Be",
        "B",
        "C",
        "N",
        "O",
        "F",
        "Na",
        "Mg",
        "Al",
        "Si",
        "P",
        "S",
        "Cl",
        "K",
        "Ca",
        "Ti",
        "V",
        "Cr",
    ),
    *(
        "Mn",
        "Fe",
        "Co",
        "Ni",
        "Cu",
        "Zn",
        "Ga",
        "Se",
        "Sr",
        "Zr",
        "Nb",
        "Ag",
        "In",
        "Sn",
        "I",
        "Ba",
        "La",
        "Pb",
    ),
)
_MIN_DISTANCE = 1.3
_SHIFTS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A space group in one setting, as spglib's database has it."""

    hall_number: int
    number: int
    choice: str
    hall_symbol: str
    short: str
    """The Hermann-Mauguin symbol of the group's standard setting, with blanks."""
    full: str
    """The full symbol in this setting, with blanks."""
    rotations: np.ndarray
    translations: np.ndarray

    @property
    def is_standard(self) -> bool:
        """Whether number or short symbol alone mean this setting, up to the choice of origin or axes."""
        return self.choice in ("", "1", "2", "H", "R", "b", "b1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One site of the asymmetric unit."""

    symbol: str
    position: np.ndarray
    multiplicity: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCrystal:
    """A crystal, by symmetry and expanded."""

    setting: Setting
    lengths: tuple[float, float, float]
    angles: tuple[float, float, float]
    sites: list[Site]
    arrays: Arrays


@cache
def setting(hall_number: int) -> Setting:
    """One of the 530 settings."""
    kind: Any = spglib.get_spacegroup_type(hall_number)
    operations: Any = spglib.get_symmetry_from_database(hall_number)
    return Setting(
        hall_number=hall_number,
        number=kind.number,
        choice=kind.choice,
        hall_symbol=kind.hall_symbol,
        short=kind.international.split("=")[0].strip().replace("_", ""),
        full=kind.international_full.replace("_", ""),
        rotations=operations["rotations"],
        translations=operations["translations"],
    )


def random_setting(chance: random.Random) -> Setting:
    """Any setting; every second one is of a kind of which the origin or the axes can be mistaken."""
    while chance.random() < 0.5:
        found = setting(chance.randint(1, NUM_SETTINGS))
        if found.choice in ("1", "2", "H", "R"):
            return found
    return setting(chance.randint(1, NUM_SETTINGS))


def random_crystal(chance: random.Random, *, max_atoms: int = 40) -> RandomCrystal:
    """A crystal of one to three elements whose atoms are at least 1.3 Å apart."""
    for _ in range(200):
        group = random_setting(chance)
        metric = _random_metric(chance, group)
        sites: list[Site] = []
        coords: list[np.ndarray] = []
        for symbol in chance.sample(_ELEMENTS, chance.randint(1, 3)):
            orbit = _orbit(group, _random_position(chance))
            if len(orbit) + sum(map(len, coords)) <= max_atoms:
                sites.append(Site(symbol=symbol, position=orbit[0], multiplicity=len(orbit)))
                coords.append(orbit)
        if not sites or _is_sparser_from_the_other_origin(group, sites):
            continue
        fractions = np.concatenate(coords)
        volume = chance.uniform(14.0, 22.0) * len(fractions)
        metric = metric * (volume**2 / np.linalg.det(metric)) ** (1 / 3)
        lengths, angles = _parameters(metric)
        if min(lengths) < 2.2 or min(angles) < 40.0 or max(angles) > 140.0:
            continue
        lattice = lattice_of(lengths, angles)
        if smallest_distance(fractions, lattice) < _MIN_DISTANCE:
            continue
        numbers = np.array(
            [SYMBOLS.index(site.symbol) + 1 for site in sites for _ in range(site.multiplicity)]
        )
        arrays = numbers, fractions, lattice
        return RandomCrystal(setting=group, lengths=lengths, angles=angles, sites=sites, arrays=arrays)
    raise AssertionError("200 tries must give one crystal")


def _is_sparser_from_the_other_origin(group: Setting, sites: list[Site]) -> bool:
    """Whether the sites would make fewer atoms in the setting's other choice of origin.

    A file that leaves the origin open means the sparser crystal: from the wrong origin atoms leave their special
    positions, and only by accident come to lie on others.
    """
    if group.choice not in ("1", "2"):
        return False
    other = setting(group.hall_number + (1 if group.choice == "1" else -1))
    return sum(len(_orbit(other, site.position)) - site.multiplicity for site in sites) < 0


def _random_position(chance: random.Random) -> np.ndarray:
    free = [
        chance.choice(_SPECIAL) if chance.random() < 0.85 else round(chance.random(), 4) for _ in range(3)
    ]
    if chance.random() < 0.2:  # on a mirror or an axis along a diagonal
        free[1] = free[0]
    if chance.random() < 0.1:
        free[2] = free[0]
    return np.array(free)


def _random_metric(chance: random.Random, group: Setting) -> np.ndarray:
    shape = np.array([[chance.uniform(-0.25, 0.25) for _ in range(3)] for _ in range(3)])
    shape += np.diag([chance.uniform(0.7, 1.4) for _ in range(3)])
    metric = shape @ shape.T
    rotations = group.rotations.astype(float)
    return (rotations.transpose(0, 2, 1) @ metric @ rotations).mean(0)


def _parameters(metric: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Cell lengths and angles, as rounded as a file gives them."""
    a, b, c = np.sqrt(np.diag(metric))
    cosines = metric[1, 2] / (b * c), metric[0, 2] / (a * c), metric[0, 1] / (a * b)
    alpha, beta, gamma = (round(float(np.degrees(np.arccos(cosine))), 4) for cosine in cosines)
    return (round(float(a), 5), round(float(b), 5), round(float(c), 5)), (alpha, beta, gamma)


def lattice_of(lengths: tuple[float, float, float], angles: tuple[float, float, float]) -> np.ndarray:
    """Row vectors, a along x and b in the xy plane."""
    a, b, c = lengths
    alpha, beta, gamma = np.radians(angles)
    cx = np.cos(beta)
    cy = (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / np.sin(gamma)
    cz = np.sqrt(max(1.0 - cx**2 - cy**2, 0.0))
    return np.array([[a, 0.0, 0.0], [b * np.cos(gamma), b * np.sin(gamma), 0.0], [c * cx, c * cy, c * cz]])


def _orbit(group: Setting, position: np.ndarray) -> np.ndarray:
    """All images of a position, once each; the first is the position itself."""
    images = (group.rotations @ position + group.translations) % 1.0
    kept: list[np.ndarray] = [position % 1.0]
    for image in images:
        difference = np.array(kept) - image
        difference -= np.round(difference)
        if not (np.abs(difference) < 1e-3).all(-1).any():
            kept.append(image)
    return np.array(kept)


def smallest_distance(coords: np.ndarray, lattice: np.ndarray) -> float:
    """Å, over atoms and images; exact enough for cells that are not too skew."""
    difference = coords[:, None] - coords[None]
    difference -= np.round(difference)
    vectors = (difference[:, :, None] + _SHIFTS) @ lattice
    distances = np.sqrt((vectors**2).sum(-1))
    distances[distances < 1e-9] = np.inf
    same = np.eye(len(coords), dtype=bool)
    if (np.sqrt((vectors**2).sum(-1)).min(-1)[~same] < 1e-3).any():
        return 0.0
    return float(distances.min())


def operation_text(rotation: np.ndarray, translation: np.ndarray) -> str:
    """`x-y,-y,z+1/2`."""
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        text = "".join(
            f"{'+' if value > 0 else '-'}{axis}" for value, axis in zip(row, "xyz", strict=True) if value
        )
        twelfths = round(shift * 12) % 12
        if twelfths:
            divisor = int(np.gcd(twelfths, 12))
            text += f"+{twelfths // divisor}/{12 // divisor}"
        parts.append(text.removeprefix("+"))
    return ",".join(parts)


def formula(crystal: RandomCrystal) -> tuple[dict[str, int], int]:
    """Atoms of each element in one formula unit, and the number of units in the cell."""
    counts: dict[str, int] = {}
    for site in crystal.sites:
        counts[site.symbol] = counts.get(site.symbol, 0) + site.multiplicity
    units = int(np.gcd.reduce(list(counts.values())))
    return {symbol: count // units for symbol, count in sorted(counts.items())}, units
