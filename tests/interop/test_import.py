"""Chemeleon2's checkpoints as ours: architecture, EMA, statistics, and errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chemeleon2_files import (
    BAND_GAP,
    VAE_NAME,
    ldm_config,
    small_ldm,
    small_vae,
    vae_config,
    write_ldm,
    write_ours,
    write_vae,
)
from latentite import hub
from latentite.base.files import sha256_file
from latentite.checkpoint import CheckpointError, read_checkpoint
from latentite.interop.chemeleon2 import import_checkpoint, is_chemeleon2
from latentite.interop.modules import save_named
from latentite.models import load_ldm, load_vae
from latentite.nn.denoiser import OutputLayout


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a file of these tests again, with a change; unpickled for real, its classes made on the way."""
    from foreign_classes import load_for_real

    content = load_for_real(path)
    change(content)
    save_named(content, path)
    return path


def test_a_vae_is_told_from_its_shapes_and_modules(tmp_path: Path) -> None:
    path = write_vae(tmp_path)
    assert is_chemeleon2(path)
    found = import_checkpoint(path)
    assert found.config == vae_config()
    assert found.ema is None
    state = small_vae().state_dict()
    assert found.state.keys() == state.keys()
    assert all(found.state[name].equal(state[name]) for name in state)
    assert found.hyper_parameters["loss_weights"]["angles"] == 10.0
    assert found.hyper_parameters["optimizer"]["lr"] == 1e-4


@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_diffusion_model_is_told_with_its_vae_and_statistics(
    tmp_path: Path, cache: Path, is_conditional: bool
) -> None:
    path = write_ldm(tmp_path, is_conditional=is_conditional)
    network, settings, record = load_ldm(path)
    assert settings == ldm_config(is_conditional=is_conditional)
    assert settings.denoiser.output_layout is OutputLayout.CHEMELEON2  # by the one setting, compatibility
    state = small_ldm(is_conditional=is_conditional).state_dict()
    assert all(network.state_dict()[name].equal(state[name]) for name in state)
    if network.condition_module is not None:
        assert network.condition_module.statistics == {"band_gap": pytest.approx(BAND_GAP)}
    assert record.data.others["source"]["file"] == path.name


