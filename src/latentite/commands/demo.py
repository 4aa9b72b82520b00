"""`latentite demo`: every stage in a few minutes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from latentite.base.options import make_command, option


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """Options of `latentite demo`."""

    out: Path = field(default=Path("demo"), metadata=option("DIR"))
    """Folder for everything that it leaves."""
    minutes: float = 5.2
    """Wished for training, all stages together."""
    seed: int = 0
    """Of everything random."""


def register(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite demo`. `cli.py` reports mistakes."""
    make_command(
        parser,
        _demo,
        DemoOptions,
        description="Train a small VAE, a predictor of densities and a small latent diffusion model on the embedded "
        "data set, fine-tune the last by reinforcement learning, rebuild crystals that they have not seen, sample and "
        "measure new ones. Needs two CPU cores, about ten minutes, and no network.",
    )


def _demo(options: DemoOptions) -> int:
    # Imported here: Lightning and the networks take seconds, and `--help` should not.
    from latentite.commands.evaluate import rates_table
    from latentite.commands.sample import summary_lines
    from latentite.demo.run import DEMO_TARGET, run_demo
    from latentite.evaluation.reconstruct import report_table

    result = run_demo(options.out, minutes=options.minutes, seed=options.seed)
    console = Console()
    console.print(report_table(result.reconstruction, title="Test crystals, rebuilt from 8 numbers per atom"))
    if result.evaluation is not None:
        console.print(rates_table(result.evaluation, title="New crystals, sampled from noise"))
    metrics = result.predictor.metrics
    error, share = metrics[f"test/{DEMO_TARGET}_mae"], metrics[f"test/{DEMO_TARGET}_r2"]
    said = f"{DEMO_TARGET} of test crystals predicted with a mean absolute error of {error:.2f} g/cm^3 (R2 {share:.2f})"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    for line in (*result.reinforced.lines(), *summary_lines(result.samples)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for what, path in (
        *(("picture", picture) for picture in result.pictures),
        ("report", options.out / "reconstruction"),
        *([] if result.evaluation is None else [("report", options.out / "evaluation" / "report.html")]),
        ("checkpoint", result.vae.last_path),
        ("checkpoint", result.predictor.last_path),
        ("checkpoint", result.ldm.last_path),
        ("checkpoint", result.reinforced.fit.last_path),
    ):
        console.print(f"{what:11}{path}", markup=False, highlight=False, soft_wrap=True)
    return 0
