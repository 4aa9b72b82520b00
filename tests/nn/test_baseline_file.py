"""Baselines as YAML: what was fitted comes back; the command fits on the training split and says what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latentite.cli import main
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.nn.baseline_file import read_baselines, write_baselines
from latentite.nn.baseline_fit import fit_baselines

ENERGIES = {3: -1.9, 8: -4.9, 26: -8.3}


def planted(count: int, *, seed: int) -> CrystalBatch:
    generator = np.random.default_rng(seed)
    rows = [generator.choice(list(ENERGIES), size=generator.integers(1, 9)) for _ in range(count)]
    batch = CrystalBatch.from_arrays([CrystalArrays(row, np.zeros((len(row), 3)), np.eye(3)) for row in rows])
    return batch.with_properties(
        {"energy": torch.tensor([sum(ENERGIES[int(n)] for n in row) for row in rows])}
    )


def test_what_was_fitted_comes_back(tmp_path: Path) -> None:
    batch = planted(80, seed=1)
    labels = {**batch.properties, "fidelity": (torch.arange(80) % 2).float()}
    baselines, fits = fit_baselines(
        batch.with_properties(labels), targets=["energy"], extents=["total"], fidelities=["PBE", "PBE+U"]
    )
    path = tmp_path / "sae.yaml"
    write_baselines(
        path, baselines, fits, units={"energy": "eV"}, reference="PBE", provenance={"source": "x"}
    )
    again = read_baselines(path)
    assert (again.fidelities, again.targets, again.extents) == (("PBE", "PBE+U"), ("energy",), ("total",))
    assert torch.equal(again.values.isnan(), baselines.values.isnan())
    assert torch.equal(again.values.nan_to_num(), baselines.values.nan_to_num())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2", "must be baselines of format 1"),
        ("a: [", "must be YAML"),
        (
            "format: 1\ntargets: {e: {extent: total, fidelities: {PBE: {elements: {Xx: 1.0}}}}}",
            "KeyError.*Xx",
        ),
        (
            "format: 1\ntargets: {e: {extent: total, fidelities: {PBE: {elements: {Li: no}}}}}",
            "Li of PBE must be",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sae.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_baselines(tmp_path / "sae.yaml")


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
    values = read_baselines(out).values[0, 0]
    for number, value in ENERGIES.items():
        assert float(values[number]) == pytest.approx(value, abs=1e-3)
    assert "unit: eV\n" in out.read_text()
