"""Reference tensors of the public system, where they are; one thread for tiny tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: on a busy machine a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def interop() -> Path:
    """Folder of the reference files (beside the real data); skips where there is none."""
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("LATENTITE_DATA_DIR", root.parent / "shared" / "data"))
    folder = data.parent / "interop"
    if not (folder / "ref_ldm.safetensors").is_file():
        pytest.skip(f"no reference files in {folder}; they lie beside the real data")
    return folder
