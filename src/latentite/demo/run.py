"""`latentite demo`: every stage that there is, in a few minutes on two CPU cores, with no download.

Trains a small VAE, a property predictor on its encoder and a small latent diffusion model on the embedded data set,
with the same code as every other run; sends unseen test crystals through the first, predicts their densities with the
second, fine-tunes the third towards denser crystals, samples new crystals from it as it was before, or from the bundled
weights where there are any (a few minutes do not make a good model), and leaves reports and pictures.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from latentite import hub
from latentite.base.plain import check_seed
from latentite.config import compose, load
from latentite.crystal import CrystalBatch
from latentite.data.sampler import seeded_generator
from latentite.demo.length import at_most, ldm_seconds_per_step, set_length, vae_seconds_per_step
from latentite.draw.cells import draw_crystals
from latentite.draw.charts import draw_reward_curve, draw_training_curve
from latentite.evaluation.reconstruct import (
    Reconstruction,
    draw_reconstructions,
    reconstruct,
    subset,
    write_report,
)
from latentite.evaluation.result import Evaluation
from latentite.evaluation.run import evaluate
from latentite.generation import GenerateResult, generate_from
from latentite.models import load_vae
from latentite.predictor.settings import TrainPredictorConfig
from latentite.rewards.combine import Rewards
from latentite.rl.config import TrainRLConfig
from latentite.sampling.options import GenerateConfig
from latentite.stages import train_ldm, train_predictor, train_rl, train_vae
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, RunStatus
from latentite.training.ldm import read_vae
from latentite.training.settings import RunConfig
from latentite.training.stage_settings import TrainLDMConfig, TrainVAEConfig

log = logging.getLogger(__name__)

DEMO_TARGET = "density"
"""The property that the predictor learns."""

OVERRIDES = {
    "vae": [
        "experiment=prototypes/vae_dng",
        f"data.properties=[{DEMO_TARGET}]",
        "trainer.max_epochs=-1",
        "trainer.max_steps=1",
        "trainer.gradient_clip_val=1.0",
        "vae_module.match_limit=100",
        *[
            f"vae_module.{part}.{key}={value}"
            for part in ("encoder", "decoder")
            for key, value in {
                "d_model": 128,
                "num_heads": 4,
                "dim_feedforward": 512,
                "num_layers": 3,
            }.items()
        ],
    ],
    "ldm": [
        "experiment=prototypes/ldm_null",
        "trainer.max_epochs=-1",
        "trainer.max_steps=1",
        "trainer.gradient_clip_val=1.0",
        "ldm_module.latent_cache=4",
    ],
    "predictor": [
        f"experiment=prototypes/predictor_{DEMO_TARGET}",
        "trainer.max_epochs=20",
        "trainer.check_val_every_n_epoch=10",
    ],
    "rl": [
        "experiment=prototypes/rl_density",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=12",
        "trainer.num_sanity_val_steps=0",
        "data.batch_size=4",
        "data.eval_batch_size=64",
        "rl_module.sampling.steps=12",
        "rl_module.rl_configs.num_train_steps=4",
        "rl_module.rl_configs.num_minibatches=4",
        "rl_module.rl_configs.clip_ratio=5e-3",
        "rl_module.rl_configs.kl_weight=0.02",
        "rl_module.optimizer.lr=4e-4",
        # No more pay beyond what dense minerals have: without it collapsed cells would be the best.
        "rl_module.reward_fn.components.density.cap=12.0",
        # Against density of unit weight, which would outweigh it (docs/rl.md).
        "rl_module.reward_fn.components.validity.weight=4.0",
    ],
}
"""Differences from the experiments, by stage: small networks, few minutes, twelve rollouts of 64 crystals."""

VAE_SHARE, PREDICTOR_SHARE, RL_SHARE = 0.57, 0.05, 0.08
"""Of the time for training; the predictor, whose features are computed once, has at most so much, as has the last."""
VAE_VALIDATIONS, LDM_VALIDATIONS = 5, 2
NUM_TESTED, NUM_PICTURES = 300, 9
NUM_SAMPLES, NUM_STEPS = 64, 25
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Means over the sampled crystals that can be; nothing is sampled again."""

    reward: float
    """As trained: density up to its cap, and validity."""
    density: float
    """g/cm^3, without cap."""
    valid: float
    """Share of SMACT-valid compositions."""
    unusable: float
    """Share of all that cannot be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforced:
    """Result of the demo's reinforcement learning."""

    fit: FitResult
    num_judged: int
    before: Judgement
    after: Judgement
    picture: Path

    def lines(self) -> list[str]:
        """The lines that the demo prints."""
        before, after = self.before, self.after
        return [
            f"Reinforcement learning for density, {self.num_judged} crystals of the same seeds before and after:",
            f"  reward {before.reward:.2f} -> {after.reward:.2f}, "
            f"mean density {before.density:.2f} -> {after.density:.2f} g/cm^3",
            f"  SMACT-valid {before.valid:.0%} -> {after.valid:.0%}, "
            f"unusable {before.unusable:.0%} -> {after.unusable:.0%}",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Everything that the demo leaves."""

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
    """Train all stages for about `minutes` together, reconstruct, predict, sample, write to `out_dir`.

    Raises:
        ValueError: for a time that is not positive, or a seed below 0.
        KeyboardInterrupt: when a training was interrupted; its checkpoint is saved.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes}")
    check_seed(seed)
    seconds = 60.0 * minutes
    config = demo_config("vae", TrainVAEConfig, out_dir, seed=seed)
    log.info("1 of 7: the embedded dataset")
    data = CrystalDataModule(config.data)
    data.setup("fit")
    log.info("2 of 7: train a small VAE for about %.2g minutes", VAE_SHARE * minutes)
    vae = fit_vae(config, data, seconds=VAE_SHARE * seconds)
    log.info("3 of 7: reconstruct test crystals that it has never seen")
    result, picture = show_reconstructions(vae, data, out_dir, seed=seed)
    log.info("4 of 7: train a predictor of the %s on the VAE's encoder", DEMO_TARGET)
    predictor_config = demo_config("predictor", TrainPredictorConfig, out_dir, seed=seed, vae=vae.last_path)
    predictor_config.trainer.max_time = at_most(PREDICTOR_SHARE * seconds)
    predictor = finished(train_predictor(predictor_config, datamodule=data))
    ldm_share = 1 - VAE_SHARE - PREDICTOR_SHARE - RL_SHARE
    log.info("5 of 7: train a small latent diffusion model for about %.2g minutes", ldm_share * minutes)
    ldm_config = demo_config("ldm", TrainLDMConfig, out_dir, seed=seed, vae=vae.last_path)
    ldm = fit_ldm(ldm_config, data, seconds=ldm_share * seconds)
    log.info("6 of 7: fine-tune it towards denser crystals by reinforcement learning")
    rl_config = demo_config("rl", TrainRLConfig, out_dir, seed=seed, ldm=ldm.last_path)
    rl_config.trainer.max_time = at_most(RL_SHARE * seconds)
    reinforced = reinforce(rl_config, out_dir / "training_rl.png", num_samples=NUM_SAMPLES)
    checkpoint, options = sampled_model(ldm.last_path)
    log.info("7 of 7: sample %d new crystals with %s", NUM_SAMPLES, checkpoint)
    draw_training_curve(ldm.run_dir / "metrics.csv", out_dir / "training_ldm.png")
    samples, evaluation, sample_pictures = show_samples(checkpoint, options, data, out_dir, seed=seed)
    parity = predictor.run_dir / "parity_test.png"
    return DemoResult(
        vae=vae,
        predictor=predictor,
        ldm=ldm,
        reinforced=reinforced,
        reconstruction=result,
        samples=samples,
        evaluation=evaluation,
        pictures=(picture, parity, reinforced.picture, *sample_pictures),
    )


