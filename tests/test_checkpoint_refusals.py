"""Files that are no checkpoints of ours: damage is named, and no file gets to run code."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import assert_same_state, lightning_file
from chemeleon2_files import small_ldm, small_vae, write_ours
from latentite.base.files import sha256_file
from latentite.checkpoint import (
    CheckpointError,
    build_payload,
    export_portable,
    network_of,
    read_checkpoint,
)
from latentite.models import load_ldm, load_vae


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
        ({"stage": "gan"}, "stage must be one of vae, ldm, rl, predictor, gpt, got 'gan'"),
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


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Torch maps the numbers into memory and checks none of them: a flipped bit was read as another weight."""
    path = lightning_file(tmp_path / "x.ckpt")
    right, content = read_checkpoint(path), path.read_bytes()
    noticed = 0
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            noticed += 1
            continue
        assert (found.config, found.data, found.metrics) == (right.config, right.data, right.metrics)
        assert_same_state(found.state, right.state)  # what was flipped says nothing: a time, a filler
    assert noticed > 20


def rezipped(path: Path, **changes: Any) -> Path:
    """The entries of a torch zip file written again; `compression`, and further entries `more`."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | changes.get("more", {})
    with zipfile.ZipFile(path, "w", changes.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../out", "/etc/out", "x/../../out"])
def test_a_checkpoint_with_entries_that_reach_out_is_refused(tmp_path: Path, name: str) -> None:
    path = rezipped(lightning_file(tmp_path / "x.ckpt"), more={name: b"out"})
    with pytest.raises(CheckpointError, match=r"x\.ckpt has an entry .* that reaches out of it"):
        read_checkpoint(path)


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused_before_it_is_unpacked(
    tmp_path: Path,
) -> None:
    path = lightning_file(tmp_path / "x.ckpt")
    read_checkpoint(rezipped(path))
    bomb = {"x/data/99": bytes(1 << 24)}
    path = rezipped(path, more=bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(CheckpointError, match=r"x\.ckpt has a compressed entry"):
        read_checkpoint(path)
    path = rezipped(lightning_file(tmp_path / "y.ckpt"))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"y\.ckpt is damaged: its entries are larger than itself"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", ["state_dict", "ema"])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ([1.0], "must hold tensors by name, but 'network.0.weight' is none"),
        (torch.zeros(1).expand(10**12), "must be a plain tensor of real numbers that are all in the file"),
        (torch.ones(4, 3).to(torch.complex64), "must be a plain tensor of real numbers"),
        (torch.eye(4).to_sparse(), "must be a plain tensor of real numbers"),
        (torch.empty(4, 3, device="meta"), "must be a plain tensor of real numbers"),
    ],
)
def test_a_tensor_that_is_none_or_repeats_a_number_a_trillion_times_is_refused(
    tmp_path: Path, place: str, tensor: object, message: str
) -> None:
    """A file of 10 kB asked for four terabytes; others ended in an AttributeError."""
    path = lightning_file(tmp_path / "x.ckpt")
    content = torch.load(path, weights_only=True)
    (content if place == "state_dict" else content["latentite"])[place]["network.0.weight"] = tensor
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("place", ["state_dict", "ema"])
def test_weights_that_are_no_mapping_are_named(tmp_path: Path, place: str) -> None:
    path = lightning_file(tmp_path / "x.ckpt")
    content = torch.load(path, weights_only=True)
    (content if place == "state_dict" else content["latentite"])[place] = [1, 2]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="must hold tensors by name, got list"):
        read_checkpoint(path)


def test_a_choice_of_weights_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "x.ckpt", default_weights=["best"])
    with pytest.raises(CheckpointError, match=r"weights must be one of ema, raw, got \['best'\]"):
        read_checkpoint(path)
    pair = export_portable(lightning_file(tmp_path / "x.ckpt"), tmp_path / "y")
    card = json.loads(pair[1].read_text())
    pair[1].write_text(json.dumps({**card, "weights": {"a": 1}}))
    with pytest.raises(CheckpointError, match="weights must be one of ema, raw, got"):
        read_checkpoint(pair[0])


def test_a_config_with_values_that_are_not_plain_is_refused(tmp_path: Path) -> None:
    path = lightning_file(tmp_path / "x.ckpt", config={"width": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"config\.width must be a plain value"):
        read_checkpoint(path)


def _card_changes(folder: Path, name: str, **changes: Any) -> Path:
    card = folder / f"{name}.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    return card


def _loans(folder: Path, *lenders: str) -> dict[str, Any]:
    hashes = {name: sha256_file(folder / f"{name}.safetensors") for name in lenders}
    return {name: {"sha256": digest, "tensors": {"x": "0.weight"}} for name, digest in hashes.items()}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Ten portable pairs, `p0` to `p9`."""
    path = lightning_file(tmp_path / "last.ckpt")
    for number in range(10):
        export_portable(path, tmp_path / f"p{number}")
    return tmp_path


