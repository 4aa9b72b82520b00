"""The parts of `results.py` about the crystal GPT: sets with and without filter, formulas, conditions, known compounds.

The shipped model has learned from `mp_mix` and is held against that. Another one, for comparison with latent diffusion,
has learned from the same crystals as that, and is held against those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pymatgen.core import Lattice, Structure
from results_parts import (
    ASKED,
    CONDITION,
    TOLERANCE,
    Part,
    Setup,
    crystals_of,
    evaluated,
    generate_into,
    predicted,
    sampled,
)

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.build import read_source
from latentite.formulas import reduced_formulas
from latentite.generation import generate
from latentite.match.reduced import LOOSE, STRICT, structure_of
from latentite.match.search import find_matches
from latentite.sampling.window import GeometryLimits, geometry_refusals

DISTANCE = 0.7
"""Smallest distance over summed covalent radii of a crystal that passes the filter."""
SHARP = {"temperature": 0.85, "top_p": 0.95, "min_distance_scaled": DISTANCE}
"""A crystal GPT's settings for likelier crystals, at the price of variety."""
JUDGE = "7net-0"
"""Potential that judges anew what CHGNet has judged."""
GROUPS = (225, 62, 166, 14)
"""Space groups that the shipped model is asked for."""
SYSTEMS = ("Li-Fe-O", "Na-Cl", "Ba-Ti-O", "Ga-As")
"""Chemical systems that it is asked for."""


