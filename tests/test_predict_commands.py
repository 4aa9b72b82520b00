"""`latentite predict`: one row per structure of the source, failures included."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from latentite import cli
from latentite.base.plain import from_plain
from latentite.checkpoint import PAYLOAD_KEY, Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.predictor.predict import predict_dataset

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
SETTINGS = {
    "vae": {"encoder": SIZE, "decoder": SIZE},
    "targets": ["gap", "metal"],
    "classes": {"metal": ["no", "yes"]},
    "ensemble": 2,
    "fidelities": ["PBE", "HSE"],
}


def predictor(**changes: object) -> PropertyPredictor:
    torch.manual_seed(0)
    network = PropertyPredictor(from_plain(PredictorConfig, {**SETTINGS, **changes})).eval()
    for parameter in network.fidelity_heads.parameters():
        torch.nn.init.normal_(parameter)
    return network


def write(network: PropertyPredictor, path: Path) -> Path:
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    data = {"splits": {"train": {"num_atoms_histogram": [0] * 20 + [3]}}}  # largest cell: 20 atoms
    payload = build_payload(stage=Stage.PREDICTOR, config=network.config, data=data, metrics={})
    torch.save({"state_dict": state, PAYLOAD_KEY: payload}, path)
    return path


@pytest.fixture
def cifs(tmp_path: Path, crystals: CrystalBatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "cifs"
    folder.mkdir()
    structures = crystals.to_structures()
    for i, structure in enumerate(structures):
        structure.to(filename=str(folder / f"good_{i:02}.cif"), fmt="cif")
    (folder / "spoiled_text.cif").write_text("data_nothing\n_cell_length_a 4\n", encoding="utf-8")
    (structures[1] * (4, 4, 2)).to(filename=str(folder / "spoiled_large.cif"), fmt="cif")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_structure_has_a_row_with_values_or_a_reason(
    tmp_path: Path, cifs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = write(predictor(), tmp_path / "predictor.ckpt")
    assert cli.main(["predict", str(ckpt), str(cifs), "--out", str(tmp_path / "table.csv")]) == 0
    table = rows(tmp_path / "table.csv")
    assert list(table[0]) == ["id", "formula", "gap", "gap_std", "metal", "metal_probability", "failure"]
    good = [row for row in table if not row["failure"]]
    assert {row["id"] for row in good} == {f"good_{i:02}" for i in range(16)}
    assert all(float(row["gap_std"]) > 0 and row["metal"] in ("no", "yes") for row in good)
    assert all(0.5 <= float(row["metal_probability"]) <= 1 for row in good)
    failed = {row["id"]: row for row in table if row["failure"]}
    assert failed.keys() == {"spoiled_text", "spoiled_large"}
    assert "20" in failed["spoiled_large"]["failure"]
    assert all(row["gap"] == "" for row in failed.values())
    assert "16 of 18" in capsys.readouterr().out


def test_the_batch_size_does_not_matter_and_the_fidelity_does(tmp_path: Path, cifs: Path) -> None:
    ckpt = write(predictor(), tmp_path / "predictor.ckpt")

    def predicted(name: str, *options: str) -> list[float]:
        out = tmp_path / f"{name}.csv"
        assert cli.main(["predict", str(ckpt), str(cifs), "--out", str(out), *options]) == 0
        return [float(row["gap"]) for row in rows(out) if not row["failure"]]

    reference = predicted("whole")
    assert predicted("single", "--batch-size", "1") == pytest.approx(reference, abs=1e-4)
    assert predicted("named", "--fidelity", "PBE") == reference
    assert predicted("other", "--fidelity", "HSE") != pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fidelity", "GW"], "fidelity must be one of PBE, HSE, got 'GW'"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--device", "abacus"], "device must be auto, cpu"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    tmp_path: Path, cifs: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    ckpt = write(predictor(), tmp_path / "predictor.ckpt")
    assert cli.main(["predict", str(ckpt), str(cifs), "--out", str(tmp_path / "t.csv"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()


def test_an_element_without_a_baseline_fails_by_name(crystals: CrystalBatch) -> None:
    network = predictor(extents={"gap": "per_atom"})
    network.baselines.values[:, 0] = 1.0
    present = crystals.atomic_numbers[crystals.crystal_index == 3][0]
    network.baselines.values[:, 0, present] = torch.nan
    lacking = {int(i) for i in crystals.crystal_index[crystals.atomic_numbers == present]}
    ids = tuple(str(i) for i in range(len(crystals)))
    table = predict_dataset(network, CrystalDataset(crystals=crystals, ids=ids, content_hash=""))
    assert table.failures.keys() == lacking
    assert "must have a baseline of gap at fidelity PBE" in table.failures[3]
    assert table.rate.numerator + len(table.failures) == len(crystals)
