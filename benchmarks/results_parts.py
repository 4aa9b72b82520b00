"""The parts of `results.py`: what is measured, each as a function from a `Setup` and a folder to plain values.

A part works inside its folder, where an interrupted one goes on: samples and relaxations are kept there.
"""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition

from latentite.checkpoint import read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.build import read_labelled, read_source
from latentite.data.options import BuildOptions
from latentite.energy.potential import TheoryLevel
from latentite.energy.settings import RelaxSettings
from latentite.evaluation.options import EnergyOptions
from latentite.evaluation.reconstruct import reconstruct, subset, summary
from latentite.evaluation.run import evaluate
from latentite.formulas import reduced_formulas
from latentite.generation import generate
from latentite.metrics.errors import regression_metrics
from latentite.models import load_predictor, load_vae
from latentite.predictor.predict import predict_dataset

CONDITION, ASKED, TOLERANCE = "formation_energy_per_atom", (-3.0, -2.0, -1.0, 0.0), 0.2
"""What the conditional model is asked for, and how near counts as a hit, in eV/atom."""
DENSITY_EDGES = np.arange(0.0, 25.01, 0.5)
"""g/cm^3"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured."""

    samples: int = 1000
    rl: int = 1000
    """Samples after reinforcement learning."""
    conditional: int = 100
    """For each value that is asked."""
    formulas: int = 200
    per_formula: int = 20
    crystals: int = 1000
    """Most test crystals and substitutions."""
    relax_steps: int = 500


QUICK = Sizes(samples=12, rl=12, conditional=4, formulas=3, per_formula=2, crystals=12, relax_steps=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What every part is told."""

    checkpoints: dict[str, Path]
    """By role (`ROLES` of `results.py`); those that are not there are left out."""
    data: Path
    hull: tuple[Path, ...]
    hull_theory: TheoryLevel
    """Of the formation energies in those tables."""
    relax: str
    """Potential, or none."""
    sizes: Sizes
    workers: int
    seed: int


def measure_vae(setup: Setup, folder: Path) -> dict[str, Any]:
    """Test crystals through the VAE and back."""
    network, _, record = load_vae(setup.checkpoints["vae"])
    dataset, rejections = read_source(str(setup.data), split="test", max_atoms=0)
    dataset = subset(dataset, setup.sizes.crystals, seed=setup.seed)
    start = time.perf_counter()
    result = reconstruct(network, dataset, rejections=rejections)
    seconds = time.perf_counter() - start
    return {**summary(result, record), "crystals_per_second": len(dataset) / seconds}


def measure_samples(setup: Setup, folder: Path) -> dict[str, Any]:
    """Unconditional samples, as they come and relaxed."""
    return _sampled(setup, folder, setup.checkpoints["ldm"], setup.sizes.samples)


def measure_rl(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same of the model after reinforcement learning."""
    return _sampled(setup, folder, setup.checkpoints["rl"], setup.sizes.rl)


def measure_test(setup: Setup, folder: Path) -> dict[str, Any]:
    """Real crystals that no model has seen, as samples are measured."""
    return _evaluated(setup, folder, _crystals(setup, str(setup.data), "test"))


def measure_prototypes(setup: Setup, folder: Path) -> dict[str, Any]:
    """Random substitutions into known prototypes, likewise: what needs no model."""
    return _evaluated(setup, folder, _crystals(setup, "prototypes", "train"))


def measure_conditional(setup: Setup, folder: Path) -> dict[str, Any]:
    """For each value that is asked: how many samples have it after relaxation, and how far they are off."""
    found = {}
    for value in ASKED:
        samples = folder / f"samples_{value:g}"
        seconds = _generate(
            setup,
            setup.checkpoints["conditional"],
            samples,
            num_samples=setup.sizes.conditional,
            conditions={CONDITION: value},
        )
        report = _evaluated(setup, folder / f"report_{value:g}", samples, tolerances={CONDITION: TOLERANCE})
        found[f"{value:g}"] = {
            "measured": report["conditions"]["measured"].get(CONDITION),
            "formation_energies": report["formation_energies"],
            "rates": report["rates"],
            "sampling_seconds": seconds,
        }
    return {"tolerance": TOLERANCE, "asked": found}


def measure_prediction(setup: Setup, folder: Path) -> dict[str, Any]:
    """Crystal structure prediction: test formulas, with the number of atoms of the crystal that is looked for."""
    dataset, _ = read_source(str(setup.data), split="test", max_atoms=0)
    formulas = reduced_formulas(dataset.crystals)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(setup.seed)).tolist()
    first = {
        formulas[i]: i for i in reversed(order)
    }  # one crystal of each formula: evaluation joins by formula
    chosen = torch.tensor([i for i in order if first[formulas[i]] == i][: setup.sizes.formulas])
    targets = dataset.crystals.select(chosen).with_properties({})
    cells = [structure.composition.formula.replace(" ", "") for structure in targets.to_structures()]
    role = "composition" if "composition" in setup.checkpoints else "ldm"
    seconds = _generate(
        setup,
        setup.checkpoints[role],
        folder / "samples",
        num_samples=setup.sizes.per_formula,
        formula=cells,
        formula_units=1,
    )
    report = _evaluated(replace(setup, relax="none"), folder / "report", folder / "samples", targets=targets)
    return {
        "per_formula": setup.sizes.per_formula,
        "is_told": role == "composition",
        **report["prediction"],
        "sampling_seconds": seconds,
    }


