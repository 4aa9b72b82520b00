"""`latentite vae reconstruct` from the command line, on a folder of CIFs of which some are spoiled."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from latentite import cli
from latentite.checkpoint import PAYLOAD_KEY, Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A VAE with random weights."""
    config = VAEConfig(encoder=EncoderConfig(**SIZE), decoder=DecoderConfig(**SIZE))
    torch.manual_seed(0)
    state = {f"network.{name}": tensor for name, tensor in CrystalVAE(config).state_dict().items()}
    payload = build_payload(stage=Stage.VAE, config=config, data={}, metrics={})
    torch.save({"state_dict": state, PAYLOAD_KEY: payload}, tmp_path / "vae.ckpt")
    return tmp_path / "vae.ckpt"


@pytest.fixture
def cifs(tmp_path: Path, crystals: CrystalBatch) -> Path:
    """Sixteen good CIFs, and five that are spoiled in five ways."""
    folder = tmp_path / "cifs"
    folder.mkdir()
    structures = crystals.to_structures()
    for i, structure in enumerate(structures):
        structure.to(filename=str(folder / f"good_{i:02}.cif"), fmt="cif")
    (folder / "spoiled_empty.cif").write_text("", encoding="utf-8")
    (folder / "spoiled_html.cif").write_text("<!DOCTYPE html><html>404</html>", encoding="utf-8")
    (folder / "spoiled_text.cif").write_text("data_nothing\n_cell_length_a 4\n", encoding="utf-8")
    twice = structures[0].copy()
    twice.append("H", twice.frac_coords[0] + 0.001)
    twice.to(filename=str(folder / "spoiled_overlap.cif"), fmt="cif")
    large = structures[1] * (4, 4, 2)
    large.to(filename=str(folder / "spoiled_large.cif"), fmt="cif")
    return folder


def run(*arguments: object) -> int:
    """The exit code of `latentite vae reconstruct ...`."""
    return cli.main(["vae", "reconstruct", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))


def test_every_file_of_a_folder_is_in_exactly_one_table(checkpoint: Path, cifs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert run(checkpoint, cifs, "--out", out, "--no-cifs") == 0
    structures = list(csv.DictReader((out / "structures.csv").open(encoding="utf-8")))
    rejected = list(csv.DictReader((out / "rejected.csv").open(encoding="utf-8")))
    assert sorted(Path(row["id"]).stem for row in structures) == [f"good_{i:02}" for i in range(16)]
    reasons = {Path(row["id"]).stem: row["reason"] for row in rejected}
    assert sorted(reasons) == [f"spoiled_{name}" for name in ("empty", "html", "large", "overlap", "text")]
    assert "empty" in reasons["spoiled_empty"]
    assert "HTML" in reasons["spoiled_html"]
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (content["num_in"], content["num_accepted"], content["num_rejected"]) == (21, 16, 5)
    assert len(content["checkpoint"]["sha256"]) == 64
    assert not (out / "cifs").exists()


def test_limit_draws_the_same_crystals_for_the_same_seed(
    checkpoint: Path, cifs: Path, tmp_path: Path
) -> None:
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(checkpoint, cifs, "--out", tmp_path / name, "--limit", 5, "--seed", seed, "--no-cifs") == 0
        tables.append((tmp_path / name / "structures.csv").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
    assert len(tables[0].splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["--device", "abacus"], "device must be auto, cpu"),
        (["--weights", "ema"], "no EMA weights"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    checkpoint: Path,
    cifs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert run(checkpoint, cifs, "--out", tmp_path / "report", *arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_a_source_that_does_not_exist_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, tmp_path / "nowhere", "--out", tmp_path / "report") == 2
    assert "nowhere" in capsys.readouterr().err
