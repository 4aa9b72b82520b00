"""`latentite demo`: every stage that there is, in a few minutes on two CPU cores, with no download.

Makes the embedded dataset (once; then it is cached), trains a small VAE, a property predictor on its encoder and a
small latent diffusion model with the same code as every other run, sends unseen test crystals through the first,
predicts their densities with the second, fine-tunes the third towards denser crystals, samples new crystals from it
as it was before, or from the bundled weights where there are any (a few minutes do not make a good model), and leaves
reports and pictures.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from latentite import hub
from latentite.base.plain import check_seed
from latentite.config import compose, load
from latentite.crystal import CrystalBatch
from latentite.data.sampler import seeded_generator
from latentite.demo.length import (
    SLOWEST,
    finished,
    ldm_seconds_per_step,
    set_length,
    vae_seconds_per_step,
)
from latentite.demo.rl import Reinforced, demo_rl_config, reinforce
from latentite.draw.cells import draw_crystals
from latentite.draw.curves import draw_training_curve
from latentite.evaluation.reconstruct import (
    Reconstruction,
    draw_reconstructions,
    load_vae,
    reconstruct,
    subset,
    write_report,
)
from latentite.evaluation.result import Evaluation
from latentite.evaluation.run import evaluate
from latentite.generate import GenerateConfig, GenerateResult, generate_from
from latentite.stages import (
    TrainLDMConfig,
    TrainPredictorConfig,
    TrainVAEConfig,
    train_ldm,
    train_predictor,
    train_vae,
)
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult
from latentite.training.ldm_start import read_vae

log = logging.getLogger(__name__)

DEMO_TARGET = "density"
"""What the predictor predicts."""

VAE_OVERRIDES = [
    "experiment=prototypes/vae_dng",
    f"data.properties=[{DEMO_TARGET}]",
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
"""What differs from the experiment: a network that learns something in a few minutes."""

LDM_OVERRIDES = [
    "experiment=prototypes/ldm_null",
    "trainer.max_epochs=-1",
    "trainer.max_steps=1",
    "trainer.gradient_clip_val=1.0",
    "ldm_module.latent_cache=4",
]

PREDICTOR_OVERRIDES = [
    f"experiment=prototypes/predictor_{DEMO_TARGET}",
    "trainer.max_epochs=20",
    "trainer.check_val_every_n_epoch=10",
]

VAE_SHARE, PREDICTOR_SHARE, RL_SHARE = 0.57, 0.05, 0.08
"""Of the time for training; the predictor, whose features are computed once, has at most so much, as has the last."""
VAE_VALIDATIONS, LDM_VALIDATIONS = 5, 2
NUM_TESTED, NUM_PICTURES = 300, 9
NUM_SAMPLES, NUM_STEPS = 64, 25


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo leaves."""

    vae: FitResult
    predictor: FitResult
    ldm: FitResult
    reconstruction: Reconstruction
    reinforced: Reinforced
    samples: GenerateResult
    evaluation: Evaluation | None
    """None when training was so short that no sample is a crystal."""
    pictures: tuple[Path, ...]


