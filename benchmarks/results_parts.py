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
from latentite.symmetry.positions import wyckoff_table

CONDITION, ASKED, TOLERANCE = "formation_energy_per_atom", (-3.0, -2.0, -1.0, 0.0), 0.2
"""What the conditional model is asked for, and how near counts as a hit, in eV/atom."""
DENSITY_EDGES = np.arange(0.0, 25.01, 0.5)
"""g/cm^3"""
KEPT_COLUMNS = (
    "formula",
    "chemical_system",
    "space_group_0.1",
    "wyckoff",
    "prototype",
    "msun",
    "relaxed_msun",
    "relax_converged",
)
"""Columns of each crystal that the numbers of a part keep."""
FREEDOM = ((0, 0, "0"), (1, 2, "1 or 2"), (3, 6, "3 to 6"), (7, 10**6, "7 and more"))
"""Numbers of free coordinates that are told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured."""

    samples: int = 1000
    rl: int = 1000
    """Samples after reinforcement learning."""
    filtered: int = 500
    """Samples that pass a filter."""
    conditional: int = 100
    """For each value that is asked."""
    judged: int = 200
    """Of each set that a second potential judges."""
    formulas: int = 200
    per_formula: int = 20
    crystals: int = 1000
    """Most test crystals and substitutions."""
    relax_steps: int = 500


QUICK = Sizes(
    samples=12,
    rl=12,
    filtered=12,
    conditional=4,
    judged=3,
    formulas=3,
    per_formula=2,
    crystals=12,
    relax_steps=3,
)


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
    mix: Path | None = None
    """The data set of the shipped crystal GPT; None where there is none."""


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
    return sampled(setup, folder, setup.checkpoints["ldm"], setup.sizes.samples)


