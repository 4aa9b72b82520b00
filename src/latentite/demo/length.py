"""Length of the demo's trainings: steps and number format chosen for the machine at hand.

A few steps of a throw-away network are timed, in fp32 and in bf16, so that a schedule ends with the time that was
wished for.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from latentite.crystal import CrystalBatch
from latentite.data.sampler import seeded_generator
from latentite.nn.vae import CrystalVAE
from latentite.objectives.ldm import LDMStageConfig, diffusion_loss, loss_terms
from latentite.objectives.terms import LossTerms
from latentite.objectives.vae import vae_loss
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ldm import build_network
from latentite.training.optim import SchedulerConfig
from latentite.training.settings import Precision, RunConfig
from latentite.training.stage_settings import VAEModuleConfig

log = logging.getLogger(__name__)

SLOWEST = 1.6
"""Multiple of the wished time after which training stops, on a machine that is slower than measured."""

SecondsPerStep = Callable[[Precision], float]
NetworkAndLoss = tuple[nn.Module, Callable[[CrystalBatch], LossTerms]]


def at_most(seconds: float) -> int:
    """Seconds after which a training stops that should take so many."""
    return max(1, int(SLOWEST * seconds))


def set_length(
    config: RunConfig,
    scheduler: SchedulerConfig,
    data: CrystalDataModule,
    seconds_per_step: SecondsPerStep,
    *,
    seconds: float,
    num_validations: int,
) -> None:
    """Choose number format and number of steps for this machine, so that the schedule ends with the time.

    Args:
        config: of the run; precision, lengths and interval of validation are set in place.
        scheduler: of its optimizer; its warm-up never takes more than a quarter of the steps.
        data: the batches of an epoch.
        seconds_per_step: measures one training step in a number format.
        seconds: wished for the whole training.
        num_validations: about how many there are to be.
    """
    speeds = {precision: seconds_per_step(precision) for precision in (Precision.FP32, Precision.BF16_MIXED)}
    # bf16 only where the hardware makes it clearly faster: without support it is many times slower.
    is_faster = speeds[Precision.BF16_MIXED] < 0.9 * speeds[Precision.FP32]
    config.trainer.precision = Precision.BF16_MIXED if is_faster else Precision.FP32
    step = speeds[config.trainer.precision]
    config.trainer.max_steps = max(2, int(0.9 * seconds / step))
    config.trainer.max_time = at_most(seconds)
    num_epochs = config.trainer.max_steps / len(data.train_dataloader())
    config.trainer.check_val_every_n_epoch = max(1, round(num_epochs / num_validations))
    scheduler.warmup_steps = min(scheduler.warmup_steps, config.trainer.max_steps // 4)
    log.info(
        "%.2f s per step in %s: %d steps, %.1f epochs",
        step,
        config.trainer.precision,
        config.trainer.max_steps,
        num_epochs,
    )


def vae_seconds_per_step(module: VAEModuleConfig, data: CrystalDataModule) -> SecondsPerStep:
    """Times steps of stage 1."""

    def build() -> NetworkAndLoss:
        """A new VAE and its loss, with the same draws in every number format."""
        network = CrystalVAE(module.architecture())
        generator = seeded_generator(0)
        return network, lambda batch: vae_loss(network, batch, module.loss_weights, generator=generator)

    return lambda precision: _seconds_per_step(build, data, precision)


def ldm_seconds_per_step(
    vae: CrystalVAE, settings: LDMStageConfig, data: CrystalDataModule
) -> SecondsPerStep:
    """Times steps of stage 2 on latents that are there already, as with a latent cache."""

    def build() -> NetworkAndLoss:
        """A new denoiser and its loss at random noise levels; the frozen VAE encodes each batch once."""
        network = build_network(vae, settings)
        generator = seeded_generator(0)
        schedule = settings.diffusion.build_schedule()
        latents = {}

        def terms(batch: CrystalBatch) -> LossTerms:
            """Each batch comes twice, and only its second step is timed: the one without encoding."""
            key = id(batch)
            if key not in latents:
                latents[key] = network.encode(batch)
            tokens = latents[key]
            loss = diffusion_loss(
                lambda state, at: network.denoiser(state, at, tokens.mask),
                tokens,
                settings.diffusion,
                schedule=schedule,
                generator=generator,
            )
            return loss_terms(loss)

        return network.denoiser, terms

    return lambda precision: _seconds_per_step(build, data, precision)


def _seconds_per_step(
    build: Callable[[], NetworkAndLoss],
    data: CrystalDataModule,
    precision: Precision,
) -> float:
    """Median time of a few training steps of a throw-away network, each batch's second step."""
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(8), strict=False)]
    with torch.random.fork_rng(devices=[]):
        network, objective = build()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    times = []
    for batch in [batch for batch in batches for _ in range(2)]:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is Precision.BF16_MIXED):
            terms = objective(batch)
        terms.total().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1::2])
