"""`latentite demo`: the whole way in a few minutes on two CPU cores, with no download.

Makes the embedded dataset (once; then it is cached), trains a small VAE with the same code as every other
run, sends test crystals through it that it has never seen, and leaves a report and pictures. Comes after
`training/` and `reconstruct.py`; `demo_commands.py` is its command line.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from latentite.charts import draw_training_curve
from latentite.config import compose, load
from latentite.data.sampler import seeded_generator
from latentite.nn.vae import CrystalVAE
from latentite.objectives.vae import vae_loss
from latentite.reconstruct import (
    Reconstruction,
    draw_reconstructions,
    load_vae,
    reconstruct,
    subset,
    write_report,
)
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, RunStatus
from latentite.training.settings import Precision
from latentite.training.stages import TrainVAEConfig, train_vae

log = logging.getLogger(__name__)

OVERRIDES = [
    "experiment=prototypes/vae_dng",
    "trainer.max_epochs=-1",
    "trainer.max_steps=1",
    "trainer.gradient_clip_val=1.0",
    "vae_module.match_limit=100",
    *[
        f"vae_module.{part}.{key}={value}"
        for part in ("encoder", "decoder")
        for key, value in {"d_model": 128, "num_heads": 4, "dim_feedforward": 512, "num_layers": 3}.items()
    ],
]
"""What differs from the experiment: a network that learns something in five minutes."""

NUM_VALIDATIONS = 5
SLOWEST = 1.6
"""When the machine turns out slower than measured, training stops after this many times the wished time."""
NUM_TESTED, NUM_PICTURES = 300, 9


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo leaves."""

    fit: FitResult
    reconstruction: Reconstruction
    picture: Path


def run_demo(out_dir: Path, *, minutes: float, seed: int = 0) -> DemoResult:
    """Make the data, train for about `minutes`, reconstruct unseen crystals, write everything to `out_dir`.

    Raises:
        ValueError: for a time that is not positive.
        KeyboardInterrupt: when the training was interrupted; its checkpoint is saved.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes}")
    config = demo_config(out_dir / "run", seed=seed)
    log.info("1 of 3: the embedded dataset")
    data = CrystalDataModule(config.data)
    data.setup("fit")
    log.info("2 of 3: train a small VAE for about %g minutes", minutes)
    set_length(config, data, seconds=60.0 * minutes)
    fitted = train_vae(config, datamodule=data)
    if fitted.status is RunStatus.PREEMPTED:
        raise KeyboardInterrupt
    log.info("3 of 3: reconstruct test crystals that it has never seen")
    network, record = load_vae(fitted.last_path)
    result = reconstruct(network, subset(data.splits["test"], NUM_TESTED, seed=seed))
    write_report(result, out_dir / "reconstruction", record=record, source="prototypes (test)", seed=seed)
    chosen = torch.randperm(len(result.ids), generator=seeded_generator(seed))[:NUM_PICTURES]
    draw_training_curve(config.run_dir / "metrics.csv", out_dir / "training.png")
    picture = draw_reconstructions(result, chosen, out_dir / "reconstructions.png")
    return DemoResult(fit=fitted, reconstruction=result, picture=picture)


def demo_config(run_dir: Path, *, seed: int) -> TrainVAEConfig:
    """The experiment `prototypes/vae_dng`, made small."""
    values = compose("train_vae", [*OVERRIDES, f"seed={seed}"])
    return load(TrainVAEConfig, values | {"run_dir": str(run_dir)})


def set_length(config: TrainVAEConfig, data: CrystalDataModule, *, seconds: float) -> None:
    """Choose number format and number of steps for this machine, so that the schedule ends with the time."""
    speeds = {
        precision: seconds_per_step(config, data, precision)
        for precision in (Precision.FP32, Precision.BF16_MIXED)
    }
    # bf16 only where the hardware makes it clearly faster: without support it is many times slower.
    is_faster = speeds[Precision.BF16_MIXED] < 0.9 * speeds[Precision.FP32]
    config.trainer.precision = Precision.BF16_MIXED if is_faster else Precision.FP32
    step = speeds[config.trainer.precision]
    config.trainer.max_steps = max(2, int(0.9 * seconds / step))
    config.trainer.max_time = max(1, int(SLOWEST * seconds))
    num_epochs = config.trainer.max_steps / len(data.train_dataloader())
    config.trainer.check_val_every_n_epoch = max(1, round(num_epochs / NUM_VALIDATIONS))
    config.vae_module.scheduler.warmup_steps = min(
        config.vae_module.scheduler.warmup_steps, config.trainer.max_steps // 4
    )
    log.info(
        "%.2f s per step in %s: %d steps, %.1f epochs",
        step,
        config.trainer.precision,
        config.trainer.max_steps,
        num_epochs,
    )


def seconds_per_step(config: TrainVAEConfig, data: CrystalDataModule, precision: Precision) -> float:
    """Median time of a few training steps of a throw-away network."""
    module = config.vae_module
    generator = seeded_generator(0)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(8), strict=False)]
    with torch.random.fork_rng(devices=[]):
        network = CrystalVAE(module.architecture())
    optimizer = torch.optim.AdamW(network.parameters())
    times = []
    for batch in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is Precision.BF16_MIXED):
            terms = vae_loss(network, batch, module.loss_weights, generator=generator)
        terms.total().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
