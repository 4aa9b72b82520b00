"""Baselines as YAML: what was fitted stands there; the command fits on the training split and says what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from latentite.cli import main
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.elements import SYMBOLS
from latentite.nn.baseline_fit import fit_baselines, write_baselines

ENERGIES = {3: -1.9, 8: -4.9, 26: -8.3}


def planted(count: int, *, seed: int) -> CrystalBatch:
    generator = np.random.default_rng(seed)
    rows = [generator.choice(list(ENERGIES), size=generator.integers(1, 9)) for _ in range(count)]
    batch = CrystalBatch.from_arrays([CrystalArrays(row, np.zeros((len(row), 3)), np.eye(3)) for row in rows])
    return batch.with_properties(
        {"energy": torch.tensor([sum(ENERGIES[int(n)] for n in row) for row in rows])}
    )


def test_what_was_fitted_stands_in_the_file(tmp_path: Path) -> None:
    batch = planted(80, seed=1)
    labels = {**batch.properties, "fidelity": (torch.arange(80) % 2).float()}
    baselines, fits = fit_baselines(
        batch.with_properties(labels), targets=["energy"], extents=["total"], fidelities=["PBE", "PBE+U"]
    )
    path = tmp_path / "sae.yaml"
    write_baselines(
        path, baselines, fits, units={"energy": "eV"}, reference="PBE", provenance={"source": "x"}
    )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (content["format"], content["reference"], content["targets"]["energy"]["unit"]) == (1, "PBE", "eV")
    for column, fidelity in enumerate(("PBE", "PBE+U")):
        elements = content["targets"]["energy"]["fidelities"][fidelity]["elements"]
        values = baselines.values[column, 0]
        assert elements == {
            SYMBOLS[z - 1]: float(values[z]) for z in range(1, len(values)) if not values[z].isnan()
        }


def test_the_command_fits_the_training_split_and_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        batch = planted(300, seed=seed)
        if split == "test":  # labels that would be seen if they entered
            batch = batch.with_properties({"energy": batch.properties["energy"] + 1000.0})
        dataset = CrystalDataset(crystals=batch, ids=tuple(map(str, range(300))), content_hash=split)
        write_dataset(tmp_path / f"{split}.safetensors", dataset)
    out = tmp_path / "sae.yaml"
    command = ["baseline", "fit", str(tmp_path), "--property", "energy", "--out", str(out)]
    assert main(command) == 2  # the extent cannot be guessed from this name
    assert main([*command, "--extent", "total"]) == 0
    printed = capsys.readouterr().out
    assert "300 labels (0 missing), 12 trimmed, 3 elements" in printed
    fidelities = yaml.safe_load(out.read_text(encoding="utf-8"))["targets"]["energy"]["fidelities"]
    (values,) = (fidelity["elements"] for fidelity in fidelities.values())
    for number, value in ENERGIES.items():
        assert values[SYMBOLS[number - 1]] == pytest.approx(value, abs=1e-3)
    assert "unit: eV\n" in out.read_text()
