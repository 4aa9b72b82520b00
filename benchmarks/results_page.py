"""The page of `results.py`: from the numbers of the parts to `results.md` and its pictures.

What was not measured is said, not left out. The template is `TEMPLATE`; each section is one function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from results_tables import (
    ALL_SETS,
    GPT_SETS,
    MIX_SETS,
    SETS,
    Found,
    by_freedom,
    conditional,
    energy_note,
    judged,
    known,
    learning,
    markdown,
    missing,
    number_text,
    prediction,
    rate_text,
    requests,
    samples,
)

from latentite.base.files import replacing
from latentite.draw.charts import COLOURS, INK, new_figure, save_figure

TEMPLATE = """# Results

Made by `python benchmarks/results.py`, which anyone can run again. Rates have numerator, denominator and 95 % interval.
{warning}
## What was measured

{weights}

{machines}

## The autoencoder

{vae}

## Samples

Each set is held against the training split: unique within the set, novel against it (0.2/0.3/5°). {energies}

{samples}

{pictures}

## Conditions of latent diffusion

{conditional}

## Structure prediction

{prediction}

## Reinforcement learning of latent diffusion

{rl}

## Predictors

{predictors}

## Speed

{speed}

## What limits them

- The diffusion model has learned from 10,458 crystals for about an hour of one CPU core. It gets compositions, cells
  and densities right sooner than the places of atoms: the median RMSD to the relaxed structure says how far they are
  off, and heights above the hull as they come are large. Relax samples before anything else is concluded from them.
- Atoms that ought to be one element can come out as two that are alike, so that some samples have four elements or
  more, which no training crystal has.
- The hull holds crystals of few elements: where competitors are missing, everything looks stable. Shares of stable and
  metastable samples are upper bounds, of use to compare sets, not to count new materials.
- One potential relaxes and judges. Where it also was the reward, the gain of reinforcement learning is the gain by that
  potential's measure; it came by way of other compounds, too: oxides became rare, intermetallic compounds frequent.
- Random substitutions into known prototypes, which need no model, are as often metastable and closer to their relaxed
  structures than the samples. What the samples have over them: they are not bound to known prototypes, they follow the
  densities and sizes of the training set, can be asked for something, and improve by reinforcement learning.
- The model by formula rarely finds the known crystal of a formula at the first try; ask for twenty.
- One training run of each model: spreads over seeds are not known.
"""

GPT_TEMPLATE = """# Results of the crystal GPT

Made by `python benchmarks/results.py`, which anyone can run again. Rates have numerator, denominator and 95 % interval.
{warning}
## What was measured

{weights}

{machines}

## The shipped model

Held against the training split of `mp_mix`: unique within the set, novel against it (0.2/0.3/5°). {energies}

{mix}

{mix_pictures}

Before and after reinforcement learning:

{gpt_rl}

Requests:

{requests}

{gpt_conditional}

Known compounds, asked for by formula:

{known}

## Beside latent diffusion and substitution

All have learned from the same crystals of two and three elements, `mp_20_biternary`, and are held against those. The
numbers of latent diffusion and of substitution are in [results.md](results.md).

{samples}

Structure prediction. {gpt_prediction}

## By number of free coordinates

{freedom}

## A second judge

The first crystals of each set, relaxed with another potential from the start.

{judged}

## What limits them

- Crystals with many free coordinates are further from their relaxed structures than those with few.
- The model is too sure of coordinates: in the last third of its training the validation nats of coordinates rose,
  while samples became better.
- The hull holds few phases of many elements: where competitors are missing, everything looks stable. Shares of stable
  and metastable samples are upper bounds, of use to compare sets, not to count new materials.
