"""A cache of their own for the tests of evaluation, and crystals whose verdicts are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple

import numpy as np
import pytest

from latentite.crystal_arrays import CrystalArrays


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTITE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def planted() -> Callable[[int, int], list[CrystalArrays]]:
    """So many distinct rock salts, then copies of the first of them with another origin and order of atoms."""

    def make(distinct: int, copies: int) -> list[CrystalArrays]:
        pairs = [(cation, anion) for cation in (3, 11, 19, 37, 55) for anion in (9, 17, 35, 53)]
        cell = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
        sites, shift = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]), np.array([0.2, 0.7, 0.4])
        crystals = [
            CrystalArrays(np.array(pair), sites, (4.0 + 0.03 * sum(pair)) * cell) for pair in pairs[:distinct]
        ]
        moved = [
            CrystalArrays(n[::-1], (sites[::-1] + shift) % 1, c)
            for n, sites, c in map(astuple, crystals[:copies])
        ]
        return crystals + moved

    return make