def demo_config(stage: str, kind: type[Config], out_dir: Path, *, seed: int, **starts: Path) -> Config:
    """The experiment of a stage, made small, that writes to a folder of its own.

    Args:
        stage: `vae`, `ldm`, `predictor` or `rl`.
        kind: its config.
        out_dir: of the demo.
        seed: of the run.
        starts: the checkpoints that it starts from, by their stage.
    """
    values = compose(f"train_{stage}", [*OVERRIDES[stage], f"seed={seed}"])
    for earlier, path in starts.items():
        values[f"{stage}_module"][f"{earlier}_ckpt_path"] = str(path)
    return load(kind, values | {"run_dir": str(out_dir / stage)})


def finished(result: FitResult) -> FitResult:
    """A run that was not told to stop.

    Raises:
        KeyboardInterrupt: where it was; its checkpoint is saved.
    """
    if result.status is RunStatus.PREEMPTED:
        raise KeyboardInterrupt
    return result


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


def show_reconstructions(
    vae: FitResult, data: CrystalDataModule, out_dir: Path, *, seed: int
) -> tuple[Reconstruction, Path]:
    """Send test crystals through the VAE; report, training curve and picture."""
    network, _, record = load_vae(vae.last_path)
    result = reconstruct(network, subset(data.splits["test"], NUM_TESTED, seed=seed))
    write_report(result, out_dir / "reconstruction", record=record, source="prototypes (test)", seed=seed)
    chosen = torch.randperm(len(result.ids), generator=seeded_generator(seed))[:NUM_PICTURES]
    draw_training_curve(vae.run_dir / "metrics.csv", out_dir / "training_vae.png")
    return result, draw_reconstructions(result, chosen, out_dir / "reconstructions.png")


