"""Checkpoints: what is written is what is read, as a Lightning file and as a portable pair."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from checkpoint_files import Head, TinyConfig, assert_same_state, lightning_file, tiny_network
from latentite import checkpoint
from latentite.base.files import sha256_file
from latentite.base.plain import from_plain
from latentite.checkpoint import (
    CheckpointError,
    Stage,
    Weights,
    build_payload,
    export_portable,
    network_of,
    plain,
    read_checkpoint,
    read_portable,
    require_fit,
)


def test_a_lightning_file_gives_its_record(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "last.ckpt")
    record = read_checkpoint(path, stage="vae")
    assert (record.path, record.stage, record.sha256) == (path, Stage.VAE, sha256_file(path))
    assert from_plain(TinyConfig, record.config) == TinyConfig(width=8)
    assert record.data.to_plain() == {"content_hash": "ab12", "num_train": 100}
    assert record.metrics == {"val/match_rate": 0.5}


def test_ema_weights_are_the_default_and_buffers_come_along(tmp_path: Path) -> None:
    record = read_checkpoint(lightning_file(tmp_path / "a.ckpt"))
    raw = tiny_network().state_dict()
    parameters = dict(tiny_network().named_parameters())
    expected = {name: t + 1 if name in parameters else t for name, t in raw.items()}
    assert record.weights is Weights.EMA
    assert_same_state(record.state, expected)


def test_raw_weights_on_request_and_when_there_is_no_ema(tmp_path: Path) -> None:
    with_ema = lightning_file(tmp_path / "a.ckpt")
    without = lightning_file(tmp_path / "b.ckpt", ema=False)
    for record in (read_checkpoint(with_ema, weights="raw"), read_checkpoint(without)):
        assert record.weights is Weights.RAW
        assert_same_state(record.state, tiny_network().state_dict())
    with pytest.raises(CheckpointError, match="no EMA weights"):
        read_checkpoint(without, weights=Weights.EMA)


def test_an_ema_of_another_network_is_refused(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "a.ckpt", ema=False)
    content = torch.load(path, weights_only=True)
    content["latentite"]["ema"] = {"network.0.weight": torch.zeros(4, 3)}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"its EMA has network\.0\.weight, which its network has not"):
        read_checkpoint(path)


configs = st.builds(
    TinyConfig,
    width=st.integers(),
    head=st.sampled_from(Head),
    path=st.none() | st.text(min_size=1).map(Path),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    loss_weights=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
)


@given(configs)
def test_a_config_survives_plain_json_and_back(config: TinyConfig) -> None:
    restored = from_plain(TinyConfig, json.loads(json.dumps(plain(config))))
    assert restored == config
    assert isinstance(restored.head, Head)


def test_plain_holds_exact_builtin_types() -> None:
    value = {"a": np.float64(1.5), "b": (np.int32(2), Head.LINEAR), "c": Path("x/y"), "d": np.str_("s")}
    result = plain(OrderedDict(value))
    assert result == {"a": 1.5, "b": [2, "linear"], "c": "x/y", "d": "s"}
    assert [type(v) for v in result.values()] == [float, list, str, str]
    assert [type(v) for v in result["b"]] == [int, str]


@pytest.mark.parametrize("value", [torch.zeros(1), np.zeros(2), {1, 2}, object(), b"bytes", TinyConfig, 1j])
def test_plain_refuses_everything_else_by_its_key(value: object) -> None:
    with pytest.raises(TypeError, match=r"trainer\.callbacks\[1\]\.x must be a plain value"):
        plain({"callbacks": [{}, {"x": value}]}, key="trainer")


def test_plain_refuses_keys_that_json_would_change() -> None:
    with pytest.raises(TypeError, match="scale must have strings as keys, got 26"):
        plain({"scale": {26: 1.0}})


@pytest.mark.parametrize("weights", [Weights.EMA, Weights.RAW])
def test_a_portable_pair_says_the_same_as_its_checkpoint(tmp_path: Path, weights: Weights) -> None:
    source = read_checkpoint(lightning_file(tmp_path / "last.ckpt"), weights=weights)
    weights_path, card_path = export_portable(
        tmp_path / "last.ckpt", tmp_path / "out" / "my.v1", weights=weights
    )
    assert (weights_path.name, card_path.name) == ("my.v1.safetensors", "my.v1.json")
    assert sorted(p.name for p in weights_path.parent.iterdir()) == ["my.v1.json", "my.v1.safetensors"]
    for path in (weights_path, card_path):
        record = read_checkpoint(path, stage=Stage.VAE)
        assert_same_state(record.state, source.state)
        assert (record.stage, record.weights, record.config) == (source.stage, weights, source.config)
        assert (record.data, record.metrics) == (source.data, source.metrics)
        assert record.sha256 == sha256_file(weights_path)
    assert_same_state(read_portable(weights_path.parent / "my.v1").state, source.state)
    card = json.loads(card_path.read_text())
    assert card["source"] == {"file": "last.ckpt", "sha256": source.sha256}
    assert set(card["versions"]) == {"latentite", "torch", "python"}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "last.ckpt")
    first = [p.read_bytes() for p in export_portable(path, tmp_path / "a")]
    second = [p.read_bytes() for p in export_portable(path, tmp_path / "b")]
    assert first == second


def test_a_portable_pair_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    weights_path, card_path = export_portable(lightning_file(tmp_path / "last.ckpt"), tmp_path / "x")
    content = bytearray(weights_path.read_bytes())
    content[-1] ^= 1
    weights_path.write_bytes(content)
    for path in (weights_path, card_path):
        with pytest.raises(CheckpointError, match="does not belong to its card or is damaged"):
            read_checkpoint(path)


def test_half_a_portable_pair_names_the_missing_half(tmp_path: Path) -> None:
    weights_path, card_path = export_portable(lightning_file(tmp_path / "last.ckpt"), tmp_path / "x")
    card = card_path.read_text()
    card_path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.json beside it"):
        read_checkpoint(weights_path)
    card_path.write_text(card[:40])
    with pytest.raises(CheckpointError, match=r"x\.json is not a checkpoint's card"):
        read_checkpoint(weights_path)
    card_path.write_text(card)
    weights_path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors beside it"):
        read_checkpoint(card_path)
    with pytest.raises(CheckpointError, match=r"does not exist"):
        read_checkpoint(weights_path)


def test_a_portable_pair_cannot_give_weights_that_it_does_not_hold(tmp_path: Path) -> None:
    weights_path, _ = export_portable(lightning_file(tmp_path / "last.ckpt"), tmp_path / "x", weights="ema")
    with pytest.raises(CheckpointError, match="holds ema weights only, got weights=raw"):
        read_checkpoint(weights_path, weights="raw")


def test_a_failed_export_leaves_the_old_pair_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lightning_file(tmp_path / "last.ckpt")
    pair = export_portable(path, tmp_path / "x")
    before = [p.read_bytes() for p in pair]

    def full_disk(*args: object, **kwargs: object) -> None:
        Path(args[1]).write_bytes(b"half")  # type: ignore[arg-type]  # the temporary path
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_portable(path, tmp_path / "x", weights="raw")
    assert [p.read_bytes() for p in pair] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "x.json", "x.safetensors"]


def test_weights_load_into_the_network_strictly(tmp_path: Path) -> None:
    record = read_checkpoint(lightning_file(tmp_path / "x.ckpt"), weights="raw")
    network = network_of(record.state, lambda: tiny_network(seed=1), record.path)
    assert_same_state(dict(network.state_dict()), dict(tiny_network(seed=0).state_dict()))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    record = read_checkpoint(lightning_file(tmp_path / "x.ckpt"))
    network = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(1, 1, bias=False))
    with pytest.raises(CheckpointError) as caught:
        require_fit(record.state, network, record.path)
    message = str(caught.value)
    assert "0.weight is [4, 3] in the file, [5, 3] in the network" in message
    assert "and 3 more" in message


def test_reading_does_not_keep_the_file_mapped(tmp_path: Path) -> None:
    """The file is memory-mapped while it is read; overwriting it later must not change the record."""
    path = lightning_file(tmp_path / "x.ckpt")
    record = read_checkpoint(path, weights="raw")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x00" * size)
    assert_same_state(record.state, dict(tiny_network().state_dict()))


def test_the_format_number_is_written_once() -> None:
    assert build_payload(stage="vae", config={}, data={}, metrics={})["format"] == checkpoint.FORMAT
