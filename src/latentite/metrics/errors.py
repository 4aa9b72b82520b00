"""Errors of networks: of decoded crystals against those that were encoded, and of predicted properties against labels.

Numbers of decoded crystals that compare atom by atom trust the order of atoms (the decoder keeps it); the match rate
trusts nothing: pymatgen's `StructureMatcher` (Ong et al. 2013) tries cells, origins and orders itself. A common shift
of all atoms is no error of a crystal, so the coordinate error is given both as it is and with the best common shift
removed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENTS
from latentite.match.reduced import LOOSE, STRICT, MatcherSettings, pair_rms
from latentite.nn.segment import segment_mean, segment_sum

if TYPE_CHECKING:
    from pymatgen.core import Structure


def torus_mean(
    difference: Float[Tensor, "atom 3"], crystal_index: Tensor, num_crystals: int
) -> Float[Tensor, "crystal 3"]:
    """Mean of wrapped differences per crystal on the torus (the circular mean, Mardia & Jupp 2000, sec. 2.2)."""
    angle = 2 * math.pi * difference
    sine = segment_sum(angle.sin(), crystal_index, num_crystals)
    cosine = segment_sum(angle.cos(), crystal_index, num_crystals)
    return torch.atan2(sine, cosine) / (2 * math.pi)


def atom_errors(original: CrystalBatch, rebuilt: CrystalBatch) -> dict[str, Float[Tensor, " crystal"]]:
    """Errors that compare atom by atom, one number per crystal.

    Returns:
        `element_accuracy` (0 to 1), `composition_correct` (0 or 1, the multiset of elements),
        `coordinate_rmse` (Å, wrapped, best common shift removed), `coordinate_rmse_absolute` (Å, wrapped,
        as it is), `length_error` (Å, mean absolute over a, b, c), `angle_error` (degrees, likewise).
    """
    index, count = original.crystal_index, len(original)
    correct = (original.atomic_numbers == rebuilt.atomic_numbers).float()
    difference = lat.wrapped_difference(rebuilt.frac_coords, original.frac_coords)
    shifted = lat.wrapped_difference(difference, torus_mean(difference, index, count)[index])

    def rmse(frac: Tensor) -> Tensor:
        cart = torch.einsum("ai,aij->aj", frac, original.lattice[index])
        return segment_mean(cart.square().sum(dim=-1), index, count).sqrt()

    lengths, angles = lat.parameters_from_lattice(original.lattice)
    rebuilt_lengths, rebuilt_angles = lat.parameters_from_lattice(rebuilt.lattice)
    counts = [
        segment_sum(torch.nn.functional.one_hot(b.atomic_numbers, NUM_ELEMENTS + 1).float(), index, count)
        for b in (original, rebuilt)
    ]
    return {
        "element_accuracy": segment_mean(correct, index, count),
        "composition_correct": (counts[0] == counts[1]).all(dim=-1).float(),
        "coordinate_rmse": rmse(shifted),
        "coordinate_rmse_absolute": rmse(difference),
        "length_error": (lengths - rebuilt_lengths).abs().mean(dim=-1),
        "angle_error": (angles - rebuilt_angles).abs().mean(dim=-1),
    }


def match_rmsd(
    originals: list[Structure], rebuilt: list[Structure], settings: MatcherSettings
) -> Float[np.ndarray, " crystal"]:
    """Normalised RMS distance of each matched pair, in units of (volume / atoms)^(1/3); NaN where unmatched.

    The original is the first argument (`StructureMatcher.fit` is not symmetric). A decoded cell that is flat
    or holds no finite number matches nothing.
    """
    pairs = zip(originals, rebuilt, strict=True)
    distances = [pair_rms(one, other, settings) for one, other in pairs]
    return np.array([np.nan if one is None else one for one in distances], dtype=float)


def reconstruction_table(
    original: CrystalBatch, rebuilt: CrystalBatch, *, matchers: tuple[MatcherSettings, ...] = (LOOSE, STRICT)
) -> dict[str, Float[np.ndarray, " crystal"]]:
    """Every metric per crystal: `atom_errors` and, for each matcher, `rmsd_<name>` (NaN = no match)."""
    table = {
        name: values.detach().cpu().double().numpy()
        for name, values in atom_errors(original, rebuilt).items()
    }
    if matchers:
        originals, others = original.to_structures(), rebuilt.to_structures()
        for settings in matchers:
            table[f"rmsd_{settings.name}"] = match_rmsd(originals, others, settings)
    return table


def summarise(table: dict[str, Float[np.ndarray, " crystal"]]) -> dict[str, float]:
    """Means over crystals; for each matcher `match_rate_<name>` and `rmsd_<name>` (over matched pairs only)."""
    summary: dict[str, float] = {}
    for name, values in table.items():
        if name.startswith("rmsd_"):
            matched = np.isfinite(values)
            summary[name.replace("rmsd_", "match_rate_")] = float(matched.mean()) if len(values) else math.nan
            summary[name] = float(values[matched].mean()) if matched.any() else math.nan
        else:
            summary[name] = float(values.mean()) if len(values) else math.nan
    return summary


def regression_metrics(
    labels: Float[np.ndarray, " crystal"], values: Float[np.ndarray, " crystal"]
) -> dict[str, float]:
    """Mean absolute error, root mean square error and coefficient of determination.

    Missing labels (NaN) are left out. The coefficient is NaN where the labels do not vary.

    Returns:
        `mae` and `rmse` in the unit of the labels, `r2`; empty without any label.
    """
    known = ~np.isnan(labels)
    if not known.any():
        return {}
    wanted = labels[known].astype(float)
    error = values[known].astype(float) - wanted
    spread = float(np.square(wanted - wanted.mean()).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": math.sqrt(float(np.square(error).mean())),
        "r2": 1.0 - float(np.square(error).sum()) / spread if spread > 0 else math.nan,
    }


def classification_metrics(
    labels: Float[np.ndarray, " crystal"], codes: Float[np.ndarray, " crystal"]
) -> dict[str, float]:
    """Share of the labelled crystals (not NaN) whose class is the predicted one; empty without any label."""
    known = ~np.isnan(labels)
    return {"accuracy": float((labels[known] == codes[known]).mean())} if known.any() else {}