def test_the_heads_of_a_carried_vae_come_from_its_own_file_or_not_at_all(tmp_path: Path) -> None:
    path = write_ldm(tmp_path, beside_vae=False)
    with pytest.raises(CheckpointError, match=f"does not say how many attention heads.*{VAE_NAME}"):
        import_checkpoint(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert import_checkpoint(path, find_vae=lambda: write_vae(elsewhere)).config == ldm_config()

    def other_weights(content: dict[str, Any]) -> None:
        content["state_dict"]["quant_conv.weight"] += 1.0

    wrong = altered(write_vae(tmp_path), other_weights)
    with pytest.raises(
        CheckpointError, match=f"{wrong.name} must be the VAE of .*but its weights are others"
    ):
        import_checkpoint(path)


def test_ema_and_raw_weights_are_both_there_and_raw_is_the_default(tmp_path: Path, cache: Path) -> None:
    """`shadow_params` is a list in the order of the parameters; `latent_std`, a buffer, is not in it."""

    def with_ema(content: dict[str, Any]) -> None:
        parameters = {name: t for name, t in content["state_dict"].items() if name != "latent_std"}
        shadow = [t + 0.25 if name.startswith("denoiser.") else t for name, t in parameters.items()]
        content["ema_state"] = {
            "decay": 0.9999,
            "num_updates": 10,
            "shadow_params": shadow,
            "collected_params": None,
        }

    path = altered(write_ldm(tmp_path), with_ema)
    raw = small_ldm().state_dict()
    for weights, shift in {None: 0.0, "raw": 0.0, "ema": 0.25}.items():
        network, _, record = load_ldm(path, weights=weights)
        assert record.weights == (weights or "raw")
        state = network.state_dict()
        for name in state:
            expected = raw[name] + shift if name.startswith("denoiser.") else raw[name]
            assert state[name].equal(expected), name
    card = hub.card(hub.resolve(path))
    assert card["weights"] == ["raw", "ema"]
    assert card["default_weights"] == "raw"


def test_a_file_without_ema_says_so(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="has no EMA weights"):
        load_ldm(write_ldm(tmp_path), weights="ema")


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["state_dict"].pop(name)


def _put(name: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["state_dict"].update({name: torch.zeros(shape)})


def _say(**entries: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["hyper_parameters"].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("decoder.lattice_head.weight"), r"decoder\.lattice_head\.weight is missing"),
        (_drop("post_quant_conv.weight"), r"it has no tensor post_quant_conv\.weight"),
        (_put("fa_head.weight", 4, 16), r"fa_head\.weight is not in the network"),
        (_put("quant_conv.weight", 6, 16), r"quant_conv\.weight is \[6, 16\] in the file, \[8, 16\] in"),
        (_put("encoder.transformer.layers.0.linear1.weight", 3), r"linear1\.weight must have 2 dimensions"),
        (_say(encoder=None), "its encoder and decoder must be Chemeleon2's transformers, got None"),
        (lambda content: content.pop("state_dict"), "it has no state_dict"),
        (lambda content: content.update(hyper_parameters=[]), "it has no hyper_parameters"),
        (lambda content: content["state_dict"].update({"x": "text"}), "must hold tensors by name, but 'x'"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path = altered(write_vae(tmp_path), change)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("denoiser.x_embedder.bias"), r"denoiser\.x_embedder\.bias is missing"),
        (_put("denoiser.blocks.0.attn.lora_A.weight", 4, 16), "has LoRA adapters.*merge them in Chemeleon2"),
        (_put("latent_std", 3), "latent_std must have 1 or 4 numbers, got 3"),
        (_say(diffusion_configs=None), "diffusion_configs must be a mapping"),
        (_say(diffusion_configs={"noise_schedule": "sqrt"}), "noise_schedule must be linear or squaredcos_cap_v2"),
        (_say(diffusion_configs={"learn_sigma": False}), "must have 4 rows for learn_sigma=False"),
        (_say(denoiser=None), "does not say how many attention heads its denoiser has"),
        (_say(condition_module=None), "does not say which conditions"),
        (_say(condition_module={"condition_type": {"band_gap": "int"}}), "must be of type float.*band_gap: int"),
        (
            _say(condition_module={"condition_type": {"band_gap": "float"}}),
            "band_gap must have a mean and a positive std, got None",
        ),
        (
            _say(condition_module={"condition_type": {"eg": "float"}, "stats": {"eg": {"mean": 0, "std": 1}}}),
            r"condition_module\.encoders\.band_gap\.\S+ is not in the network",
        ),
        (lambda content: content.update(ema_state={"shadow_params": None}), "must have a list of tensors"),
        (lambda content: content.update(ema_state={"shadow_params": []}), r"one tensor for each of the \d+ param"),
    ],
)  # fmt: skip
def test_a_diffusion_model_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = altered(write_ldm(tmp_path, is_conditional=True), change)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(path)
    assert path.name in str(caught.value)


def test_a_file_is_converted_once_and_what_is_kept_has_both_hashes(tmp_path: Path, cache: Path) -> None:
    path = write_vae(tmp_path)
    converted = hub.resolve(path)
    assert converted.parent == cache / "converted"
    card = hub.card(converted)
    assert card["sha256"] == sha256_file(converted)
    assert card["source"] == {"format": "chemeleon2", "file": path.name, "sha256": sha256_file(path)}
    assert card["stage"] == "vae"
    assert card["num_values"] == sum(t.numel() for t in small_vae().state_dict().values())
    written = converted.stat().st_mtime_ns
    assert hub.resolve(path) == converted
    assert converted.stat().st_mtime_ns == written
    content = converted.read_bytes()
    converted.write_bytes(content[:-1])  # damaged: its size betrays it
    assert hub.resolve(path).read_bytes() == content  # the same bytes again
    vae, _, record = load_vae(path)
    assert record.weights == "raw"
    assert vae.config == vae_config()
    assert read_checkpoint(converted).stage == "vae"


def test_our_own_files_are_given_as_they_are(tmp_path: Path, cache: Path) -> None:
    ours = write_ours(tmp_path / "ours.ckpt", small_vae())
    assert hub.resolve(ours) == ours
    converted = hub.resolve(write_vae(tmp_path))
    assert hub.resolve(converted) == converted
