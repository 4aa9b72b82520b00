"""One loader for trained models, and the card that says what they were trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import lightning_file
from latentite.checkpoint import CheckpointError, DataCard, SplitCard, export_portable, read_checkpoint
from latentite.models import Loaded, load_ldm, load_predictor, load_vae
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.vae import CrystalVAE

BUNDLED = Path(__file__).parents[1] / "ckpts"
LOADERS: dict[str, tuple[Callable[..., Loaded[Any, Any]], type[torch.nn.Module]]] = {
    "vae": (load_vae, CrystalVAE),
    "ldm": (load_ldm, LatentDiffusion),
    "ldm_rl": (load_ldm, LatentDiffusion),
    "predictor_band_gap": (load_predictor, PropertyPredictor),
}


@pytest.mark.parametrize("model", LOADERS)
def test_every_bundled_model_loads_by_name_with_one_contract(model: str) -> None:
    load, kind = LOADERS[model]
    network, settings, record = load(f"mp_20_biternary_{model}")
    assert isinstance(network, kind)
    assert not network.training
    assert settings.__class__(**{name: getattr(settings, name) for name in record.config}) == settings
    assert record.data.name == "mp_20_biternary"
    assert record.data.split("train").num_crystals == 10458
    assert record.data.largest_cell == 20


@pytest.mark.parametrize("model", LOADERS)
def test_a_loader_refuses_a_model_of_another_kind(model: str) -> None:
    for load, kind in LOADERS.values():
        if kind is not LOADERS[model][1]:
            with pytest.raises(CheckpointError, match=r"expected a .* checkpoint, got"):
                load(f"mp_20_biternary_{model}")


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.json")), ids=lambda path: path.stem)
def test_the_data_card_says_what_the_file_says_and_is_written_back_unchanged(path: Path) -> None:
    said = json.loads(path.read_text(encoding="utf-8"))["data"]
    card = read_checkpoint(path).data
    assert card.to_plain() == said
    assert list(card.to_plain()) == list(said)
    assert json.dumps(DataCard.of(said).to_plain()) == json.dumps(said)


def test_a_data_card_keeps_what_it_does_not_know() -> None:
    data = {"source": {"format": "chemeleon2"}, "splits": {"train": {"num_atoms_histogram": [0, 0.25, 0.75]}}}
    card = DataCard.of(data)
    assert card.train_sizes == [0, 0.25, 0.75]
    assert card.others == {"source": {"format": "chemeleon2"}}
    assert card.to_plain() == data


def test_a_data_card_of_an_old_checkpoint_says_nothing_rather_than_fail() -> None:
    card = DataCard.of({})
    assert card == DataCard()
    assert card.to_plain() == {}
    assert (card.name, card.train_sizes, card.largest_cell) == (None, None, 0)
    assert card.split("val") == SplitCard()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"splits": [1]}, "data.splits must be a section of keys"),
        ({"splits": {"train": 3}}, "data.splits.train must be a section of keys"),
        ({"splits": {"train": {"num_atoms_histogram": "many"}}}, "num_atoms_histogram must be a list"),
        ({"splits": {"train": {"num_atoms_histogram": [0, "a"]}}}, r"num_atoms_histogram\[1\] must be"),
        ({"name": 5}, "data.name must be text"),
        (
            {"fidelities": {"PBE": {"dispersion": "yes"}}},
            "data.fidelities.PBE.dispersion must be true or false",
        ),
    ],
)
def test_a_damaged_data_card_is_refused_with_the_file_and_the_key(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    """Once such a file was read, and the first who asked for the sizes of the training set failed with a traceback."""
    path = lightning_file(tmp_path / "x.ckpt", data=data)
    with pytest.raises(
        CheckpointError, match=rf"x\.ckpt is not a checkpoint that Latentite wrote: .*{message}"
    ):
        read_checkpoint(path)


def test_a_config_that_describes_no_such_model_is_refused_with_the_file_and_the_key(tmp_path: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(BUNDLED / f"mp_20_biternary_vae{suffix}", tmp_path / f"vae{suffix}")
    card = json.loads((tmp_path / "vae.json").read_text(encoding="utf-8"))
    card["config"]["latent_dimension"] = 8
    (tmp_path / "vae.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vae.safetensors: .*latent_dimension is not a setting"):
        load_vae(tmp_path / "vae.json")


def test_a_card_is_exported_as_it_was_read(tmp_path: Path) -> None:
    _, card = export_portable(BUNDLED / "mp_20_biternary_vae.json", tmp_path / "again")
    before = json.loads((BUNDLED / "mp_20_biternary_vae.json").read_text(encoding="utf-8"))
    assert json.loads(card.read_text(encoding="utf-8"))["data"] == before["data"]
