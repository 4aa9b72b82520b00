"""`latentite demo`: the command line of `demo.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`; it sets `func`, from the arguments to the exit code. `cli.py` reports mistakes."""
    command = subparsers.add_parser(
        "demo",
        help="train every stage on embedded crystals and show what comes out",
        description="Make the embedded dataset, train a small VAE, a predictor of densities and a small latent "
        "diffusion model, fine-tune the last by reinforcement learning, rebuild crystals that they have not seen, "
        "sample and measure new ones. Needs two CPU cores, about ten minutes the first time, and no network.",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for everything that it leaves [%(default)s]",
    )
    command.add_argument(
        "--minutes",
        type=float,
        default=5.2,
        metavar="X",
        help="wished for training, all stages together [%(default)s]",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything random [%(default)s]"
    )
    command.set_defaults(func=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    # Imported here: Lightning and the networks take seconds, and `--help` should not.
    from latentite.commands.evaluate import rates_table
    from latentite.commands.sample import summary_lines
    from latentite.demo.run import DEMO_TARGET, run_demo
    from latentite.evaluation.reconstruct import report_table

    result = run_demo(arguments.out, minutes=arguments.minutes, seed=arguments.seed)
    console = Console()
    console.print(report_table(result.reconstruction, title="Test crystals, rebuilt from 8 numbers per atom"))
    if result.evaluation is not None:
        console.print(rates_table(result.evaluation, title="New crystals, sampled from noise"))
    found = result.predictor.metrics
    error, share = found[f"test/{DEMO_TARGET}_mae"], found[f"test/{DEMO_TARGET}_r2"]
    said = f"{DEMO_TARGET} of test crystals predicted with a mean absolute error of {error:.2f} g/cm^3 (R2 {share:.2f})"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    for line in (*result.reinforced.lines(), *summary_lines(result.samples)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for what, path in (
        *(("picture", picture) for picture in result.pictures),
        ("report", arguments.out / "reconstruction"),
        *([] if result.evaluation is None else [("report", arguments.out / "evaluation" / "report.html")]),
        ("checkpoint", result.vae.last_path),
        ("checkpoint", result.predictor.last_path),
        ("checkpoint", result.ldm.last_path),
        ("checkpoint", result.reinforced.fit.last_path),
    ):
        console.print(f"{what:11}{path}", markup=False, highlight=False, soft_wrap=True)
    return 0