def run_demo(out_dir: Path, *, minutes: float, seed: int = 0) -> DemoResult:
    """Make the data, train all stages for about `minutes` together, reconstruct, predict, sample, write to `out_dir`.

    Raises:
        ValueError: for a time that is not positive, or a seed below 0.
        KeyboardInterrupt: when a training was interrupted; its checkpoint is saved.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes}")
    check_seed(seed)
    vae_config = demo_vae_config(out_dir / "vae", seed=seed)
    log.info("1 of 7: the embedded dataset")
    data = CrystalDataModule(vae_config.data)
    data.setup("fit")
    log.info("2 of 7: train a small VAE for about %.2g minutes", VAE_SHARE * minutes)
    vae = fit_vae(vae_config, data, seconds=60.0 * VAE_SHARE * minutes)
    log.info("3 of 7: reconstruct test crystals that it has never seen")
    result, picture = show_reconstructions(vae, data, out_dir, seed=seed)
    log.info("4 of 7: train a predictor of the %s on the VAE's encoder", DEMO_TARGET)
    predictor_config = demo_predictor_config(out_dir / "predictor", vae.last_path, seed=seed)
    predictor = fit_predictor(predictor_config, data, seconds=60.0 * PREDICTOR_SHARE * minutes)
    ldm_minutes = (1 - VAE_SHARE - PREDICTOR_SHARE - RL_SHARE) * minutes
    log.info("5 of 7: train a small latent diffusion model for about %.2g minutes", ldm_minutes)
    ldm_config = demo_ldm_config(out_dir / "ldm", vae.last_path, seed=seed)
    ldm = fit_ldm(ldm_config, data, seconds=60.0 * ldm_minutes)
    log.info("6 of 7: fine-tune it towards denser crystals by reinforcement learning")
    rl_config = demo_rl_config(out_dir / "rl", ldm.last_path, seed=seed)
    reinforced = reinforce(
        rl_config, out_dir / "training_rl.png", seconds=60.0 * RL_SHARE * minutes, num_samples=NUM_SAMPLES
    )
    checkpoint = sampled_checkpoint(ldm.last_path)
    log.info("7 of 7: sample %d new crystals with %s", NUM_SAMPLES, checkpoint)
    draw_training_curve(ldm.run_dir / "metrics.csv", out_dir / "training_ldm.png")
    samples, evaluation, sample_pictures = show_samples(checkpoint, data, out_dir, seed=seed)
    return DemoResult(
        vae=vae,
        predictor=predictor,
        ldm=ldm,
        reinforced=reinforced,
        reconstruction=result,
        samples=samples,
        evaluation=evaluation,
        pictures=(picture, parity_picture(predictor), reinforced.picture, *sample_pictures),
    )


def demo_vae_config(run_dir: Path, *, seed: int) -> TrainVAEConfig:
    """The experiment `prototypes/vae_dng`, made small."""
    values = compose("train_vae", [*VAE_OVERRIDES, f"seed={seed}"])
    return load(TrainVAEConfig, values | {"run_dir": str(run_dir)})


def demo_ldm_config(run_dir: Path, vae_path: Path, *, seed: int) -> TrainLDMConfig:
    """The experiment `prototypes/ldm_null`, made small, in the latent space of that VAE."""
    values = compose("train_ldm", [*LDM_OVERRIDES, f"seed={seed}"])
    values["ldm_module"]["vae_ckpt_path"] = str(vae_path)
    return load(TrainLDMConfig, values | {"run_dir": str(run_dir)})


def demo_predictor_config(run_dir: Path, vae_path: Path, *, seed: int) -> TrainPredictorConfig:
    """The experiment `prototypes/predictor_density`, made short, on the encoder of that VAE."""
    values = compose("train_predictor", [*PREDICTOR_OVERRIDES, f"seed={seed}"])
    values["predictor_module"]["vae_ckpt_path"] = str(vae_path)
    return load(TrainPredictorConfig, values | {"run_dir": str(run_dir)})


def fit_vae(config: TrainVAEConfig, data: CrystalDataModule, *, seconds: float) -> FitResult:
    """Train stage 1 for about so many seconds."""
    step = vae_seconds_per_step(config.vae_module, data)
    scheduler = config.vae_module.scheduler
    set_length(config, scheduler, data, step, seconds=seconds, num_validations=VAE_VALIDATIONS)
    return finished(train_vae(config, datamodule=data))


def fit_ldm(config: TrainLDMConfig, data: CrystalDataModule, *, seconds: float) -> FitResult:
    """Train stage 2 for about so many seconds, on the crystals of stage 1."""
    step = ldm_seconds_per_step(*read_vae(config.ldm_module, data), data)
    scheduler = config.ldm_module.scheduler
    set_length(config, scheduler, data, step, seconds=seconds, num_validations=LDM_VALIDATIONS)
    return finished(train_ldm(config, datamodule=data))


def fit_predictor(config: TrainPredictorConfig, data: CrystalDataModule, *, seconds: float) -> FitResult:
    """Train the predictor on the crystals of stage 1, for at most so many seconds."""
    config.trainer.max_time = max(1, int(SLOWEST * seconds))
    return finished(train_predictor(config, datamodule=data))


def parity_picture(predictor: FitResult) -> Path:
    """Predictions against labels of the test split."""
    return predictor.run_dir / "parity_test.png"


def show_reconstructions(
    vae: FitResult, data: CrystalDataModule, out_dir: Path, *, seed: int
) -> tuple[Reconstruction, Path]:
    """Send test crystals through the VAE; report, training curve and picture."""
    network, record = load_vae(vae.last_path)
    result = reconstruct(network, subset(data.splits["test"], NUM_TESTED, seed=seed))
    write_report(result, out_dir / "reconstruction", record=record, source="prototypes (test)", seed=seed)
    chosen = torch.randperm(len(result.ids), generator=seeded_generator(seed))[:NUM_PICTURES]
    draw_training_curve(vae.run_dir / "metrics.csv", out_dir / "training_vae.png")
    return result, draw_reconstructions(result, chosen, out_dir / "reconstructions.png")


def sampled_checkpoint(trained: Path) -> Path:
    """What the demo samples from: the bundled weights, where there are any, else its own."""
    return hub.bundled_files().get(hub.DEFAULT_LDM, trained)


def show_samples(
    checkpoint: Path, data: CrystalDataModule, out_dir: Path, *, seed: int
) -> tuple[GenerateResult, Evaluation | None, list[Path]]:
    """Sample new crystals into `samples/`, measure them against the demo's training split, and draw them all."""
    folder = out_dir / "samples"
    if folder.exists():  # of an earlier demo
        shutil.rmtree(folder)
    config = GenerateConfig(ckpt=checkpoint, num_samples=NUM_SAMPLES, seed=seed, out=folder)
    samples = generate_from(config, {"steps": NUM_STEPS}, command=["latentite", "demo"])
    if not samples.counts.written:
        return samples, None, []
    known = data.splits["train"].crystals.with_properties({})
    report = evaluate(folder / "cifs", reference=known, out=out_dir / "evaluation", workers=1, seed=seed)
    crystals = CrystalBatch.from_arrays(report.crystals.arrays)
    heading = f"{len(crystals)} sampled crystals; not in the demo's training set: {report.rates['novel']}"
    path = draw_crystals(
        crystals, out_dir / "samples.png", columns=8, panel_inches=1.5, dpi=110, heading=heading
    )
    return samples, report, [path]