- One potential relaxes and judges; it also was the reward of reinforcement learning.
- Two trainings of the model of two and three elements are compared above; of the shipped model there is one.
"""

SHOWN_ELEMENTS = 40


def write_page(folder: Path, page: Path) -> None:
    """Write the page of latent diffusion and its pictures from the parts that the folder holds."""
    found = _read(folder)
    _write(
        page,
        TEMPLATE.format(
            warning=_warning(found),
            weights=_weights(found),
            machines=_machines(found),
            vae=_vae(found),
            energies=energy_note(found),
            samples=samples(found, SETS),
            pictures=_histograms(found, SETS, page, "results_histograms.png"),
            conditional=conditional(found),
            prediction=prediction(found),
            rl=learning(found),
            predictors=_predictors(found),
            speed=_speed(found),
        ),
    )


def write_gpt_page(folder: Path, page: Path) -> None:
    """The same of the crystal GPT."""
    found = _read(folder)
    _write(
        page,
        GPT_TEMPLATE.format(
            warning=_warning(found),
            weights=_weights(found),
            machines=_machines(found),
            energies=energy_note(found),
            mix=samples(found, MIX_SETS),
            mix_pictures=_histograms(found, MIX_SETS, page, "results_gpt_histograms.png"),
            gpt_rl=learning(found, "gpt", "gpt_rl"),
            requests=requests(found),
            gpt_conditional=conditional(found, "gpt_conditional", "gpt"),
            known=known(found),
            samples=samples(found, GPT_SETS),
            gpt_prediction=prediction(found, "gpt_prediction"),
            judged=judged(found),
            freedom=by_freedom(found),
        ),
    )


def _read(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _histograms(found: Found, labels: Mapping[str, str], page: Path, name: str) -> str:
    """The line that shows the picture of these sets, which is drawn; empty when there is no set."""
    picture = _draw_histograms(found, labels, page.parent / "images" / name)
    return f"![Numbers of atoms, densities, elements]({picture.relative_to(page.parent)})" if picture else ""


def _warning(found: Found) -> str:
    """A sentence when parts were measured with different sizes, seeds or potentials, or very few crystals."""
    inputs = [part["inputs"] for part in found.values()]
    steps = {part["sizes"]["relax_steps"] for part in inputs if "relax_steps" in part["sizes"]}
    told = {(part["seed"], part["relax"]) for part in inputs}
    few = [name for name in ALL_SETS if name in found and found[name]["found"]["num_in"] < 100]
    sentences = []
    if len(told) > 1 or len(steps) > 1:
        sentences.append("**The parts below were measured with different settings.**")
    if few:
        sentences.append(f"**Sets of fewer than 100 crystals: {', '.join(few)}.**")
    return "\n" + " ".join(sentences) + "\n" if sentences else ""


def _weights(found: Found) -> str:
    if "weights" not in found:
        return missing("weights")
    rows = []
    for role, item in found["weights"]["found"].items():
        about = item["about"] or {}
        trained = f"{about['minutes']:g} min, {about['hardware']}" if about else "no card"
        size, values = f"{item['bytes'] / 1e6:.1f} MB", f"{item['num_values'] / 1e6:.1f} M"
        rows.append([role.replace("_", " "), f"`{item['name']}`", values, size, item["sha256"][:12], trained])
    return markdown(["", "checkpoint", "numbers", "file", "sha256", "training"], rows)


def _machines(found: Found) -> str:
    """Machines and minutes of the measuring."""
    rows = []
    for name, part in sorted(found.items(), key=lambda item: item[1]["measured"]):
        machine = part["machine"]
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        cores = f"{machine['cores']} cores, {machine['threads']} used by torch {machine['torch']}"
        where = f"{machine['cpu']}, {cores}{gpu}"
        minutes = f"{part['seconds'] / 60:.1f}" + (" (the last session)" if part["resumed"] else "")
        rows.append([name, minutes, where, (machine["commit"] or "-")[:12], part["measured"][:10]])
    return markdown(["part", "minutes", "machine", "commit", "date"], rows)


def _vae(found: Found) -> str:
    if "vae" not in found:
        return missing("vae")
    result = found["vae"]["found"]
    rates, means = result["rates"], result["means"]
    rows = [
        ["match rate at 0.3/0.5/10°", rate_text(rates["match_loose"])],
        ["match rate at 0.2/0.3/5°", rate_text(rates["match_strict"])],
        ["composition right", rate_text(rates["composition_correct"])],
        [
            "RMSD of matched pairs, 0.3/0.5/10° and 0.2/0.3/5°, (volume/atoms)^(1/3)",
            f"{number_text(means['rmsd_loose'], 4)}, {number_text(means['rmsd_strict'], 4)}",
        ],
        [
            "coordinates, Å; lengths, Å; angles, °",
            "; ".join(
                number_text(means[name]) for name in ("coordinate_rmse", "length_error", "angle_error")
            ),
        ],
    ]
    return markdown([f"{result['num_evaluated']} test crystals", "posterior mean, and back"], rows)


def _predictors(found: Found) -> str:
    if "predictors" not in found:
        return missing("predictors")
    rows = [
        [
            target,
            str(item["num_labelled"]),
            *(number_text(item[name]) for name in ("mae", "rmse", "r2", "mae_of_the_training_mean")),
        ]
        for target, item in found["predictors"]["found"].items()
    ]
    return markdown(["", "test crystals", "MAE", "RMSE", "R^2", "MAE of the training mean"], rows)


def _speed(found: Found) -> str:
    """What each kind of work did in a second, on the machines above."""
    rows = []
    if "vae" in found:
        rate = found["vae"]["found"]["crystals_per_second"]
        rows.append(["reconstruction and its comparison", f"{rate:.1f} crystals/s"])
    for name, label in ALL_SETS.items():
        if name not in found:
            continue
        result = found[name]["found"]
        count, seconds = result["num_in"], result["seconds"]
        if sampling := result.get("sampling_seconds"):
            rows.append([f"sampling and writing, {label}", f"{count / sampling:.1f} crystals/s"])
        if energies := seconds.get("energies"):
            rows.append([f"relaxation, {label}", f"{energies / count:.2f} s a crystal"])
        others = sum(
            value
            for step, value in seconds.items()
            if step not in ("energies", "hull and element references")
        )
        rows.append([f"evaluation without energies, {label}", f"{others:.1f} s in all"])
    for target, item in found.get("predictors", {}).get("found", {}).items():
        rows.append([f"prediction of {target}", f"{item['crystals_per_second']:.0f} crystals/s"])
    return markdown(["work", "speed"], rows) if rows else missing("vae samples")


def _draw_histograms(found: Found, labels: Mapping[str, str], path: Path) -> Path | None:
    """Shares by number of atoms, density and element, of every set; None when there is none."""
    sets = {label: found[name]["found"]["histograms"] for name, label in labels.items() if name in found}
    if not sets:
        return None
    figure = new_figure(10.0, 6.0, None)
    grid = figure.add_gridspec(2, 2)
    atoms, density = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    elements = figure.add_subplot(grid[1, :])
    shown = _common_elements(sets)
    for colour, (name, histograms) in zip(COLOURS, sets.items(), strict=False):
        counts = {int(size): count for size, count in histograms["num_atoms"].items()}
        total = max(sum(counts.values()), 1)
        sizes = np.arange(1, max(counts, default=1) + 1)
        atoms.plot(sizes, [counts.get(size, 0) / total for size in sizes], color=colour, label=name)
        edges, values = np.array(histograms["density"]["edges"]), histograms["density"]["counts"]
        density.stairs(np.array(values) / total, edges, color=colour)
        shares = [histograms["elements"].get(element, 0) / total for element in shown]
        elements.plot(range(len(shown)), shares, ".-", color=colour, linewidth=0.8)
    atoms.xaxis.get_major_locator().set_params(integer=True)
    elements.set_xticks(range(len(shown)), shown)
    atoms.legend(frameon=False, fontsize=8)
    for axis, label in ((atoms, "atoms per cell"), (density, "density, g/cm$^3$"), (elements, "element")):
        axis.set_xlabel(label, fontsize=9, color=INK)
        axis.set_ylabel("share of crystals", fontsize=9, color=INK)
        axis.tick_params(labelsize=7, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path, 110)


def _common_elements(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The most frequent elements of the first set, the most frequent first."""
    counts = next(iter(sets.values()))["elements"]
    return sorted(counts, key=lambda element: -counts[element])[:SHOWN_ELEMENTS]
