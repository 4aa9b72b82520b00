"""Recipes of the autoencoder and of the diffusion model against each other, judged by what they generate.

    python benchmarks/search.py recipes.yaml --seeds 0 1 2 --out outputs/search

where `recipes.yaml` says what is common and what differs, in the words of the command line:

    vae: [experiment=mp_20_biternary/vae_dng, trainer.max_epochs=5]
    ldm: [experiment=mp_20_biternary/ldm_null, trainer.max_epochs=15]
    recipes:
      as it is: {}
      16 channels: {vae: [vae_module.latent_dim=16], ldm: [ldm_module.denoiser.latent_dim=16]}
      less noise: {sample: {sampler: flow_sde, noise_scale: 0.4}}

Each recipe trains a VAE, then a diffusion model on it, samples from that (the same noise everywhere), and has the
samples evaluated against the training split, energies by single points. Without `vae` at the top the bundled VAE is
taken. Runs that two recipes share are done once, and a finished one is not done again. Lengths are given in epochs or
steps, which a busy machine does not change; the minutes that they took stand in the table. Seeds are those of the
trainings. Each cell is the mean over seeds with the smallest and largest.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from compare_recipes import ROOT, last_values, run_once, table

from latentite.base.files import write_json
from latentite.energy.catalogue import parse_theory
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.evaluation.options import EnergyOptions
from latentite.evaluation.run import evaluate
from latentite.generation import generate

TOP = {"vae", "ldm", "recipes"}
VAE_METRICS = ("val/match_rate_loose", "val/match_rate_strict")
RATES = ("smact_pauling", "smact_icsd24", "unique", "novel", "symmetric")


def read_search(path: Path) -> dict[str, Any]:
    """The YAML file, checked.

    Raises:
        ValueError: naming the key that is missing, unknown or wrong.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"ldm", "recipes"} <= content.keys() <= TOP:
        raise ValueError(f"{path} must have ldm, recipes and perhaps vae, got {content!r:.100}")
    for name, recipe in content["recipes"].items():
        if not isinstance(recipe, dict) or not recipe.keys() <= {"vae", "ldm", "sample"}:
            raise ValueError(f"{path}: {name!r} may have vae, ldm and sample, got {recipe!r:.100}")
        if "vae" in recipe and "vae" not in content:
            raise ValueError(f"{path}: {name!r} changes the vae, but there is none at the top")
    return content


def train(stage: str, overrides: Sequence[str], out: Path, *, seed: int) -> Path:
    """The folder of a run of these overrides, done unless it is there."""
    digest = hashlib.sha256(json.dumps([*overrides, seed]).encode()).hexdigest()[:10]
    folder = out / f"{stage}-{digest}"
    script = str(ROOT / "src" / f"train_{stage}.py")
    run_once([sys.executable, script, *overrides, f"seed={seed}", f"hydra.run.dir={folder}"], folder)
    return folder


def judge(samples: Path, folder: Path, data: Path, hull: Sequence[Path]) -> dict[str, float]:
    """What is compared of a set of samples; energies above hull as the samples come, in eV/atom."""
    theory = parse_theory("PBE(+U), corrected")
    energies = EnergyOptions(
        potential="chgnet", settings=RelaxSettings(cell=RelaxCell.NONE), hull_theory=theory
    )
    evaluate(samples, reference=data, relax=energies, hull=tuple(hull), out=folder, resume=True)
    report = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    with (folder / "structures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heights = [float(row["energy_above_hull"]) for row in rows if row["energy_above_hull"]]
    low, middle, high = np.percentile(heights, [25, 50, 75]) if heights else [float("nan")] * 3
    return {
        **{name: 100 * report["rates"][name]["rate"] for name in RATES},
        "elements": float(np.mean([int(row["num_elements"]) for row in rows])),
        "above hull, 25 %": float(low),
        "50 %": float(middle),
        "75 %": float(high),
    }


def measure(
    recipe: Mapping[str, Any], given: Mapping[str, Any], args: argparse.Namespace, *, seed: int
) -> dict[str, float]:
    """One recipe with one seed: train, sample, evaluate."""
    out = args.out.resolve()
    data = [f"data.data_dir={args.data.resolve()}"]
    found: dict[str, float] = {}
    of_vae = []
    if "vae" in given:
        vae = train("vae", [*given["vae"], *data, *recipe.get("vae", [])], out, seed=seed)
        found |= last_values(vae, VAE_METRICS)
        found["VAE, minutes"] = minutes_of(vae)
        of_vae = [f"ldm_module.vae_ckpt_path={vae / 'checkpoints' / 'last.ckpt'}"]
    ldm = train("ldm", [*given["ldm"], *data, *of_vae, *recipe.get("ldm", [])], out, seed=seed)
    found |= {"LDM, minutes": minutes_of(ldm), "loss": last_values(ldm, ["val/loss"])["val/loss"]}
    how = recipe.get("sample", {})
    digest = hashlib.sha256(json.dumps([str(ldm), how, args.num_samples]).encode()).hexdigest()[:10]
    samples, report = out / f"samples-{digest}", out / f"report-{digest}"
    generate(
        ldm / "checkpoints" / "last.ckpt",
        out=samples,
        num_samples=args.num_samples,
        seed=0,
        format=["extxyz"],
        resume=True,
        **how,
    )
    hull = [args.data, *(path for path in [args.data.parent / "mpts_52"] if path.is_dir())]
    counts = json.loads((samples / "manifest.json").read_text(encoding="utf-8"))["counts"]
    refused = float(sum(counts["rejected"].values()))
    found |= {"refused": refused, **judge(samples, report, args.data, hull)}
    write_json(report / "compared.json", found)
    return found


def minutes_of(folder: Path) -> float:
    """Wall time of a finished run."""
    return float(json.loads((folder / "finished.json").read_text(encoding="utf-8"))["seconds"]) / 60


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table after every recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mp_20_biternary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    given = read_search(args.recipes)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given["recipes"]}
    for seed in args.seeds:
        for name, recipe in given["recipes"].items():
            found[name].append(measure(recipe, given, args, seed=seed))
            print(table({name: runs for name, runs in found.items() if runs}), flush=True)


if __name__ == "__main__":
    main()
