"""Metrics and pictures of a run: always files in its folder, and Weights & Biases if wanted and possible.

`training/fit.py` builds both. Nothing here waits for a network that is not there.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from latentite.crystal import CrystalBatch
from latentite.draw.cells import draw_crystals
from latentite.rewards.combine import RewardTable
from latentite.training.settings import LoggerConfig, WandbConfig, WandbMode

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30.0
"""Seconds that wandb may take to reach its server before the run goes offline."""


def build_loggers(config: LoggerConfig, run_dir: Path, *, task_name: str) -> list[Logger]:
    """The run's loggers, CSV first."""
    loggers: list[Logger] = [_csv_logger(run_dir)]
    mode, reason = wandb_mode(config.wandb)
    if reason:
        log.info("wandb is %s: %s", mode, reason)
    if mode is not WandbMode.DISABLED:
        loggers.append(_wandb_logger(config.wandb, mode, run_dir, task_name))
    return loggers


def wandb_mode(config: WandbConfig) -> tuple[WandbMode, str]:
    """What wandb will do, and in one phrase why that is not what the config says (empty if it is).

    `WANDB_MODE` overrides `online` and `offline`; without an API key `online` becomes `offline`.

    Raises:
        ValueError: for a `WANDB_MODE` that does not exist.
    """
    mode, reason = config.mode, ""
    if mode is WandbMode.DISABLED:
        return mode, reason
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    if asked and asked != mode:
        aliases = {"dryrun": "offline", "shared": "online", "run": "online"}
        try:
            mode = WandbMode(aliases.get(asked, asked))
        except ValueError:
            raise ValueError(f"WANDB_MODE must be one of {', '.join(WandbMode)}, got {asked!r}") from None
        reason = f"WANDB_MODE={asked}"
    if mode is WandbMode.ONLINE and not _has_api_key():
        mode = WandbMode.OFFLINE
        reason = "no API key; `wandb login` sets one, `wandb sync` uploads this run later"
    return mode, reason


def _has_api_key() -> bool:
    """Whether wandb would find a key, asked without starting wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and host in netrc.netrc(path).hosts
    except (netrc.NetrcParseError, OSError):
        return False


def _csv_logger(run_dir: Path) -> CSVLogger:
    _set_aside(run_dir / "metrics.csv")
    return CSVLogger(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=20)


@rank_zero_only
def _set_aside(path: Path) -> None:
    """A run resumed into the same folder continues in a new file; Lightning would delete the old one."""
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)


def _wandb_logger(config: WandbConfig, mode: WandbMode, run_dir: Path, task_name: str) -> WandbLogger:
    import wandb

    run_dir.mkdir(parents=True, exist_ok=True)

    def build(mode: WandbMode) -> WandbLogger:
        """The same logger in another mode."""
        logger = WandbLogger(
            name=config.name or f"{task_name}-{run_dir.name}",
            project=config.project,
            group=config.group,
            entity=config.entity,
            tags=config.tags,
            save_dir=str(run_dir),
            mode=mode.value,  # not offline=True, which would set WANDB_MODE for everything after it
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT, console="off", silent=True),
        )
        _ = logger.experiment  # starts the run, or says now why it cannot
        return logger

    try:
        return build(mode)
    except wandb.Error as error:
        if mode is WandbMode.OFFLINE:
            raise
        log.warning("wandb is offline: %s", " ".join(str(error).split())[:200])
        return build(WandbMode.OFFLINE)


def show(trainer: Trainer, crystals: CrystalBatch, *, name: str, titles: Sequence[str]) -> Path:
    """Draw crystals as `pictures/NAME_STEP.png` of the run's folder."""
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{trainer.global_step:07d}.png"
    draw_crystals(crystals, path, titles=titles)
    log_picture(trainer, path, name)
    return path


def log_picture(trainer: Trainer, path: Path, name: str) -> None:
    """Give a picture to the loggers that take pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [str(path)], step=trainer.global_step)


def show_best(trainer: Trainer, crystals: CrystalBatch, table: RewardTable, count: int) -> None:
    """The best and the first usable crystals of a rollout, with their rewards."""
    usable = table.is_usable.nonzero().flatten()
    count = min(count, len(usable))
    if count == 0:
        return
    best = usable[table.total[usable].argsort(descending=True, stable=True)[:count]]
    for name, chosen in (("best", best), ("random", usable[:count])):
        titles = [f"{reward:.3g}" for reward in table.total[chosen].tolist()]
        show(trainer, crystals.select(chosen), name=name, titles=titles)
