"""The public names from a hub on the loopback device: downloaded, converted, sampled from, by name alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import latentite
from chemeleon2_files import LATENT, small_ldm, small_vae, write_ldm, write_vae
from latentite import hub
from latentite.cli import main
from latentite.config import compose
from latentite.generators.sizes import training_sizes
from latentite.models import load_ldm, load_vae


@pytest.fixture
def public(served: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """All six names served: small files for the VAEs and for the diffusion models."""
    folder = tmp_path / "served"
    folder.mkdir()
    vae = write_vae(folder)
    ldm = write_ldm(folder)
    served |= {name: vae if name.endswith("_vae") else ldm for name in hub.PUBLIC}
    return served


def test_every_public_name_resolves_to_a_checkpoint_of_ours(public: dict[str, Path]) -> None:
    for name in hub.PUBLIC:
        path = hub.resolve(name)
        record = hub.card(path)
        assert record["source"]["sha256"] == hub.verify(name)
        if name.endswith("_vae"):
            state, expected = load_vae(path)[0].state_dict(), small_vae().state_dict()
        else:
            state, expected = load_ldm(name)[0].state_dict(), small_ldm().state_dict()
        assert all(state[key].equal(expected[key]) for key in expected)


def test_a_configuration_names_a_public_checkpoint(public: dict[str, Path]) -> None:
    settings = compose("train_ldm", ["ldm_module.ldm_ckpt_path=${hub:mp_20_ldm_rl}"])
    assert settings["ldm_module"]["ldm_ckpt_path"] == str(hub.resolve("mp_20_ldm_rl"))


def test_public_models_know_the_sizes_of_mp_20(public: dict[str, Path]) -> None:
    _, _, record = load_ldm("mp_20_ldm_base")
    sizes = training_sizes(record.data)
    assert sizes is not None
    assert sizes.largest == 20
    assert float(sizes.weights.sum()) == pytest.approx(1.0, abs=2e-3)
    assert sizes.weight(4) == 0.1527


def test_latentite_sample_by_public_name_gives_crystals(public: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "new"
    words = ["sample", "--ckpt", "mp_20_ldm_rl", "--num-samples", "6", "--steps", "10", "--out", str(out)]
    assert main(words) == 0
    with (out / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert len(list((out / "cifs").glob("*.cif"))) == 6


def test_the_same_seed_gives_the_same_crystals_by_name_and_by_path(
    public: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"num_samples": 4, "steps": 5, "seed": 3, "num_atoms": "2:6"}
    by_name = latentite.generate("mp_20_ldm_base", **settings)
    by_path = latentite.generate(str(public["mp_20_ldm_base"]), **settings)
    assert by_name.crystals.atomic_numbers.equal(by_path.crystals.atomic_numbers)
    assert by_name.crystals.frac_coords.equal(by_path.crystals.frac_coords)


def test_offline_after_the_first_use(public: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.resolve("alex_mp_20_ldm_rl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.resolve("alex_mp_20_ldm_rl") == first


def test_a_damaged_conversion_is_noticed(public: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    converted = hub.resolve("mp_20_vae")
    content = bytearray(converted.read_bytes())
    content[len(content) // 2] ^= 1
    converted.write_bytes(content)
    assert main(["hub", "verify", "mp_20_vae"]) == 1
    assert "remove it, and it is made again" in capsys.readouterr().err


def test_the_quirks_of_sampling_come_with_the_checkpoint(public: dict[str, Path]) -> None:
    """The denoiser's token j hears token j // 2 only through the last layer: the layout of the public files."""
    network, _, _ = load_ldm("mp_20_ldm_base")
    mask = torch.ones(1, 4, dtype=torch.bool)
    tokens = torch.zeros(1, 4, LATENT)
    with torch.no_grad():
        output = network.denoiser(tokens, torch.zeros(1), mask)
        rows = network.denoiser.final_layer.register_forward_hook(lambda _, __, out: raw.append(out))
        raw: list[torch.Tensor] = []
        network.denoiser(tokens, torch.zeros(1), mask)
        rows.remove()
    halves = raw[0].view(8, LATENT)
    assert output[0, :, :LATENT].equal(halves[:4])
    assert output[0, :, LATENT:].equal(halves[4:])
