"""Bundled weights: half precision, borrowed tensors, cards; sampling from them without a name and without a network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_checkpoint import make_usable, write_checkpoint
from tiny_ldm import FLOW, tiny_network
from torch import nn

import latentite
from latentite import hub
from latentite.base.plain import to_plain
from latentite.checkpoint import CheckpointError, Stage, StoredFormat, build_payload, read_portable
from latentite.cli import main
from latentite.hub import DEFAULT_GPT, DEFAULT_LDM, HubError, names
from latentite.hub.bundle import bundle
from latentite.models import load_ldm
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import LoraConfig
from latentite.objectives.ldm import LDMStageConfig

CARD = {
    "trained_on": "random numbers",
    "licence": "none",
    "attribution": "nobody",
    "commands": ["python nothing.py"],
    "minutes": 0.5,
    "hardware": "one core",
    "good_for": ["tests"],
    "not_good_for": ["materials"],
}


def write(path: Path, network: nn.Module, stage: Stage, settings: object) -> Path:
    """A checkpoint of any network."""
    payload = build_payload(stage=stage, config=to_plain(settings), data={}, metrics={})
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "latentite": payload}, path)
    return path


def tuned_checkpoint(path: Path, base: LatentDiffusion) -> Path:
    """The base with adapters that do something, as reinforcement learning leaves it."""
    settings = LDMStageConfig(
        vae=base.config.vae, denoiser=base.config.denoiser, lora=LoraConfig(rank=2), diffusion=FLOW
    )
    network = LatentDiffusion(settings)
    network.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora" in name or "adapter" in name:
                parameter.normal_(std=0.2)
    return write(path, network, Stage.RL, settings)


@pytest.fixture
def trained(tmp_path: Path, own_cache: Path) -> tuple[Path, Path, LatentDiffusion]:
    """A VAE, a diffusion model on it, and that model in memory."""
    network = make_usable(tiny_network(FLOW))
    vae = write(tmp_path / "vae.ckpt", network.vae, Stage.VAE, network.config.vae)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    return vae, write_checkpoint(path, diffusion=FLOW), network


def card_file(folder: Path, **changes: object) -> Path:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("precision", "digits"), [(StoredFormat.FP16, 11), (StoredFormat.BF16, 8)])
def test_matrices_are_rounded_to_their_digits_and_read_as_float32(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path, precision: StoredFormat, digits: int
) -> None:
    """A float of p binary digits is off by at most half a unit in its last place: 2^-p of its size."""
    _, ldm, network = trained
    done = bundle(ldm, "small", tmp_path / "ckpts", precision=precision)
    whole = bundle(ldm, "whole", tmp_path / "ckpts", precision=StoredFormat.FP32)
    state = read_portable(done.weights).state
    assert done.size < 0.7 * whole.size
    assert whole.rounding == 0.0
    assert 2.0**-digits / 8 < done.rounding < 2.0**-digits
    for name, tensor in network.state_dict().items():
        assert state[name].dtype == tensor.dtype
        if tensor.ndim < 2:
            assert torch.equal(state[name], tensor), name
        else:
            assert ((state[name] - tensor).abs() <= 2.0**-digits * tensor.abs() + 2.0**-25).all(), name


def test_tables_in_double_precision_are_kept_with_what_is_missing_in_them(
    tmp_path: Path, own_cache: Path
) -> None:
    """A predictor's baselines by element, eV, are sums of large numbers of either sign; fp16 has three digits."""
    network = nn.Linear(16, 16)
    table = torch.full((1, 1, 4), 14.632060721917542, dtype=torch.float64)
    table[0, 0, 1] = torch.nan
    network.register_buffer("values", table)
    done = bundle(write(tmp_path / "last.ckpt", network, Stage.VAE, {}), "small", tmp_path / "ckpts")
    state = read_portable(done.weights).state
    assert state["values"].dtype == torch.float64
    torch.testing.assert_close(state["values"], table, rtol=0.0, atol=0.0, equal_nan=True)
    assert 0.0 < done.rounding < 1e-3


def test_what_the_vae_holds_is_not_written_twice(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path
) -> None:
    vae, ldm, network = trained
    out = tmp_path / "ckpts"
    bundle(vae, "a_vae", out)
    alone = bundle(ldm, "alone", out)
    lean = bundle(ldm, "lean", out, borrow=["a_vae"])
    assert lean.borrowed >= len(network.vae.state_dict())
    assert lean.weights.stat().st_size < alone.weights.stat().st_size
    first, second = read_portable(alone.weights).state, read_portable(lean.weights).state
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert hub.verify("lean") == read_portable(lean.card).sha256
    bundle(vae, "a_vae", out, precision=StoredFormat.BF16)
    with pytest.raises(CheckpointError, match=r"lean.json borrows from a a_vae with sha256 .* same place"):
        read_portable(lean.weights)
    with pytest.raises(HubError, match="borrows from a a_vae"):
        hub.verify("lean")
    (out / "a_vae.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"lean.json borrows from a_vae: .* must have a_vae.json beside it"
    ):
        read_portable(lean.weights)


def test_adapters_borrow_their_base_and_are_merged_where_they_are_used(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path
) -> None:
    vae, ldm, network = trained
    tuned = tuned_checkpoint(tmp_path / "tuned.ckpt", network)
    out = tmp_path / "ckpts"
    bundle(vae, "a_vae", out)
    base = bundle(ldm, "a_ldm", out, borrow=["a_vae"])
    lean = bundle(tuned, "a_rl", out, borrow=["a_ldm"])
    assert lean.borrowed == len(network.state_dict())
    assert lean.weights.stat().st_size < base.weights.stat().st_size
    merged, _, record = load_ldm("a_rl")
    expected, _, _ = load_ldm(tuned)
    assert record.config["lora"] is None
    for (name, one), other in zip(merged.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3, msg=name)


