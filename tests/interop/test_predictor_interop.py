"""Chemeleon2's predictors: written back, used, and trained further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_classes import load_for_real

from chemeleon2_files import vae_config, write_ours
from latentite import hub
from latentite.checkpoint import CheckpointError
from latentite.crystal import CrystalBatch
from latentite.interop.chemeleon2 import import_checkpoint
from latentite.interop.export import export_chemeleon2
from latentite.interop.pickled import InertRecord, read_pickled
from latentite.models import load_predictor
from latentite.nn.condition_values import Transform
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import Pooling, PredictorConfig


def test_a_reference_imported_and_exported_is_the_reference(
    references: Path, tmp_path: Path, cache: Path
) -> None:
    original = references / "tiny_predictor_band_gap.ckpt"
    written = export_chemeleon2(hub.resolve(original), tmp_path / "back.ckpt")
    one, other = import_checkpoint(original), import_checkpoint(written)
    assert one.config == other.config
    assert one.state.keys() == other.state.keys()
    assert all(one.state[key].equal(other.state[key]) for key in one.state)
    there, here = read_pickled(original).content, read_pickled(written).content
    assert list(here["state_dict"]) == list(there["state_dict"])
    assert here["hyper_parameters"].keys() == there["hyper_parameters"].keys()
    mine, theirs = here["hyper_parameters"]["vae"], there["hyper_parameters"]["vae"]
    assert isinstance(mine, InertRecord)
    assert mine.kind == theirs.kind
    assert theirs.attributes.keys() <= mine.attributes.keys()
    assert list(mine.attributes["_modules"]) == list(theirs.attributes["_modules"])


def test_torch_loads_what_is_written(tmp_path: Path, crystals: CrystalBatch) -> None:
    torch.manual_seed(0)
    network = PropertyPredictor(
        PredictorConfig(vae=vae_config(), targets=["band_gap"], pooling=Pooling.SUM)
    ).eval()
    network.mean.fill_(0.75)
    network.std.fill_(1.4)
    ours = write_ours(tmp_path / "ours.ckpt", network)
    said = load_for_real(export_chemeleon2(ours, tmp_path / "theirs.ckpt"))["hyper_parameters"]
    assert said["target_conditions"].band_gap.std == pytest.approx(1.4)
    assert said["reduce"] == "sum"
    assert said["optimizer"].keywords["lr"] == 1e-3
    assert not said["vae"].training
    again = load_predictor(tmp_path / "theirs.ckpt").network
    torch.testing.assert_close(again.predict(crystals), network.predict(crystals))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": 2}, "ensemble must be 1, got 2"),
        ({"hidden": [8]}, r"hidden must be \[5, 10\]"),
        ({"pooling": Pooling.ATTENTION}, "pooling must be mean or sum"),
        ({"transforms": {"a": Transform.LOG}}, "transforms.a must be none, got log"),
        ({"fidelities": ["x", "y"]}, "number of fidelities must be 1, got 2"),
    ],
)
def test_a_predictor_that_chemeleon2_has_not_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = PredictorConfig(vae=vae_config(), targets=["a"], **changes)  # type: ignore[arg-type]
    ours = write_ours(tmp_path / "ours.ckpt", PropertyPredictor(config))
    with pytest.raises(CheckpointError, match=message):
        export_chemeleon2(ours, tmp_path / "theirs.ckpt")