def measure_predictors(setup: Setup, folder: Path) -> dict[str, Any]:
    """Errors on test crystals, beside those of always saying the training mean."""
    found = {}
    for name in sorted(name for name in setup.checkpoints if name.startswith("predictor")):
        network, _, record = load_predictor(setup.checkpoints[name])
        targets = tuple(target for target in network.config.targets if target not in network.config.classes)
        options = BuildOptions(properties=targets)
        test, _ = read_labelled(str(setup.data), split="test", options=options)
        test = subset(test, setup.sizes.crystals, seed=setup.seed)
        train, _ = read_labelled(str(setup.data), split="train", options=options)
        start = time.perf_counter()
        table = predict_dataset(network, test)
        seconds = time.perf_counter() - start
        for target in targets:
            labels = test.crystals.properties[target].double().numpy()
            mean = float(np.nanmean(train.crystals.properties[target].double().numpy()))
            values = np.array(table.columns[target], dtype=float)
            known = ~np.isnan(labels) & ~np.isnan(values)
            found[target] = {
                "checkpoint": record.sha256,
                "num_labelled": int(known.sum()),
                "predicted": table.rate.to_plain(),
                **regression_metrics(labels[known], values[known]),
                "mae_of_the_training_mean": regression_metrics(labels[known], np.full(known.sum(), mean))[
                    "mae"
                ],
                "crystals_per_second": len(test) / seconds,
            }
    return found


def measure_weights(setup: Setup, folder: Path) -> dict[str, Any]:
    """What was measured: each checkpoint, and what its card says of its training."""
    found = {}
    for role, path in setup.checkpoints.items():
        record = read_checkpoint(path)
        card = path.with_suffix(".json")
        content = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
        found[role] = {
            "name": path.stem,
            "stage": record.stage.value,
            "sha256": record.sha256,
            "bytes": path.stat().st_size,
            "num_values": sum(tensor.numel() for tensor in record.state.values()),
            "about": content.get("about"),
        }
    return found


PARTS: dict[str, Callable[[Setup, Path], dict[str, Any]]] = {
    "weights": measure_weights,
    "vae": measure_vae,
    "samples": measure_samples,
    "test": measure_test,
    "prototypes": measure_prototypes,
    "conditional": measure_conditional,
    "prediction": measure_prediction,
    "rl": measure_rl,
    "predictors": measure_predictors,
}
"""In the order of the page."""

