"""Pictures of crystals during a run: a file in its folder, and the picture to loggers that take pictures.

Comes after `pictures.py`; the modules call it in validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from latentite.crystal import CrystalBatch
from latentite.pictures import draw_crystals


def show(trainer: Trainer, crystals: CrystalBatch, *, name: str, titles: Sequence[str]) -> Path:
    """Draw crystals as `pictures/NAME_STEP.png` of the run's folder."""
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{trainer.global_step:07d}.png"
    draw_crystals(crystals, path, titles=titles)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [str(path)], step=trainer.global_step)
    return path