def sampled_model(trained: Path) -> tuple[Path, dict[str, Any]]:
    """The bundled crystal GPT, where there is one, else the demo's own diffusion model, and its options."""
    bundled = hub.bundled_files().get(hub.DEFAULT_GPT)
    return (trained, {"steps": NUM_STEPS}) if bundled is None else (bundled, {})


def show_samples(
    checkpoint: Path, options: dict[str, Any], data: CrystalDataModule, out_dir: Path, *, seed: int
) -> tuple[GenerateResult, Evaluation | None, list[Path]]:
    """Sample new crystals into `samples/`, measure them against the demo's training split, and draw them all."""
    folder = out_dir / "samples"
    if folder.exists():  # of an earlier demo
        shutil.rmtree(folder)
    config = GenerateConfig(ckpt=checkpoint, num_samples=NUM_SAMPLES, seed=seed, out=folder)
    samples = generate_from(config, options, command=["latentite", "demo"])
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


def reinforce(config: TrainRLConfig, picture: Path, *, num_samples: int) -> Reinforced:
    """Train, judge before and after, draw the reward.

    Args:
        config: of the run.
        picture: where the curve goes.
        num_samples: crystals that are judged, from seeds that training does not use.

    Raises:
        KeyboardInterrupt: when the training was interrupted; its checkpoint is saved.
    """
    base = config.rl_module.ldm_ckpt_path
    assert base is not None
    before = judge(base, config, num_samples)
    fit = finished(train_rl(config))
    draw_reward_curve(
        fit.run_dir / "metrics.csv", picture, units={"density": "g/cm$^3$", "validity": "share"}
    )
    after = judge(fit.last_path, config, num_samples)
    return Reinforced(fit=fit, num_judged=num_samples, before=before, after=after, picture=picture)


def judge(checkpoint: str | Path, config: TrainRLConfig, num_samples: int) -> Judgement:
    """Sample as `latentite sample` does and ask the rewards of the run."""
    wanted = GenerateConfig(ckpt=checkpoint, num_samples=num_samples, no_replace=True)
    samples = generate_from(wanted, {"steps": NUM_STEPS})
    assert samples.crystals is not None, "kept in memory"
    means = Rewards.build(config.rl_module.reward_fn)(samples.crystals).means()
    return Judgement(
        reward=means["total"],
        density=means["density/raw"],
        valid=means["validity/raw"],
        unusable=1.0 - len(samples.crystals) / num_samples,
    )