def test_a_loan_stays_in_its_folder_and_must_be_one(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path
) -> None:
    vae, ldm, _ = trained
    out = tmp_path / "ckpts"
    bundle(vae, "a_vae", out)
    lean = bundle(ldm, "lean", out, borrow=["a_vae"])
    with pytest.raises(CheckpointError, match="cannot borrow from itself"):
        bundle(ldm, "lean", out, borrow=["lean"])
    with pytest.raises(CheckpointError, match=r"there is no pair nowhere\.safetensors and nowhere\.json"):
        bundle(ldm, "other", out, borrow=["nowhere"])
    card = json.loads(lean.card.read_text(encoding="utf-8"))
    card["borrowed"] = {"../run/x": card["borrowed"]["a_vae"]}
    lean.card.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(CheckpointError, match="must borrow from its own folder"):
        read_portable(lean.weights)


def test_half_precision_is_refused_where_it_would_overflow(tmp_path: Path, own_cache: Path) -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    path = write(tmp_path / "last.ckpt", layer, Stage.VAE, {})
    with pytest.raises(CheckpointError, match=r"weight has values that fp16 cannot hold; take bf16"):
        bundle(path, "big", tmp_path / "ckpts")
    assert not list((tmp_path / "ckpts").glob("*"))
    assert bundle(path, "big", tmp_path / "ckpts", precision=StoredFormat.BF16).size > 0


def test_the_card_says_what_people_must_know(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path
) -> None:
    _, ldm, _ = trained
    (ldm.parent.parent / "provenance.json").write_text('{"commit": "abc123"}', encoding="utf-8")
    done = bundle(ldm, "told", tmp_path / "ckpts", card=card_file(tmp_path))
    about = json.loads(done.card.read_text(encoding="utf-8"))["about"]
    assert about == {**CARD, "commit": "abc123", "metrics": {}}
    with pytest.raises(ValueError, match="minutes must be more than 0"):
        bundle(ldm, "told", tmp_path / "ckpts", card=card_file(tmp_path, minutes=0))
    with pytest.raises(ValueError, match="good_four"):
        bundle(ldm, "told", tmp_path / "ckpts", card=card_file(tmp_path, good_four=[]))
    with pytest.raises(FileNotFoundError, match="--card must be a YAML file"):
        bundle(ldm, "told", tmp_path / "ckpts", card=tmp_path / "no.yaml")
    (tmp_path / "broken.yaml").write_text("trained_on: [1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML: [^\n]+$"):
        bundle(ldm, "told", tmp_path / "ckpts", card=tmp_path / "broken.yaml")
    with pytest.raises(ValueError, match="--name must be a name"):
        bundle(ldm, "a/b", tmp_path / "ckpts")


def test_the_command_writes_and_lists(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae, ldm, _ = trained
    out = str(tmp_path / "ckpts")
    assert main(["hub", "bundle", str(vae), "--name", "mp_20_biternary_vae", "--out", out]) == 0
    command = ["hub", "bundle", str(ldm), "--name", DEFAULT_LDM, "--out", out]
    assert main([*command, "--borrow", "mp_20_biternary_vae"]) == 0
    assert "tensors borrowed" in capsys.readouterr().out
    other = write(tmp_path / "other.ckpt", nn.Linear(2, 2), Stage.VAE, {})
    command = ["hub", "bundle", str(other), "--name", "other", "--out", out]
    assert main([*command, "--borrow", "mp_20_biternary_vae"]) == 1
    assert "nothing to borrow" in capsys.readouterr().err
    assert main(["hub", "list"]) == 0
    shown = capsys.readouterr().out
    assert "bundled" in shown
    assert hub.verify("mp_20_biternary_vae")[:12] in shown


NO_SOCKETS = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from latentite.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_sample_needs_neither_a_name_nor_a_network(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path
) -> None:
    _, ldm, _ = trained
    bundle(ldm, DEFAULT_GPT, tmp_path / "ckpts")
    words = [
        "sample",
        "--num-samples",
        "3",
        "--steps",
        "2",
        "--max-attempts",
        "50",
        "--out",
        str(tmp_path / "new"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_SOCKETS, *words],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["checkpoint"]["file"] == DEFAULT_GPT
    assert manifest["checkpoint"]["sha256"] == hub.verify(DEFAULT_GPT)


def test_generate_takes_the_bundled_model_and_says_when_there_is_none(
    trained: tuple[Path, Path, LatentDiffusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(
        ValueError, match=rf"{DEFAULT_GPT} .* comes with a clone .* {tmp_path}/ckpts; work in"
    ):
        latentite.generate(num_samples=1)
    bundle(trained[1], DEFAULT_GPT, tmp_path / "ckpts")
    found = latentite.generate(num_samples=2, steps=2, max_attempts=50)
    assert found.counts.written == 2


def test_a_clone_an_installation_and_the_working_directory_are_looked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENTITE_CKPT_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "clone" / "src" / "latentite"
    (package / "hub").mkdir(parents=True)
    monkeypatch.setattr(names, "__file__", str(package / "hub" / "names.py"))
    folders = [package / "ckpts", tmp_path / "clone" / "ckpts", tmp_path / "ckpts"]
    for folder in reversed(folders):
        folder.mkdir()
        (folder / "x.safetensors").write_bytes(b"x")
        assert names.bundled_files() == {"x": folder / "x.safetensors"}
    monkeypatch.setenv("LATENTITE_CKPT_DIR", str(tmp_path))
    assert names.bundled_files() == {}