def known_compounds() -> dict[str, Structure]:
    """Compounds that everybody knows, by formula: cells and coordinates as textbooks have them, rounded."""
    make = Structure.from_spacegroup
    cubic, hexagonal = Lattice.cubic, Lattice.hexagonal
    return {
        "NaCl": make("Fm-3m", cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        "TiO2": make(
            "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
        ),
        "SrTiO3": make("Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
        "MgAl2O4": make(
            "Fd-3m",
            cubic(8.08),
            ["Mg", "Al", "O"],
            [[0.125, 0.125, 0.125], [0.5, 0.5, 0.5], [0.2624, 0.2624, 0.2624]],
        ),
        "LiCoO2": make(
            "R-3m", hexagonal(2.816, 14.05), ["Li", "Co", "O"], [[0, 0, 0.5], [0, 0, 0], [0, 0, 0.26]]
        ),
        "LiFePO4": make(
            "Pnma",
            Lattice.orthorhombic(10.33, 6.01, 4.69),
            ["Li", "Fe", "P", "O", "O", "O"],
            [
                [0, 0, 0],
                [0.282, 0.25, 0.975],
                [0.095, 0.25, 0.418],
                [0.097, 0.25, 0.743],
                [0.457, 0.25, 0.206],
                [0.166, 0.046, 0.285],
            ],
        ),
    }


def with_mix(setup: Setup) -> Setup:
    """The same measured against the data set of the shipped model."""
    if setup.mix is None:
        raise FileNotFoundError("--mix must be the folder of mp_mix, on which the crystal GPT was trained")
    beside = setup.mix.parent / "mpts_52"
    return replace(setup, data=setup.mix, hull=(setup.mix, *([beside] if beside.is_dir() else [])))


def measure_gpt(setup: Setup, folder: Path) -> dict[str, Any]:
    """Samples of the shipped crystal GPT as the model says them."""
    return sampled(with_mix(setup), folder, setup.checkpoints["gpt"], setup.sizes.samples)


def measure_gpt_sharp(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same with settings for likelier crystals and the filter."""
    return sampled(with_mix(setup), folder, setup.checkpoints["gpt"], setup.sizes.filtered, **SHARP)


def measure_gpt_on_hull(setup: Setup, folder: Path) -> dict[str, Any]:
    """Samples of the shipped crystal GPT that are asked to be on the hull."""
    asked = {"energy_above_hull": 0.0}
    return sampled(with_mix(setup), folder, setup.checkpoints["gpt"], setup.sizes.filtered, conditions=asked)


def measure_gpt_rl(setup: Setup, folder: Path) -> dict[str, Any]:
    """Samples of the crystal GPT after reinforcement learning."""
    return sampled(with_mix(setup), folder, setup.checkpoints["gpt_rl"], setup.sizes.rl)


def measure_gpt_biternary(setup: Setup, folder: Path) -> dict[str, Any]:
    """Samples of a crystal GPT that has learned from the crystals of the latent diffusion model."""
    return sampled(setup, folder, setup.checkpoints["gpt_biternary"], setup.sizes.samples)


def measure_gpt_biternary_second(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same of a training with another seed."""
    return sampled(setup, folder, setup.checkpoints["gpt_biternary_second"], setup.sizes.samples)


def measure_gpt_biternary_sharp(setup: Setup, folder: Path) -> dict[str, Any]:
    """The same with settings for likelier crystals, no more elements than in training, and the filter."""
    model = setup.checkpoints["gpt_biternary"]
    return sampled(setup, folder, model, setup.sizes.filtered, max_elements=3, **SHARP)


def measure_samples_filtered(setup: Setup, folder: Path) -> dict[str, Any]:
    """Samples of latent diffusion that pass the filter."""
    model = setup.checkpoints["ldm"]
    return sampled(setup, folder, model, setup.sizes.filtered, min_distance_scaled=DISTANCE)


def measure_prototypes_filtered(setup: Setup, folder: Path) -> dict[str, Any]:
    """Random substitutions that pass the filter."""
    crystals = crystals_of(setup, "prototypes", "train")
    refusals = geometry_refusals(crystals, GeometryLimits(min_distance_scaled=DISTANCE))
    kept = [place for place, refusal in enumerate(refusals) if refusal is None]
    chosen = crystals.select(torch.tensor(kept[: setup.sizes.filtered]))
    return {**evaluated(setup, folder, chosen), "passed": {"kept": len(kept), "of": len(crystals)}}


def measure_gpt_prediction(setup: Setup, folder: Path) -> dict[str, Any]:
    """Test formulas with the crystal GPT that has learned from the same crystals as latent diffusion."""
    return {**predicted(setup, folder, setup.checkpoints["gpt_biternary"]), "is_told": False}


def measure_gpt_conditional(setup: Setup, folder: Path) -> dict[str, Any]:
    """Requests of the shipped model: formation energies after relaxation, space groups, chemical systems."""
    setup, model = with_mix(setup), setup.checkpoints["gpt"]
    energies = {}
    for value in ASKED:
        samples = folder / f"energy_{value:g}"
        generate_into(
            setup, model, samples, num_samples=setup.sizes.conditional, conditions={CONDITION: value}
        )
        report = evaluated(setup, folder / f"report_{value:g}", samples, tolerances={CONDITION: TOLERANCE})
        energies[f"{value:g}"] = {
            "measured": report["conditions"]["measured"].get(CONDITION),
            "formation_energies": report["formation_energies"],
            "rates": report["rates"],
        }
    plain = replace(setup, relax="none")

    def shares(
        name: str, requests: dict[str, dict[str, Any]], hit: Callable[[dict[str, str], str], bool]
    ) -> Any:
        found = {}
        for label, options in requests.items():
            samples = folder / f"{name}_{label}"
            generate_into(plain, model, samples, num_samples=setup.sizes.conditional, **options)
            report = evaluated(plain, folder / f"report_{name}_{label}", samples)
            hits = [hit(row, label) for row in report["rows"]]
            found[label] = {
                "hits": {"numerator": sum(hits), "denominator": len(hits)},
                "rates": report["rates"],
            }
        return found

    groups = shares(
        "group",
        {str(group): {"space_group": str(group)} for group in GROUPS},
        lambda row, label: row["space_group_0.1"] == label,
    )
    systems = shares(
        "system",
        {system: {"conditions": {"chemical_system": system}} for system in SYSTEMS},
        lambda row, label: sorted(row["chemical_system"].split("-")) == sorted(label.split("-")),
    )
    return {"tolerance": TOLERANCE, "asked": energies, "groups": groups, "systems": systems}


def measure_judge(setup: Setup, folder: Path) -> dict[str, Any]:
    """The first crystals of several sets, relaxed and judged by another potential."""
    setup = replace(setup, relax=JUDGE)
    found: dict[str, Any] = {"potential": JUDGE}
    for name, role in (("gpt", "gpt"), ("gpt_biternary", "gpt_biternary"), ("samples", "ldm")):
        if role in setup.checkpoints:
            own = with_mix(setup) if name == "gpt" else setup
            # Crystal i of a seed is the same however many are drawn.
            found[name] = sampled(own, folder / name, setup.checkpoints[role], setup.sizes.judged)
    substitutions = crystals_of(setup, "prototypes", "train")
    first = substitutions.select(torch.arange(min(setup.sizes.judged, len(substitutions))))
    found["prototypes"] = evaluated(setup, folder / "prototypes", first)
    return found


def measure_gpt_known(setup: Setup, folder: Path) -> dict[str, Any]:
    """Known compounds by their formulas: how many samples are the known structure, and whether training had it."""
    found: dict[str, Any] = {}
    train, _ = read_source(str(with_mix(setup).data), split="train", max_atoms=0)
    formulas = reduced_formulas(train.crystals)
    everything = train.crystals.to_arrays()
    for formula, structure in known_compounds().items():
        known = CrystalBatch.from_structures([structure.get_primitive_structure()]).to_arrays()
        result = generate(
            setup.checkpoints["gpt"], formula=formula, num_samples=setup.sizes.per_formula, seed=setup.seed
        )
        assert result.crystals is not None
        samples = result.crystals.to_arrays()
        own = reduced_formulas(CrystalBatch.from_arrays(known))[0]
        alike = [everything[place] for place, name in enumerate(formulas) if name == own]
        found[formula] = {
            "samples": len(samples),
            "loose": _num_matches(samples, known, LOOSE),
            "strict": _num_matches(samples, known, STRICT),
            "crystals_of_this_formula_in_train": len(alike),
            "is_in_train": bool(_num_matches(known, alike, STRICT)),
        }
        if formula == "LiFePO4":
            found[formula]["tetrahedra"] = sum(_has_tetrahedra(sample) for sample in samples)
    return found


def _num_matches(crystals: list[CrystalArrays], others: list[CrystalArrays], settings: Any) -> int:
    """Crystals that match one of the others."""
    verdicts = find_matches(crystals, others, settings=[settings], workers=1).verdicts[settings.name]
    return sum(verdict is not None and verdict.reference is not None for verdict in verdicts)


def _has_tetrahedra(crystal: CrystalArrays) -> bool:
    """True when each phosphorus has four oxygens within 1.8 Å, at angles of 100° to 120°."""
    structure = structure_of(crystal)
    for site in structure:
        if site.specie.symbol != "P":
            continue
        near = [one for one in structure.get_neighbors(site, 1.8) if one.specie.symbol == "O"]
        if len(near) != 4:
            return False
        arms = [one.coords - site.coords for one in near]
        for first in range(4):
            for second in range(first):
                cosine = arms[first] @ arms[second] / (arms[first] @ arms[first]) ** 0.5
                cosine /= (arms[second] @ arms[second]) ** 0.5
                if not -0.5 <= cosine <= -0.1736:
                    return False
    return True


GPT_PARTS = {
    "gpt_biternary": Part(
        measure=measure_gpt_biternary, needs=("gpt_biternary",), sizes=("samples", "relax_steps")
    ),
    "gpt_biternary_second": Part(
        measure=measure_gpt_biternary_second,
        needs=("gpt_biternary_second",),
        sizes=("samples", "relax_steps"),
    ),
    "gpt_biternary_sharp": Part(
        measure=measure_gpt_biternary_sharp, needs=("gpt_biternary",), sizes=("filtered", "relax_steps")
    ),
    "samples_filtered": Part(
        measure=measure_samples_filtered, needs=("ldm",), sizes=("filtered", "relax_steps")
    ),
    "prototypes_filtered": Part(
        measure=measure_prototypes_filtered, sizes=("filtered", "crystals", "relax_steps")
    ),
    "gpt_prediction": Part(
        measure=measure_gpt_prediction, needs=("gpt_biternary",), sizes=("formulas", "per_formula")
    ),
    "gpt": Part(measure=measure_gpt, needs=("gpt",), sizes=("samples", "relax_steps"), on_mix=True),
    "gpt_sharp": Part(
        measure=measure_gpt_sharp, needs=("gpt",), sizes=("filtered", "relax_steps"), on_mix=True
    ),
    "gpt_on_hull": Part(
        measure=measure_gpt_on_hull, needs=("gpt",), sizes=("filtered", "relax_steps"), on_mix=True
    ),
    "gpt_rl": Part(measure=measure_gpt_rl, needs=("gpt_rl",), sizes=("rl", "relax_steps"), on_mix=True),
    "gpt_conditional": Part(
        measure=measure_gpt_conditional, needs=("gpt",), sizes=("conditional", "relax_steps"), on_mix=True
    ),
    "judge": Part(
        measure=measure_judge,
        needs=("gpt", "gpt_biternary", "ldm"),
        sizes=("judged", "crystals", "relax_steps"),
        on_mix=True,
        package="sevenn",
    ),
    "gpt_known": Part(measure=measure_gpt_known, needs=("gpt",), sizes=("per_formula",), on_mix=True),
}
"""In the order of the page."""
