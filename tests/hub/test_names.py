"""Names of checkpoints: exact, bundled before public, listed, and the commands that show them."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from loopback_hub import CONTENT, NAME, QUICK, LoopbackHub

from latentite import hub
from latentite.base import download as download_module
from latentite.checkpoint import build_payload, export_portable, read_checkpoint
from latentite.commands import hub as hub_commands
from latentite.hub import HubError, Origin


@pytest.mark.parametrize("name", ["", "  ", Path("")])
def test_the_empty_name_is_refused(loopback: LoopbackHub, name: str | Path) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        hub.resolve(name)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("mp_20_vea", "mp_20_vae"),
        ("MP_20_VAE", "mp_20_vae"),
        ("mp20_vae", "mp_20_vae"),
        ("mp_20_ldm", "mp_20_ldm_rl"),
    ],
)
def test_a_near_miss_gets_a_suggestion_and_nothing_is_fetched(
    loopback: LoopbackHub, name: str, suggested: str
) -> None:
    """A predecessor matched names by substring, so that `vae` fetched something."""
    with pytest.raises(ValueError, match=f"did you mean .*{suggested}"):
        hub.resolve(name)
    assert loopback.requests == []


def test_a_name_like_nothing_gets_the_list(loopback: LoopbackHub) -> None:
    with pytest.raises(ValueError, match=r"the names are .*mp_20_vae, alex_mp_20_vae"):
        hub.resolve("xyzzy")


def test_paths_resolve_to_themselves_or_are_named(loopback: LoopbackHub, tmp_path: Path) -> None:
    file = tmp_path / "my run" / "last.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert hub.resolve(file) == file
    assert hub.resolve(str(file)) == file
    with pytest.raises(ValueError, match=r"there is no file .*first\.ckpt"):
        hub.resolve(tmp_path / "my run" / "first.ckpt")
    with pytest.raises(ValueError, match="is a folder"):
        hub.resolve(tmp_path / "my run")


def bundle(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.tmp"
    payload = build_payload(stage="vae", config={}, data={}, metrics={})
    torch.save({"state_dict": {"network.w": torch.ones(3)}, "latentite": payload}, source)
    weights, _ = export_portable(source, folder / name)
    source.unlink()
    return weights


def test_a_bundled_name_comes_before_the_hub(loopback: LoopbackHub, tmp_path: Path) -> None:
    ours = bundle(tmp_path / "ckpts", "prototypes_vae")
    shadow = bundle(tmp_path / "ckpts", NAME)
    (tmp_path / "ckpts" / "prototypes_vae.ckpt").write_bytes(b"the portable pair is preferred")
    assert hub.resolve("prototypes_vae") == ours
    assert hub.resolve(NAME) == shadow
    assert loopback.requests == []
    assert read_checkpoint(hub.resolve("prototypes_vae"), stage="vae").sha256 == hub.verify("prototypes_vae")
    with pytest.raises(ValueError, match="prototypes_vae is bundled"):
        hub.download("prototypes_vae")
    with pytest.raises(ValueError, match="did you mean prototypes_vae"):
        hub.resolve("prototype_vae")
    ours.write_bytes(ours.read_bytes()[:-1] + b"!")
    with pytest.raises(HubError, match="is damaged"):
        hub.verify("prototypes_vae")


def test_the_list_shows_every_name_once_and_what_is_here(loopback: LoopbackHub, tmp_path: Path) -> None:
    bundle(tmp_path / "ckpts", "ours")
    before = {entry.name: entry for entry in hub.list_names()}
    assert set(hub.PUBLIC) | {"ours"} <= set(before)
    assert before["ours"].kind is Origin.BUNDLED
    assert before["ours"].sha256 == hub.verify("ours")
    assert before[NAME].path is None
    assert before[NAME].sha256 is None
    path = hub.download(NAME, patience=QUICK)
    after = {entry.name: entry for entry in hub.list_names()}
    assert after[NAME].path == path
    assert after[NAME].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert after[NAME].where == f"{hub.REPOSITORY}/{hub.PUBLIC[NAME]}"


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    hub_commands.register(parser)
    arguments = parser.parse_args(words)
    code: int = arguments.func(arguments)
    return code


def test_the_commands_report_and_set_the_exit_code(
    loopback: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    assert run_command("download") == 1
    assert "NAME must be given" in capsys.readouterr().err
    assert run_command("download", NAME) == 0
    assert str(tmp_path / "cache" / "hub" / f"{NAME}.ckpt") in capsys.readouterr().out
    assert run_command("verify") == 0
    assert hashlib.sha256(CONTENT).hexdigest() in capsys.readouterr().out
    assert run_command("list") == 0
    assert NAME in capsys.readouterr().out
    # the loopback hub has one file: the other name fails, and the first is still reported
    assert run_command("download", "alex_mp_20_vae", NAME) == 1
    captured = capsys.readouterr()
    assert "HTTP 404" in captured.err
    assert NAME in captured.out
    (tmp_path / "cache" / "hub" / f"{NAME}.ckpt").write_bytes(b"spoilt")
    assert run_command("verify", NAME) == 1
    assert "is damaged" in capsys.readouterr().err
    assert run_command("verify", "mp_20_vea") == 1
    assert "did you mean mp_20_vae" in capsys.readouterr().err
