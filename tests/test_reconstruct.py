"""The reconstruction report: an autoencoder known to be perfect, or known to be wrong, must look so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pymatgen.core import Structure

from latentite.checkpoint import PAYLOAD_KEY, CheckpointError, Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.readers.records import Rejection
from latentite.evaluation.reconstruct import file_stems, rebuild, reconstruct, write_report
from latentite.models import load_vae
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}


class Fake(torch.nn.Module):
    """An autoencoder that gives back what a function makes of its input."""

    def __init__(self, change=lambda batch: batch) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.config = SimpleNamespace(atom_type_predict=True)
        self.change = change
        self.batch_sizes: list[int] = []

    def reconstruct(self, batch: CrystalBatch) -> SimpleNamespace:
        self.batch_sizes.append(len(batch))
        return SimpleNamespace(to_crystals=lambda given: self.change(batch))


@pytest.fixture
def dataset(crystals: CrystalBatch) -> CrystalDataset:
    names = tuple(f"crystal/{i}" for i in range(len(crystals)))
    return CrystalDataset(crystals=crystals, ids=names, content_hash="none")


def tiny_checkpoint(path: Path, *, atom_type_predict: bool = True) -> CrystalVAE:
    config = VAEConfig(
        encoder=EncoderConfig(**SIZE), decoder=DecoderConfig(**SIZE), atom_type_predict=atom_type_predict
    )
    torch.manual_seed(0)
    network = CrystalVAE(config)
    payload = build_payload(stage=Stage.VAE, config=config, data={}, metrics={})
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, PAYLOAD_KEY: payload}, path)
    return network


def test_a_perfect_autoencoder_matches_everything_in_the_order_of_the_source(dataset: CrystalDataset) -> None:
    fake = Fake()
    result = reconstruct(fake, dataset, batch_size=5)  # type: ignore[arg-type]  # a stand-in
    assert fake.batch_sizes == [5, 5, 5, 1]
    assert torch.equal(result.rebuilt.frac_coords, dataset.crystals.frac_coords)
    assert torch.equal(result.rebuilt.num_atoms, dataset.crystals.num_atoms)
    assert {name: (rate.numerator, rate.denominator) for name, rate in result.rates.items()} == {
        "composition_correct": (16, 16),
        "match_loose": (16, 16),
        "match_strict": (16, 16),
    }
    assert result.means["coordinate_rmse"] == pytest.approx(0.0, abs=1e-5)


def test_wrong_elements_and_nonsense_cells_match_nothing_and_stop_nothing(dataset: CrystalDataset) -> None:
    wrong = Fake(lambda batch: replace(batch, atomic_numbers=batch.atomic_numbers % 90 + 1))
    result = reconstruct(wrong, dataset)  # type: ignore[arg-type]
    assert result.rates["match_loose"].numerator == 0
    assert result.means["element_accuracy"] == 0.0
    broken = Fake(lambda batch: replace(batch, lattice=batch.lattice * float("nan")))
    result = reconstruct(broken, dataset)  # type: ignore[arg-type]
    assert result.rates["match_loose"].numerator == 0
    assert result.means["element_accuracy"] == 1.0


@pytest.mark.pictures
def test_report_names_every_structure_and_counts_add_up(dataset: CrystalDataset, tmp_path: Path) -> None:
    def spoil_the_cell_of_single_atoms(batch: CrystalBatch) -> CrystalBatch:
        factor = torch.where(batch.num_atoms > 1, 1.0, float("nan"))
        return replace(batch, lattice=batch.lattice * factor[:, None, None])

    rejected = [Rejection(source="s.csv", row=3, id="bad", reason="partial occupancy")]
    result = reconstruct(Fake(spoil_the_cell_of_single_atoms), dataset, rejections=rejected)  # type: ignore[arg-type]
    stale = tmp_path / "cifs" / "old_original.cif"
    stale.parent.mkdir()
    stale.write_text("from an older report")
    write_report(result, tmp_path, source="s.csv", num_pictures=2)
    rows = list(csv.DictReader((tmp_path / "structures.csv").open(encoding="utf-8")))
    num_single = int((dataset.crystals.num_atoms == 1).sum())
    assert [row["id"] for row in rows] == list(dataset.ids)
    assert sum(row["matched_loose"] == "yes" for row in rows) == 16 - num_single
    assert sum(row["cif_reconstructed"] == "" for row in rows) == num_single
    for row, original in zip(rows, dataset.crystals.to_structures(), strict=True):
        read = Structure.from_file(tmp_path / "cifs" / row["cif_original"])
        assert read.composition == original.composition
        assert read.volume == pytest.approx(original.volume, rel=1e-4)
    assert not stale.exists()
    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (content["num_in"], content["num_accepted"], content["num_rejected"]) == (17, 16, 1)
    assert content["rates"]["match_loose"]["numerator"] == 16 - num_single
    assert "partial occupancy" in (tmp_path / "rejected.csv").read_text(encoding="utf-8")
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000


def test_file_names_are_safe_and_distinct() -> None:
    names = file_stems(["mp-1", "../../etc/passwd", "a/b", "a b", "A_b", "", "...", "é" * 300])
    assert names == ["mp-1", "etc_passwd", "a_b", "a_b_2", "A_b_3", "structure", "structure_2", "structure_3"]


@pytest.mark.parametrize("atom_type_predict", [True, False])
def test_loaded_network_rebuilds_as_the_saved_one_whatever_the_batch_size(
    tmp_path: Path, crystals: CrystalBatch, atom_type_predict: bool
) -> None:
    network = tiny_checkpoint(tmp_path / "vae.ckpt", atom_type_predict=atom_type_predict)
    loaded, _, record = load_vae(tmp_path / "vae.ckpt")
    assert record.stage == "vae"
    with torch.inference_mode():
        given = None if atom_type_predict else crystals.atomic_numbers
        expected = network.eval().reconstruct(crystals).to_crystals(given)
    for batch_size in (3, 100):
        actual = rebuild(loaded, crystals, batch_size=batch_size)
        assert torch.equal(actual.atomic_numbers, expected.atomic_numbers)
        torch.testing.assert_close(actual.lattice, expected.lattice, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(actual.frac_coords, expected.frac_coords, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_whose_config_lacks_a_key_is_refused_by_its_name(tmp_path: Path) -> None:
    payload = build_payload(stage=Stage.VAE, config={"encoder": {}}, data={}, metrics={})
    torch.save({"state_dict": {"network.x": torch.zeros(1)}, PAYLOAD_KEY: payload}, tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="decoder"):
        load_vae(tmp_path / "vae.ckpt")