@pytest.mark.parametrize("circle", [[0], [0, 1], [0, 1, 2]])
def test_pairs_that_borrow_from_each_other_are_refused(pairs: Path, circle: list[int]) -> None:
    """Reading one read the other, and so on to a RecursionError."""
    for borrower, lender in zip(circle, [*circle[1:], circle[0]], strict=True):
        _card_changes(pairs, f"p{borrower}", borrowed=_loans(pairs, f"p{lender}"))
    shown = " -> ".join(f"p{number}" for number in [*circle, circle[0]])
    with pytest.raises(CheckpointError, match=rf"borrows in a circle \({shown}\)"):
        read_checkpoint(pairs / "p0.json")


def test_pairs_that_borrow_one_from_the_other_are_read_to_a_depth(pairs: Path) -> None:
    for number in range(9):
        _card_changes(pairs, f"p{number}", borrowed=_loans(pairs, f"p{number + 1}"))
    assert "x" in read_checkpoint(pairs / "p2.json").state
    with pytest.raises(CheckpointError, match="over more than 8 pairs"):
        read_checkpoint(pairs / "p0.json")


@pytest.mark.parametrize(
    "loans", [[], "p1", {"p1": None}, {"p1": {}}, {"p1": {"sha256": "a", "tensors": [1]}}]
)
def test_loans_in_another_form_are_refused(pairs: Path, loans: Any) -> None:
    with pytest.raises(CheckpointError, match=r"p0\.json: its section 'borrowed' must hold"):
        read_checkpoint(_card_changes(pairs, "p0", borrowed=loans))


def test_a_card_of_ten_thousand_brackets_is_refused(pairs: Path) -> None:
    (pairs / "p0.json").write_text("[" * 10_000)
    with pytest.raises(CheckpointError, match="is not a checkpoint's card"):
        read_checkpoint(pairs / "p0.json")


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_layers", 10**12), ("d_model", 10**6), ("dim_feedforward", 10**15), ("num_layers", 3)],
)
def test_a_config_that_announces_more_than_its_file_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str, number: int
) -> None:
    """Fuzzing: a number in a card took 400 TB of memory, or time without an end, before any tensor was looked at."""
    path = write_ours(tmp_path / "x.ckpt", small_vae())
    weights, card_path = export_portable(path, tmp_path / "pair")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    card["config"]["encoder"][name] = number
    card_path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"pair\.safetensors does not fit"):
        load_vae(weights)


def test_building_a_network_for_comparison_draws_no_random_numbers(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "x.ckpt", small_vae())
    record = read_checkpoint(path)
    torch.manual_seed(1)
    small_vae()
    once = torch.rand(1)
    torch.manual_seed(1)
    network = network_of(record.state, small_vae, path)
    assert torch.rand(1).equal(once)
    assert_same_state(network.state_dict(), record.state)


def test_a_card_with_a_schedule_beyond_all_memory_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Fuzzing: 10^12 steps, in a pair of the right tensors, became an allocation of 8 TB in the sampler."""
    path = write_ours(tmp_path / "x.ckpt", small_ldm())
    weights, card_path = export_portable(path, tmp_path / "pair")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    card["config"]["diffusion"]["num_steps"] = 10**12
    card_path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match="num_steps must be from 1 to 1,000,000, got 1000000000000"):
        load_ldm(weights)


@pytest.mark.parametrize("section", ["config", "data", "stage", "format"])
def test_an_error_quotes_no_more_than_the_beginning_of_a_long_value(tmp_path: Path, section: str) -> None:
    path = lightning_file(tmp_path / "x.ckpt", **{section: "A" * 5000})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "'AAAA" in str(caught.value)
    assert len(str(caught.value)) < 500