NEEDS = {
    "vae": ("vae",),
    "samples": ("ldm",),
    "conditional": ("conditional",),
    "prediction": ("composition", "ldm"),
    "rl": ("rl",),
    "predictors": ("predictor_formation_energy", "predictor_band_gap"),
}
"""The roles whose checkpoints a part takes, one of which must be there."""

SIZES = {
    "vae": ("crystals",),
    "samples": ("samples", "relax_steps"),
    "test": ("crystals", "relax_steps"),
    "prototypes": ("crystals", "relax_steps"),
    "conditional": ("conditional", "relax_steps"),
    "prediction": ("formulas", "per_formula"),
    "rl": ("rl", "relax_steps"),
    "predictors": ("crystals",),
}
"""The sizes that the numbers of a part depend on."""


def _crystals(setup: Setup, source: str, split: str) -> CrystalBatch:
    dataset, _ = read_source(source, split=split, max_atoms=0)
    return subset(dataset, setup.sizes.crystals, seed=setup.seed).crystals.with_properties({})


def _generate(setup: Setup, checkpoint: Path, out: Path, **options: Any) -> float:
    """Samples into a folder, or what is missing there; gives the seconds of all sessions."""
    generate(checkpoint, out=out, seed=setup.seed, format=["extxyz"], resume=True, **options)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return float(sum(session["wall_seconds"] for session in manifest["sessions"]))


def _sampled(setup: Setup, folder: Path, checkpoint: Path, count: int) -> dict[str, Any]:
    seconds = _generate(setup, checkpoint, folder / "samples", num_samples=count)
    manifest = json.loads((folder / "samples" / "manifest.json").read_text(encoding="utf-8"))
    settings = {name: manifest["settings"][name] for name in ("sampler", "steps", "guidance", "seed")}
    return {
        **_evaluated(setup, folder, folder / "samples"),
        "sampling_seconds": seconds,
        "sampling": {**settings, "counts": manifest["counts"]},
    }


def _evaluated(setup: Setup, folder: Path, source: Path | CrystalBatch, **options: Any) -> dict[str, Any]:
    """The evaluation of a set, against the training split; what the page needs of it."""
    out = folder / "evaluation"
    relax: str | EnergyOptions = "none"
    if setup.relax != "none":
        relax = EnergyOptions(
            potential=setup.relax,
            settings=RelaxSettings(max_steps=setup.sizes.relax_steps),
            hull_theory=setup.hull_theory,
        )
    evaluate(
        source,
        reference=setup.data,
        relax=relax,
        hull=setup.hull if setup.relax != "none" else None,
        out=out,
        workers=setup.workers,
        seed=setup.seed,
        resume=True,
        **options,
    )
    report = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    with (out / "structures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    energies = report.get("energies", {})
    kept = (
        "num_in",
        "num_scored",
        "failures_by_step",
        "rates",
        "seconds",
        "relax",
        "conditions",
        "prediction",
    )
    return {
        **{name: report[name] for name in kept if name in report},
        "distances": report.get("distributions", {}).get("wasserstein", {}),
        "energies": {
            name: energies[name]
            for name in ("potential", "settings", "status", "medians", "hull")
            if name in energies
        },
        "formation_energies": _numbers(rows, "relaxed_formation_energy"),
        "histograms": _histograms(rows),
    }


def _numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    return [round(float(row[column]), 4) for row in rows if row.get(column)]


def _histograms(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Counts by number of atoms, density and element (crystals that have it)."""
    density, _ = np.histogram(_numbers(rows, "density"), bins=DENSITY_EDGES)
    elements = Counter(element for row in rows for element in Composition(row["formula"]).as_dict())
    return {
        "num_atoms": dict(sorted(Counter(int(row["num_atoms"]) for row in rows).items())),
        "density": {"edges": DENSITY_EDGES.tolist(), "counts": density.tolist()},
        "elements": dict(elements.most_common()),
    }
