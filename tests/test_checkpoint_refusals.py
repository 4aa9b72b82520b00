"""Files that are no checkpoints of ours: damage is named, and no file gets to run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import lightning_file
from latentite.checkpoint import CheckpointError, build_payload, export_portable, read_checkpoint


class Malicious:
    """Asks, when unpickled, to create a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["hyper_parameters", "latentite", "state_dict"])
def test_a_file_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path: Path, place: str) -> None:
    path, target = lightning_file(tmp_path / "evil.ckpt"), tmp_path / "executed"
    content = torch.load(path, weights_only=True)
    content[place] = {"x": Malicious(target)}
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"evil\.ckpt asks to run code when it is loaded \(\w+\.mkdir\)"
    ):
        read_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the trap is real: an ordinary load springs it
    assert target.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_not_even_opened(tmp_path: Path, protocol: int) -> None:
    path, target = tmp_path / "evil.ckpt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
    with pytest.raises(CheckpointError, match="bare Python pickle"):
        read_checkpoint(path)
    torch.save(Malicious(target), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="bare Python pickle"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_public_chemeleon2_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    """The public files pickle classes of modules named `src.vae_module...`; so does this one, by hand."""
    path = tmp_path / "mp_20_vae.ckpt"
    torch.save({"hyper_parameters": {}}, tmp_path / "plain.ckpt")
    foreign = b"\x80\x02csrc.vae_module.encoders.transformer\nTransformerEncoder\n)\x81."
    with zipfile.ZipFile(tmp_path / "plain.ckpt") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, foreign if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(CheckpointError, match="is a Chemeleon2 checkpoint"):
        read_checkpoint(path)


def test_reference_files_in_the_public_layout_are_named_as_such() -> None:
    folder = Path(__file__).parents[2] / "shared" / "interop"
    files = sorted(folder.glob("tiny_*.ckpt"))
    if not files:
        pytest.skip("the shared reference files are not here")
    for path in files:
        with pytest.raises(CheckpointError, match=f"{path.name} is a Chemeleon2 checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git-LFS pointer"),
        (b"\n <!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
        (b"material_id,cif\n1,2\n", "is not a checkpoint"),
        (b"\x00" * 100, "is not a checkpoint"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt does not exist"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.7, 0.99, 0.9999])
def test_a_truncated_file_is_named_wherever_it_ends(tmp_path: Path, fraction: float) -> None:
    path = lightning_file(tmp_path / "x.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match=r"x\.ckpt is truncated"):
        read_checkpoint(path)


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "x.ckpt")
    content = path.read_bytes()
    start = content.index(b"state_dict")
    for offset in range(-40, 40, 7):
        path.write_bytes(content[: start + offset] + b"\xff\xfe\xfd" + content[start + offset + 3 :])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_other_zip_and_torch_files_are_not_checkpoints_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not one that Latentite wrote"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="not one that Latentite wrote"):
        read_checkpoint(path)


def test_the_wrong_stage_is_refused(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "x.ckpt", stage="ldm")
    with pytest.raises(CheckpointError, match="expected a vae checkpoint, got ldm"):
        read_checkpoint(path, stage="vae")
    pair = export_portable(path, tmp_path / "y")
    with pytest.raises(CheckpointError, match="expected a vae checkpoint, got ldm"):
        read_checkpoint(pair[0], stage="vae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has checkpoint format 2, but latentite .* reads format 1"),
        ({"stage": "gan"}, "stage must be one of vae, ldm, rl, predictor, got 'gan'"),
        ({"config": None}, "'config' must be a mapping"),
    ],
)
def test_a_payload_of_another_version_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = lightning_file(tmp_path / "x.ckpt", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_payload_refuses_values_that_are_not_plain() -> None:
    with pytest.raises(TypeError, match=r"metrics\.loss must be a plain value"):
        build_payload(stage="vae", config={}, data={}, metrics={"loss": torch.tensor(1.0)})  # type: ignore[arg-type]
