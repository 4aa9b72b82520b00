"""One crystal as numpy arrays: what processes send each other."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, astuple

import numpy as np
import pytest

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays


def test_a_crystal_comes_back_from_another_process_and_from_a_batch(rocksalt: CrystalArrays) -> None:
    for again in (pickle.loads(pickle.dumps(rocksalt)), CrystalBatch.from_arrays([rocksalt]).to_arrays()[0]):
        assert again.num_atoms == 8
        for array, other in zip(astuple(again), astuple(rocksalt), strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-6)


def test_a_crystal_cannot_be_changed_in_place_by_name(rocksalt: CrystalArrays) -> None:
    with pytest.raises(FrozenInstanceError):
        rocksalt.lattice = np.eye(3)  # type: ignore[misc]  # that is the point


def test_crystals_are_read_without_torch() -> None:
    code = "import sys, latentite.data.readers.cif; print(sorted({'torch', 'pymatgen', 'ase'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
