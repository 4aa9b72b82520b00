"""Resuming is exact: what a run would have become without the interruption, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_run import assert_same, read, tiny_datamodule

from latentite.stages import train_vae
from latentite.training.fit import RunStatus
from latentite.training.vae import VAETrainingModule

STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")


def assert_same_run(one: Path, other: Path) -> None:
    first, second = read(one), read(other)
    for key in STATES:
        assert_same(first[key], second[key], key)
    assert_same(first["latentite"]["ema"], second["latentite"]["ema"], "ema")
    assert_same(first["latentite"]["metrics"], second["latentite"]["metrics"], "metrics")


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
def test_two_epochs_and_two_more_are_four_epochs(make_config, scheduler):
    def changes(epochs: int) -> dict:
        return {"trainer__max_epochs": epochs, "vae_module__scheduler__name": scheduler}

    whole = train_vae(make_config("whole", **changes(4)), datamodule=tiny_datamodule())
    half = train_vae(make_config("half", **changes(2)), datamodule=tiny_datamodule())
    resumed = make_config("rest", **changes(4), ckpt_path=half.last_path)
    rest = train_vae(resumed, datamodule=tiny_datamodule())
    assert_same_run(whole.last_path, rest.last_path)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("training_step", 1),
        ("training_step", 8),
        ("training_step", 12),
        ("training_step", 24),
        ("validation_step", 1),
        ("validation_step", 3),
    ],
)
def test_a_preempted_run_resumes_as_if_nothing_had_happened(make_config, monkeypatch, method, call):
    """In the first step, in the middle and at the end of an epoch, at the very end, and in validations."""
    whole = train_vae(make_config("whole"), datamodule=tiny_datamodule(batch_size=8))
    original, calls = getattr(VAETrainingModule, method), []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VAETrainingModule, method, step)
        first = train_vae(make_config("first"), datamodule=tiny_datamodule())
    assert first.status is RunStatus.PREEMPTED
    rest = train_vae(make_config("rest", ckpt_path=first.last_path), datamodule=tiny_datamodule())
    assert rest.status is RunStatus.FINISHED
    assert_same(read(whole.last_path)["state_dict"], read(rest.last_path)["state_dict"])
    if (method, call) != ("training_step", 24):
        assert_same_run(whole.last_path, rest.last_path)


def test_the_handlers_of_the_signals_are_given_back(make_config):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train_vae(make_config("run", trainer__max_epochs=1), datamodule=tiny_datamodule())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_gradient_accumulation_resumes_exactly(make_config):
    changes = {"trainer__accumulate_grad_batches": 2}
    whole = train_vae(make_config("whole", **changes), datamodule=tiny_datamodule())
    half = train_vae(make_config("half", **changes, trainer__max_epochs=1), datamodule=tiny_datamodule())
    resumed = make_config("rest", **changes, ckpt_path=half.last_path)
    assert_same_run(whole.last_path, train_vae(resumed, datamodule=tiny_datamodule()).last_path)


def test_resuming_with_another_network_is_refused_by_the_name_of_the_setting(make_config):
    half = train_vae(make_config("half", trainer__max_epochs=1), datamodule=tiny_datamodule())
    other = make_config("rest", vae_module__latent_dim=4, ckpt_path=half.last_path)
    with pytest.raises(ValueError, match=r"latent_dim is 8 there and 4 here; set vae_module\.latent_dim=8"):
        train_vae(other, datamodule=tiny_datamodule())


def test_another_seed_trains_another_network(make_config):
    """Regression: `seed: 0` once meant no seed at all; here equal seeds agree, also 0, and others differ."""
    runs = [
        train_vae(make_config(str(i), seed=seed, trainer__max_epochs=1), datamodule=tiny_datamodule())
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (read(run.last_path)["state_dict"] for run in runs)
    assert_same(first, again)
    name = "network.quant_conv.weight"
    assert not first[name].equal(other[name])
