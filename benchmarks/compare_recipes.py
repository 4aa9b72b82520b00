"""Recipes against each other: the same minutes, the same data, several seeds; a Markdown table for `docs/log.md`.

    python benchmarks/compare_recipes.py recipes.yaml --minutes 4 --seeds 0 1 2 --out outputs/compare

where `recipes.yaml` says what differs, in the words of the command line:

    stage: vae                                   # vae, ldm, rl or predictor
    common: [experiment=mp_20_biternary/vae_dng, data.data_dir=../shared/data/mp_20_biternary]
    metrics: [val/match_rate_loose, val/match_rate_strict]
    recipes:
      kl 1e-3: []
      kl 1e-5: [vae_module.loss_weights.kl=1.0e-5]

Every run ends with `trainer.max_time`; a schedule that must come down by then needs its own `trainer.max_steps` or
`scheduler.total_steps` among the overrides. Seeds are the outer loop, so that a machine that gets busier is busy for
every recipe. A run that is finished is not run again. Each cell is the mean over seeds of the last logged value, with
the smallest and largest; the rest of each run is in its folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from latentite.base.files import write_json
from latentite.draw.charts import read_metrics

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"stage": str, "common": list, "metrics": list, "recipes": dict}


def read_recipes(path: Path) -> dict[str, Any]:
    """The YAML file, checked.

    Raises:
        ValueError: naming the key that is missing, unknown or wrong.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.keys() != KEYS.keys():
        raise ValueError(f"{path} must have the keys {', '.join(KEYS)}, got {content!r:.100}")
    for key, kind in KEYS.items():
        if not isinstance(content[key], kind) or not content[key]:
            raise ValueError(
                f"{path}: {key} must be a {kind.__name__} that is not empty, got {content[key]!r:.100}"
            )
    return content


def command_of(stage: str, overrides: Sequence[str], folder: Path, *, seed: int, minutes: float) -> list[str]:
    """The training of one run."""
    return [
        sys.executable,
        str(ROOT / "src" / f"train_{stage}.py"),
        *overrides,
        f"seed={seed}",
        f"trainer.max_time={max(1, round(60 * minutes))}",
        f"hydra.run.dir={folder}",
    ]


def run_once(command: Sequence[str], folder: Path) -> None:
    """Train in a process of its own, unless the folder holds the finished run.

    Raises:
        RuntimeError: when training fails, with the last lines of what it said.
        ValueError: when the folder holds another run.
    """
    done_before = folder / "finished.json"
    if done_before.is_file():
        if json.loads(done_before.read_text(encoding="utf-8"))["command"] != list(command):
            raise ValueError(f"{folder} holds a run of another command; take another --out, or remove it")
        return
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    write_json(done_before, {"command": list(command), "seconds": time.perf_counter() - start})


def last_values(folder: Path, metrics: Sequence[str]) -> dict[str, float]:
    """The last step of a run, and the last logged value of each metric.

    Raises:
        ValueError: for a metric that the run did not log, naming those that it did.
    """
    curves = read_metrics(folder / "metrics.csv")
    missing = [name for name in metrics if name not in curves]
    if missing:
        raise ValueError(f"{folder / 'metrics.csv'} must have {missing[0]}, got {', '.join(sorted(curves))}")
    steps = max(float(curve[0][-1]) for curve in curves.values())
    return {"steps": steps, **{name: float(curves[name][1][-1]) for name in metrics}}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean, smallest and largest over the seeds, as a Markdown table."""
    names = list(next(iter(found.values()))[0])
    lines = [["recipe", "seeds", *names], ["---"] * (2 + len(names))]
    for recipe, runs in found.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.4g}{spread}")
        lines.append([recipe, str(len(runs)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table after every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    given = read_recipes(args.recipes)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given["recipes"]}
    for seed in args.seeds:
        for position, (name, overrides) in enumerate(given["recipes"].items()):
            folder = args.out.resolve() / f"{position}_{seed}"
            words = [*given["common"], *overrides]
            run_once(command_of(given["stage"], words, folder, seed=seed, minutes=args.minutes), folder)
            found[name].append(last_values(folder, given["metrics"]))
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
