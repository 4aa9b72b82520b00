"""What is written for Chemeleon2: its names, shapes and hyperparameters, loadable by torch, and only where it fits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_classes import load_for_real
from torch import nn

from chemeleon2_files import small_ldm, small_vae, vae_config, write_ldm, write_ours, write_vae
from latentite import hub
from latentite.checkpoint import CheckpointError
from latentite.cli import main
from latentite.crystal import CrystalBatch
from latentite.interop.chemeleon2 import import_checkpoint
from latentite.interop.export import export_chemeleon2
from latentite.interop.pickled import InertRecord, read_pickled
from latentite.nn.denoiser import TokenIndex
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.transformer import index_embedding
from latentite.nn.vae import CoordinateHead, CrystalVAE

UNLIKE = {"enable_nested_tensor"}
"""Attributes that the exported modules may have otherwise: they change nothing that is computed."""
REFERENCES = ["tiny_vae", "tiny_ldm_uncond", "tiny_ldm_cond_band_gap"]


def tree(record: InertRecord, path: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, class and plain attributes of every pickled module."""
    shown = {k: v for k, v in record.attributes.items() if not k.startswith("_") and k not in UNLIKE}
    yield path, record.kind, shown
    for name, child in record.attributes["_modules"].items():
        if isinstance(child, InertRecord):
            yield from tree(child, f"{path}.{name}")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_imported_and_exported_is_the_reference(
    references: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    original = references / f"{name}.ckpt"
    written = export_chemeleon2(hub.resolve(original), tmp_path / f"{name}.ckpt")
    (tmp_path / "tiny_vae.ckpt").write_bytes(
        (references / "tiny_vae.ckpt").read_bytes()
    ) if "ldm" in name else None
    one, other = import_checkpoint(original), import_checkpoint(written)
    assert list(one.state) == list(other.state)
    assert all(one.state[key].equal(other.state[key]) for key in one.state)
    assert one.config == other.config
    there, here = read_pickled(original).content, read_pickled(written).content
    assert here.keys() == there.keys()
    assert here["hparams_name"] == there["hparams_name"]
    assert here["hyper_parameters"].keys() == there["hyper_parameters"].keys()
    for key, value in there["hyper_parameters"].items():
        made = here["hyper_parameters"][key]
        if isinstance(value, InertRecord):
            assert made.kind == value.kind, key
            if "_modules" in value.attributes:
                assert list(tree(made)) == list(tree(value)), key
        else:
            assert made == value, key
    shapes = [{key: stored.shape for key, stored in file["state_dict"].items()} for file in (here, there)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


def test_torch_loads_what_is_written(tmp_path: Path) -> None:
    content = load_for_real(write_ldm(tmp_path, is_conditional=True))
    said = content["hyper_parameters"]
    assert said["condition_module"].condition_type.band_gap == "float"  # an OmegaConf mapping
    assert said["condition_module"].stats.band_gap.mean == pytest.approx(0.75)
    assert said["diffusion_configs"].diffusion_steps == 1000
    assert isinstance(said["optimizer"], functools.partial)
    assert said["optimizer"].keywords == {"lr": 1e-4, "weight_decay": 0.0}
    denoiser = said["denoiser"]
    assert isinstance(denoiser, nn.Module)
    named = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    assert all(content["state_dict"][name].equal(value) for name, value in named.items())
    assert content["state_dict"]["latent_std"].shape == ()
    assert content["state_dict"]["latent_std"] == pytest.approx(1.3)


def test_torchs_own_transformer_with_the_written_modules_gives_our_latents(
    tmp_path: Path, crystals: CrystalBatch
) -> None:
    """An independent encoder: torch's modules out of the file, in evaluation mode, where its fast path is taken.

    That path computes the exact GELU although the modules ask for the tanh form, as ours does for such files.
    """
    encoder = load_for_real(write_vae(tmp_path))["hyper_parameters"]["encoder"].eval()
    largest = int(crystals.num_atoms.max())
    mask = torch.arange(largest) < crystals.num_atoms.unsqueeze(-1)
    with torch.no_grad():
        tokens = (
            encoder.atom_type_embedder(crystals.atomic_numbers)
            + encoder.lattices_embedder(crystals.lattice.flatten(1))[crystals.crystal_index]
            + encoder.frac_coords_embedder(crystals.frac_coords)
            + index_embedding(crystals.token_index, vae_config().encoder.d_model)
        )
        padded = tokens.new_zeros(*mask.shape, tokens.shape[-1])
        padded[mask] = tokens
        expected = encoder.transformer(padded, src_key_padding_mask=~mask)[mask]
        found = small_vae().features(crystals)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atom_type_predict": False}, "atom_type_predict must be True, got False"),
        ({"coordinate_head": CoordinateHead.CIRCLE}, "decoder.coordinate_head must be linear, got circle"),
        ({"index_embedding": False}, "decoder.index_embedding must be True, got False"),
    ],
)
def test_a_vae_that_chemeleon2_has_not_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = vae_config()
    if "atom_type_predict" in change:
        config = replace(config, **change)
    else:
        config = replace(config, decoder=replace(config.decoder, **change))
    ours = write_ours(tmp_path / "ours.ckpt", CrystalVAE(config))
    with pytest.raises(CheckpointError, match=f"ours.ckpt cannot be written for Chemeleon2: {message}"):
        export_chemeleon2(ours, tmp_path / "theirs.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["ours.ckpt"]


def test_every_obstacle_of_a_diffusion_model_is_named(tmp_path: Path) -> None:
    network = small_ldm()
    config = replace(network.config, denoiser=replace(network.config.denoiser, index=TokenIndex.NONE))
    other = LatentDiffusion(config)
    other.latent_mean.fill_(0.1)
    other.latent_std[0] = 2.0
    ours = write_ours(tmp_path / "ours.ckpt", other)
    with pytest.raises(CheckpointError) as caught:
        export_chemeleon2(ours, tmp_path / "theirs.ckpt", vae_ckpt_path="vae.ckpt")
    for part in (
        "denoiser.index must be sinusoidal",
        "latent_mean must be zero",
        "latent_std must be one number",
    ):
        assert part in str(caught.value)


def test_the_place_of_the_vae_must_be_known(tmp_path: Path) -> None:
    ours = write_ours(tmp_path / "ours.ckpt", small_ldm())
    with pytest.raises(CheckpointError, match="vae_ckpt_path must be given"):
        export_chemeleon2(ours, tmp_path / "theirs.ckpt")


def test_the_command_writes_both_formats(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_vae(tmp_path)
    assert main(["hub", "export", str(source), str(tmp_path / "a.ckpt"), "--format", "chemeleon2"]) == 0
    assert import_checkpoint(tmp_path / "a.ckpt").config == vae_config()
    assert main(["hub", "export", str(source), str(tmp_path / "b.safetensors")]) == 0
    assert (tmp_path / "b.json").is_file()
    capsys.readouterr()
    assert main(["hub", "export", str(source), str(tmp_path / "c.ckpt"), "--weights", "ema"]) == 1
    assert "has no EMA weights" in capsys.readouterr().err
    assert not (tmp_path / "c.ckpt").exists()
