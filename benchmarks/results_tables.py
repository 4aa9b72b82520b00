"""Tables of `results_page.py` about sampled sets: rates side by side, conditions, structure prediction, learning.

A section that was not measured says how it would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentite.metrics.rates import Rate, difference

Found = Mapping[str, Mapping[str, Any]]
"""By part: the content of its file."""

SETS = {
    "samples": "samples",
    "test": "test crystals",
    "prototypes": "random substitutions",
    "rl": "samples after RL",
    "samples_filtered": "samples, filtered",
    "prototypes_filtered": "random substitutions, filtered",
}
"""Sets that are held against the crystals of two and three elements."""
GPT_SETS = {
    "gpt_biternary": "as the model says them",
    "gpt_biternary_second": "likewise, another seed of training",
    "gpt_biternary_sharp": "sharp and filtered",
}
"""Sets of a crystal GPT that has learned from these crystals, held against them, too."""
MIX_SETS = {
    "gpt": "as the model says them",
    "gpt_sharp": "sharp and filtered",
    "gpt_on_hull": "asked for energy_above_hull=0",
    "gpt_rl": "after RL",
}
"""Sets of the shipped crystal GPT, held against its own training crystals."""
ALL_SETS = {
    **SETS,
    **{name: f"crystal GPT of mp_20_biternary, {label}" for name, label in GPT_SETS.items()},
    **{name: f"shipped crystal GPT, {label}" for name, label in MIX_SETS.items()},
}
RATES = {
    "min_distance_ok": "atoms more than 0.5 Å apart",
    "structure_valid": "structure valid",
    "smact_pauling": "SMACT, as in older papers",
    "smact_icsd24": "SMACT, icsd24",
    "unique": "unique",
    "novel": "novel",
    "valid_unique_novel": "valid, unique and novel",
    "decorated_in_reference": "space group, letters and elements as a training crystal",
    "prototype_in_reference": "prototype of a training crystal",
    "stable": "stable (<= 0 eV/atom), as they came",
    "metastable": "metastable (<= 0.1), as they came",
    "sun": "SUN, as they came",
    "msun": "MSUN, as they came",
    "relax_converged": "relaxation converged",
    "relaxed_unique": "unique, relaxed",
    "relaxed_novel": "novel, relaxed",
    "relaxed_stable": "stable, relaxed",
    "relaxed_metastable": "metastable, relaxed",
    "relaxed_sun": "SUN, relaxed",
    "relaxed_msun": "MSUN, relaxed (stable ones included)",
    "relaxed_msun_exclusive": "MSUN, relaxed (without stable ones)",
}
"""Rates of an evaluation that the page shows."""
MEDIANS = {
    "rmsd_to_relaxed": "median RMSD to relaxed, Å",
    "energy_above_hull": "median energy above hull, as they came, eV/atom",
    "relaxed_energy_above_hull": "median energy above hull, relaxed, eV/atom",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def missing(part: str) -> str:
    """What stands in the place of a table that was not measured."""
    return f"Not measured (`python benchmarks/results.py --parts {part}`)."


def rate_of(plain: Mapping[str, Any] | None) -> Rate | None:
    """A rate of `summary.json`."""
    return None if plain is None else Rate(numerator=plain["numerator"], denominator=plain["denominator"])


def rate_text(plain: Mapping[str, Any] | None) -> str:
    """The same in words, a dash for none."""
    rate = rate_of(plain)
    return "-" if rate is None else str(rate)


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def energy_note(found: Found) -> str:
    """By which potential, how far relaxed and above which hull."""
    for name in ALL_SETS:
        if name in found and (energies := found[name]["found"]["energies"]):
            potential, settings, hull = energies["potential"], energies["settings"], energies.get("hull")
            tables = [] if hull is None else [Path(name).name for name in hull["name"].split(", ")]
            heights = (
                f"heights above the hull of {hull['num_phases']} phases ({', '.join(tables)}; {hull['theory']})"
                if hull
                else "no hull"
            )
            return (
                f"Energies are those of {potential['name']} {potential['version']}, relaxations go on until forces are "
                f"below {settings['fmax']} eV/Å or {settings['max_steps']} steps are done, {heights}."
            )
    return "No energies were computed."


def samples(found: Found, labels: Mapping[str, str]) -> str:
    """Table of rates, medians and distances, a column per set of crystals."""
    sets = [name for name in labels if name in found]
    if not sets:
        return missing(" ".join(labels))
    results = {name: found[name]["found"] for name in sets}
    rows = [["crystals", *(str(result["num_in"]) for result in results.values())]]
    for name, label in RATES.items():
        cells = [result["rates"].get(name) for result in results.values()]
        if any(cells):
            rows.append([label, *map(rate_text, cells)])
    for name, label in MEDIANS.items():
        values = [result["energies"].get("medians", {}).get(name) for result in results.values()]
        if any(value is not None for value in values):
            rows.append([label, *(number_text(value) for value in values)])
    for name, label in (("density_g_per_cm3", "density, g/cm^3"), ("num_atoms", "number of atoms")):
        values = [result["distances"].get(name, {}).get("all") for result in results.values()]
        rows.append(
            [f"Wasserstein distance to the training set: {label}", *(number_text(value) for value in values)]
        )
    return markdown(["", *(labels[name] for name in sets)], rows)


def by_freedom(found: Found) -> str:
    """Table of what becomes of crystals with few and many free coordinates."""
    rows = []
    for name, label in ALL_SETS.items():
        for number, item in found.get(name, {}).get("found", {}).get("by_freedom", {}).items():
            rate = rate_text(item["relax_converged"]), rate_text(item["relaxed_msun"])
            medians = (number_text(item[key]) for key in ("rmsd_to_relaxed", "energy_above_hull"))
            rows.append([label, number, str(item["count"]), *medians, *rate])
    header = ["", "free coordinates", "crystals", "median RMSD to relaxed, Å"]
    header += ["median energy above hull, as they came, eV/atom", "relaxation converged", "MSUN, relaxed"]
    return markdown(header, rows) if rows else missing("gpt gpt_biternary samples")


def judged(found: Found) -> str:
    """Table of what two potentials say of the same crystals, the first of several sets."""
    if "judge" not in found:
        return missing("judge")
    result = found["judge"]["found"]
    rows = []
    for name, label in ALL_SETS.items():
        if name not in result:
            continue
        other = result[name]
        first = found.get(name, {}).get("found", {}).get("rows", [])[: other["num_in"]]
        for rate in ("relax_converged", "msun", "relaxed_msun"):
            numerator = sum(row.get(rate) == "yes" for row in first)
            own = str(Rate(numerator=numerator, denominator=len(first))) if first else "-"
            rows.append([label, RATES[rate], own, rate_text(other["rates"].get(rate))])
    return markdown(["", "", "CHGNet", result["potential"]], rows)


def known(found: Found) -> str:
    """Table of known compounds: how many samples of each formula are the known structure."""
    if "gpt_known" not in found:
        return missing("gpt_known")
    rows = [
        [
            formula,
            "yes" if item["is_in_train"] else "no",
            str(item["crystals_of_this_formula_in_train"]),
            f"{item['loose']} of {item['samples']}",
            f"{item['strict']} of {item['samples']}",
            f"{item['tetrahedra']} of {item['samples']} have PO4 tetrahedra" if "tetrahedra" in item else "",
        ]
        for formula, item in found["gpt_known"]["found"].items()
    ]
    header = ["formula", "in training", "training crystals of this formula", "0.3/0.5/10°", "0.2/0.3/5°", ""]
    return markdown(header, rows)


def requests(found: Found) -> str:
    """Table of space groups and chemical systems that the shipped crystal GPT was asked for."""
    if "gpt_conditional" not in found:
        return missing("gpt_conditional")
    result = found["gpt_conditional"]["found"]
    rows = [
        [f"{kind} {label}", rate_text(item["hits"]), rate_text(item["rates"]["valid"])]
        for kind, part in (("space group", "groups"), ("chemical system", "systems"))
        for label, item in result[part].items()
    ]
    return markdown(["asked", "hits", "valid"], rows)


def conditional(found: Found, part: str = "conditional", free_part: str = "samples") -> str:
    """Table of hits, a row per formation energy that was asked for.

    Args:
        found: all parts.
        part: that with the requests.
        free_part: samples of which nothing was asked.
    """
    if part not in found:
        return missing(part)
    result = found[part]["found"]
    tolerance = result["tolerance"]
    unasked = found.get(free_part, {}).get("found", {})
    free, num_free = unasked.get("formation_energies", []), unasked.get("num_scored", 0)
    rows = []
    for value, item in result["asked"].items():
        measured = item["measured"]
        chance = Rate(
            numerator=sum(abs(energy - float(value)) <= tolerance for energy in free), denominator=num_free
        )
        energies = item["formation_energies"]
        rows.append([
            value,
            rate_text(measured and measured["strict"]),
            number_text(measured and measured["mean_absolute_error"]),
            number_text(float(np.median(energies)) if energies else None),
            str(chance),
            rate_text(item["rates"]["valid"]),
        ])  # fmt: skip
    header = ["asked, eV/atom", "hits", "mean error", "median", "hits without condition", "valid"]
    return (
        f"Formation energy after relaxation within {tolerance} eV/atom of what was asked; a sample without energy "
        f"is no hit.\n\n{markdown(header, rows)}"
    )


def prediction(found: Found, part: str = "prediction") -> str:
    """Table of match rates, by matcher and number of samples."""
    if part not in found:
        return missing(part)
    result = found[part]["found"]
    most = result["per_formula"]
    told = (
        "is told the composition, too"
        if result["is_told"]
        else "is not told it, and was not trained for this"
    )
    kept = "masks of its choices" if part.startswith("gpt") else "assigning its elements to the decoded atoms"
    rows = []
    for key, label in (("loose", "0.3/0.5/10°"), ("strict", "0.2/0.3/5°")):
        matcher = result["matchers"][key]
        for name, count in (("k1_all_pairs", 1), ("any_all_pairs", most)):
            item = matcher[name]
            rows.append([label, str(count), rate_text(item["rate"]), number_text(item["rmse"])])
    return (
        f"{result['targets']['num_targets']} test crystals of different formulas. The number of atoms is given; the "
        f"formula is kept by {kept}; the model {told}.\n\n"
        + markdown(["matcher", "samples each", "matched", "RMSE of matched pairs"], rows)
    )


def learning(found: Found, first_part: str = "samples", second_part: str = "rl") -> str:
    """Table of rates before and after reinforcement learning."""
    if not {first_part, second_part} <= found.keys():
        return missing(f"{first_part} {second_part}")
    before, after = found[first_part]["found"]["rates"], found[second_part]["found"]["rates"]
    rows = []
    for name, label in RATES.items():
        first, second = rate_of(before.get(name)), rate_of(after.get(name))
        if first is None or second is None or not (first.denominator and second.denominator):
            continue
        change = difference(second, first)
        points = f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        rows.append([label, str(first), str(second), f"**{points}**" if change.is_clear else points])
    return markdown(["", "before", "after", "points, 95 % (bold: excludes 0)"], rows)
