"""7net-0 behind our protocol; skipped where sevenn is not installed."""

from __future__ import annotations

import importlib.util
from dataclasses import astuple

import numpy as np
import pytest

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.ase_calculator import sevennet_potential
from latentite.energy.contract import check_potential

needs_sevenn = pytest.mark.skipif(
    importlib.util.find_spec("sevenn") is None, reason="the extra `sevennet` is not installed"
)


@needs_sevenn
def test_it_keeps_the_contract_and_says_what_it_is(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        CrystalArrays(n, c + rng.normal(0, 0.02, c.shape), a @ (np.eye(3) + 0.02))
        for n, c, a in map(astuple, (rocksalt, perovskite))
    ]
    potential = sevennet_potential()
    # float32 inside: differences of energies (eV) over 0.02 Å are good to about 1e-3.
    check_potential(potential, CrystalBatch.from_arrays(arrays), tolerance=2e-3, step=1e-2)
    card = potential.card
    assert card.name == "7net-0"
    assert card.sha256 is not None
    assert len(card.sha256) == 64
    assert len(card.elements) == 89
    assert card.theory.is_corrected is False
    assert card.cutoff == 5.0


@needs_sevenn
def test_rocksalt_keeps_its_energy(rocksalt: CrystalArrays) -> None:
    # What the shipped weights (sevenn 0.13) gave when the adapter was written: guards units and the number of atoms.
    energy = sevennet_potential().compute(CrystalBatch.from_arrays([rocksalt])).energy
    assert float(energy[0]) / 8 == pytest.approx(-3.38, abs=0.03)


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ase_calculator, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"latentite\[sevennet\]"):
        sevennet_potential()
