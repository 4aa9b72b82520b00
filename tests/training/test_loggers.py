"""wandb never stands in the way: without a key it goes offline, and says so in one line."""

from __future__ import annotations

import logging
import time

import pytest
import wandb

from latentite.training.loggers import build_loggers, wandb_mode
from latentite.training.settings import LoggerConfig, WandbConfig, WandbMode


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("mode", "key", "variable", "expected"),
    [
        ("online", None, None, "offline"),
        ("online", "k" * 40, None, "online"),
        ("online", "k" * 40, "offline", "offline"),
        ("online", "k" * 40, "disabled", "disabled"),
        ("offline", None, None, "offline"),
        ("offline", "k" * 40, "online", "online"),
        ("offline", None, "online", "offline"),
        ("disabled", "k" * 40, "online", "disabled"),
    ],
)
def test_the_mode_follows_key_and_environment(monkeypatch, mode, key, variable, expected):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    found, reason = wandb_mode(WandbConfig(mode=WandbMode(mode)))
    assert found == expected
    assert bool(reason) or expected == mode


def test_a_key_in_netrc_counts(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "k" * 40)
    assert wandb_mode(WandbConfig(mode=WandbMode.ONLINE))[0] is WandbMode.ONLINE


def test_a_mode_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(
        ValueError, match="WANDB_MODE must be one of online, offline, disabled, got 'sometimes'"
    ):
        wandb_mode(WandbConfig(mode=WandbMode.ONLINE))


def test_without_a_key_a_run_is_logged_offline_and_says_so_in_one_line(tmp_path, caplog):
    wandb.finish()  # a run that another test of this process left open would be gone on with
    config = LoggerConfig(wandb=WandbConfig(mode=WandbMode.ONLINE, project="p", name="n"))
    start = time.monotonic()
    with caplog.at_level(logging.INFO, "latentite"):
        loggers = build_loggers(config, tmp_path, task_name="t")
    assert [type(logger).__name__ for logger in loggers] == ["CSVLogger", "WandbLogger"]
    loggers[1].log_metrics({"a": 1.0}, step=0)
    loggers[1].experiment.finish()
    assert time.monotonic() - start < 60
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("latentite")]
    assert lines == [
        "wandb is offline: no API key; `wandb login` sets one, `wandb sync` uploads this run later"
    ]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_server_that_cannot_be_reached_does_not_hold_up_the_run(monkeypatch, tmp_path, caplog):
    """Regression: with a key and no network wandb once hung for 100 seconds."""
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("latentite.training.loggers.INIT_TIMEOUT", 2.0)
    config = LoggerConfig(wandb=WandbConfig(mode=WandbMode.ONLINE))
    start = time.monotonic()
    with caplog.at_level(logging.INFO, "latentite"):
        loggers = build_loggers(config, tmp_path, task_name="t")
    loggers[1].experiment.finish()
    assert time.monotonic() - start < 60
    assert "wandb is offline" in caplog.text
