"""What a policy would find to exploit does not pay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from latentite.base.plain import from_plain
from latentite.config import compose
from latentite.crystal import CrystalBatch
from latentite.energy.references import Stability
from latentite.rewards.combine import RewardConfig, Rewards
from latentite.rewards.energy import EnergyAboveHull

VOLUME = {
    "_target_": "latentite.rewards.properties.PropertyReward",
    "property": "volume_per_atom",
    "maximise": True,
}


def row(above: float | None, competing: int = 3) -> Stability:
    return Stability(formation_energy=-1.0, energy_above_hull=above, num_competing=competing, reason=None)


@pytest.mark.parametrize(
    ("one", "elements", "wanted"),
    [
        (row(0.25), 2, -0.25),
        (row(-0.05), 2, 0.0),
        (row(7.0), 2, -1.0),
        (row(-2.0), 2, math.nan),
        (row(None), 2, math.nan),
        (row(0.0, competing=0), 2, math.nan),
        (row(0.0, competing=0), 1, 0.0),
    ],
)
def test_energies_pay_between_the_hull_and_the_worst_only(
    one: Stability, elements: int, wanted: float
) -> None:
    """Deep below the hull, unknown, or on a hull without competitors: nothing."""
    found = EnergyAboveHull().reward(one, elements)
    assert found == wanted or (math.isnan(found) and math.isnan(wanted))


def test_wrong_settings_of_the_energy_are_refused() -> None:
    with pytest.raises(ValueError, match="worst must be above 0 eV/atom, got 0"):
        EnergyAboveHull(worst=0.0)
    with pytest.raises(ValueError, match="min_competing must be 0 or more, got -1"):
        EnergyAboveHull(min_competing=-1)


def test_copies_keep_their_share_whatever_their_order(crystals: CrystalBatch) -> None:
    """Crystals 0 and 4 are NaCl in two cells."""
    config = {"components": {"volume": VOLUME}, "duplicate_discount": 0.25}
    rewards = Rewards.build(from_plain(RewardConfig, config))
    plain = Rewards.build(from_plain(RewardConfig, {"components": {"volume": VOLUME}}))(crystals).total
    found = rewards(crystals).total
    lowest = plain.min()
    wanted = plain.clone()
    wanted[[0, 4]] = lowest + 0.25 * (plain[[0, 4]] - lowest)
    torch.testing.assert_close(found, wanted)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(rewards(crystals.select(order)).total, wanted[order])
    with pytest.raises(ValueError, match=r"duplicate_discount must lie in \[0, 1\] or be null, got 2"):
        RewardConfig(components={"volume": VOLUME}, duplicate_discount=2.0)


def salt(cation: str, anion: str, a: float) -> Structure:
    sites = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    return Structure(Lattice.from_parameters(a, a, a, 60, 60, 60), [cation, anion], sites)


PLANTED_ENERGIES = """
import torch

def energies(structures, batch):
    return torch.tensor([0.0 if "Fe" in structure.composition else -1.0 for structure in structures])
"""


@pytest.mark.parametrize("with_energies", [False, True])
def test_a_policy_of_one_element_earns_less_than_a_base_under_the_dng_reward(
    with_energies: bool, tmp_path: Path
) -> None:
    """Planted: forty cells of iron, all a little different, beside forty salts.

    Energies, if any, are those that favour iron most: on the hull, and all salts as bad as the reward can tell, which
    is what raw samples of a base are (a median of 1.6 eV/atom above hull).
    """
    cations, anions = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Zn"), ("F", "Cl", "O", "S", "Br")
    base = [salt(c, a, 3.0 + 0.1 * i) for i, c in enumerate(cations) for a in anions]
    iron = []
    for number in range(40):
        deviation = np.random.default_rng(number).normal(scale=0.01, size=2)
        iron.append(Structure(Lattice.cubic(2.87 + deviation[0]), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    known = [
        salt(c, a, 4.5) for c in ("Mg", "Ba", "Cs", "Cd", "Mn", "Na") for a in ("O", "Se", "I", "F", "Cl")
    ]
    values = compose("train_rl", ["experiment=mp_20/rl_dng"])["rl_module"]["reward_fn"]
    energy = values["components"].pop("energy")
    if with_energies:
        path = tmp_path / "planted.py"
        path.write_text(PLANTED_ENERGIES)
        options = {key: energy[key] for key in ("weight", "normalize", "floor", "cap")}
        values["components"]["energy"] = {"_target_": f"{path}:energies", **options}
    rewards = Rewards.build(from_plain(RewardConfig, values))
    rewards.set_reference(CrystalBatch.from_structures(known))
    total = rewards(CrystalBatch.from_structures([*base, *iron])).total
    assert total[40:].mean() < total[:40].mean() - 0.5
    assert total[40:].max() < total[:40].mean()