def measure_rl(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same of the model after reinforcement learning."""
    return sampled(setup, folder, setup.checkpoints["rl"], setup.sizes.rl)


def measure_test(setup: Setup, folder: Path) -> dict[str, Any]:
    """Real crystals that no model has seen, as samples are measured."""
    return evaluated(setup, folder, crystals_of(setup, str(setup.data), "test"))


def measure_prototypes(setup: Setup, folder: Path) -> dict[str, Any]:
    """Random substitutions into known prototypes, likewise: what needs no model."""
    return evaluated(setup, folder, crystals_of(setup, "prototypes", "train"))


def measure_conditional(setup: Setup, folder: Path) -> dict[str, Any]:
    """For each value that is asked: how many samples have it after relaxation, and how far they are off."""
    found = {}
    for value in ASKED:
        samples = folder / f"samples_{value:g}"
        seconds = generate_into(
            setup,
            setup.checkpoints["conditional"],
            samples,
            num_samples=setup.sizes.conditional,
            conditions={CONDITION: value},
        )
        report = evaluated(setup, folder / f"report_{value:g}", samples, tolerances={CONDITION: TOLERANCE})
        found[f"{value:g}"] = {
            "measured": report["conditions"]["measured"].get(CONDITION),
            "formation_energies": report["formation_energies"],
            "rates": report["rates"],
            "sampling_seconds": seconds,
        }
    return {"tolerance": TOLERANCE, "asked": found}


def measure_prediction(setup: Setup, folder: Path) -> dict[str, Any]:
    """Crystal structure prediction: test formulas, with the number of atoms of the crystal that is looked for."""
    role = "composition" if "composition" in setup.checkpoints else "ldm"
    return {**predicted(setup, folder, setup.checkpoints[role]), "is_told": role == "composition"}


def predicted(setup: Setup, folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Test formulas with a model, `Sizes.per_formula` samples of each."""
    dataset, _ = read_source(str(setup.data), split="test", max_atoms=0)
    formulas = reduced_formulas(dataset.crystals)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(setup.seed)).tolist()
    first = {
        formulas[i]: i for i in reversed(order)
    }  # one crystal of each formula: evaluation joins by formula
    chosen = torch.tensor([i for i in order if first[formulas[i]] == i][: setup.sizes.formulas])
    targets = dataset.crystals.select(chosen).with_properties({})
    cells = [structure.composition.formula.replace(" ", "") for structure in targets.to_structures()]
    seconds = generate_into(
        setup,
        checkpoint,
        folder / "samples",
        num_samples=setup.sizes.per_formula,
        formula=cells,
        formula_units=1,
    )
    report = evaluated(replace(setup, relax="none"), folder / "report", folder / "samples", targets=targets)
    return {
        "per_formula": setup.sizes.per_formula,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Something that is measured."""

    measure: Callable[[Setup, Path], dict[str, Any]]
    needs: tuple[str, ...] = ()
    """Roles whose checkpoints it takes, one of which must be there."""
    sizes: tuple[str, ...] = ()
    """Sizes that its numbers depend on."""
    on_mix: bool = False
    """True for what is held against the data set of the shipped crystal GPT."""
    package: str | None = None
    """Package beside those of the project that it takes."""


PARTS = {
    "weights": Part(measure=measure_weights),
    "vae": Part(measure=measure_vae, needs=("vae",), sizes=("crystals",)),
    "samples": Part(measure=measure_samples, needs=("ldm",), sizes=("samples", "relax_steps")),
    "test": Part(measure=measure_test, sizes=("crystals", "relax_steps")),
    "prototypes": Part(measure=measure_prototypes, sizes=("crystals", "relax_steps")),
    "conditional": Part(
        measure=measure_conditional, needs=("conditional",), sizes=("conditional", "relax_steps")
    ),
    "prediction": Part(
        measure=measure_prediction, needs=("composition", "ldm"), sizes=("formulas", "per_formula")
    ),
    "rl": Part(measure=measure_rl, needs=("rl",), sizes=("rl", "relax_steps")),
    "predictors": Part(
        measure=measure_predictors,
        needs=("predictor_formation_energy", "predictor_band_gap"),
        sizes=("crystals",),
    ),
}
"""In the order of the page."""


def crystals_of(setup: Setup, source: str, split: str) -> CrystalBatch:
    """Crystals of a split, at most so many, without labels."""
    dataset, _ = read_source(source, split=split, max_atoms=0)
    return subset(dataset, setup.sizes.crystals, seed=setup.seed).crystals.with_properties({})


def generate_into(setup: Setup, checkpoint: Path, out: Path, **options: Any) -> float:
    """Samples into a folder, or what is missing there; gives the seconds of all sessions."""
    generate(checkpoint, out=out, seed=setup.seed, format=["extxyz"], resume=True, **options)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return float(sum(session["wall_seconds"] for session in manifest["sessions"]))


def sampled(setup: Setup, folder: Path, checkpoint: Path, count: int, **options: Any) -> dict[str, Any]:
    """Samples with these options, and their evaluation."""
    seconds = generate_into(setup, checkpoint, folder / "samples", num_samples=count, **options)
    manifest = json.loads((folder / "samples" / "manifest.json").read_text(encoding="utf-8"))
    names = (
        "sampler",
        "steps",
        "guidance",
        "seed",
        "temperature",
        "top_p",
        "max_elements",
        "min_distance_scaled",
    )
    settings = {name: manifest["settings"][name] for name in names if name in manifest["settings"]}
    return {
        **evaluated(setup, folder, folder / "samples"),
        "sampling_seconds": seconds,
        "sampling": {**settings, "counts": manifest["counts"]},
    }


def evaluated(setup: Setup, folder: Path, source: Path | CrystalBatch, **options: Any) -> dict[str, Any]:
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
        "rows": [{name: row.get(name, "") for name in KEPT_COLUMNS} for row in rows],
        "by_freedom": by_freedom(rows),
        "formation_energies": _numbers(rows, "relaxed_formation_energy"),
        "histograms": _histograms(rows),
    }


def by_freedom(rows: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """What becomes of crystals with so many free coordinates, counted by space group and Wyckoff letters.

    A crystal without converged relaxation or energy has no hit. Those whose symmetry is not known are one more group.
    """
    found: dict[str, list[dict[str, str]]] = {label: [] for _, _, label in FREEDOM}
    for row in rows:
        label = "unknown"
        if row.get("wyckoff") and row.get("space_group_0.1"):
            number = num_free_coordinates(int(float(row["space_group_0.1"])), row["wyckoff"])
            label = next(label for low, high, label in FREEDOM if low <= number <= high)
        found.setdefault(label, []).append(row)
    return {
        label: {
            "count": len(members),
            "rmsd_to_relaxed": _median(members, "rmsd_to_relaxed"),
            "energy_above_hull": _median(members, "energy_above_hull"),
            **{name: _rate(members, name) for name in ("relax_converged", "relaxed_msun")},
        }
        for label, members in found.items()
    }


def num_free_coordinates(number: int, wyckoff: str) -> int:
    """Of the orbits of a crystal, from its letters with their counts, such as `a 2c`."""
    table = wyckoff_table()
    letters = table.letter[table.first[number] :]
    free = 0
    for word in wyckoff.split():
        place = int(table.first[number]) + letters.index(word[-1])
        free += int(word[:-1] or 1) * int(table.num_free[place])
    return free


def _median(rows: list[dict[str, str]], column: str) -> float | None:
    values = _numbers(rows, column)
    return float(np.median(values)) if values else None


def _rate(rows: list[dict[str, str]], column: str) -> dict[str, int] | None:
    known = [row[column] for row in rows if row.get(column)]
    if not known:
        return None
    return {"numerator": sum(value == "yes" for value in known), "denominator": len(rows)}


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
