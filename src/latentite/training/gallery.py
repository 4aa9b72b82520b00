"""Pictures of crystals during a run: a file in its folder, and the picture to loggers that take pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from latentite.crystal import CrystalBatch
from latentite.draw.cells import draw_crystals
from latentite.rewards.combine import RewardTable


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
