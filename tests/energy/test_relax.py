"""Relaxation: the minima that ASE finds, and a reason for each crystal that finds none."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import pytest
import torch
from lennard_jones import LennardJones
from small_crystals import argon, fcc, packed

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.potential import EnergyForces, PotentialCard
from latentite.energy.relax import RelaxStatus, relax
from latentite.energy.settings import RelaxCell, RelaxSettings

TIGHT = RelaxSettings(fmax=1e-3, smax=1e-4, max_steps=1000)


def ase_energies(crystals: CrystalBatch) -> list[float]:
    """eV per cell at the minimum that ASE's FIRE finds."""
    from ase.calculators.lj import LennardJones as Calculator
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    energies = []
    for atoms in crystals.to_atoms():
        atoms.calc = Calculator(sigma=2.5, epsilon=0.2, rc=6.0)
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=1000)
        energies.append(atoms.get_potential_energy())
    return energies


def test_minima_are_those_of_ase() -> None:
    crystals = packed([fcc(18, 4.1, rattle=0.1), fcc(18, 3.7, rattle=0.05, seed=1)])
    relaxed = relax(LennardJones(), crystals, TIGHT)
    assert relaxed.status == (RelaxStatus.CONVERGED,) * 2
    assert relaxed.reasons == (None, None)
    np.testing.assert_allclose(relaxed.energy / 4, np.array(ase_energies(crystals)) / 4, atol=1e-3)
    assert (relaxed.energy < relaxed.start_energy).all()
    assert relaxed.forces.norm(dim=1).max() < 1e-3
    assert relaxed.stress.abs().max() < 1e-4


def test_results_stand_in_the_order_of_the_input_whatever_shares_the_batch() -> None:
    crystals = CrystalBatch.concatenate([argon(), packed([fcc(10, 3.9, rattle=0.05, seed=3)])])
    together = relax(LennardJones(), crystals, replace(TIGHT, max_steps=60))
    ended: list[int] = []
    one_by_one = relax(
        LennardJones(), crystals, replace(TIGHT, max_steps=60, max_atoms=1), advance=ended.append
    )
    assert ended == [0, 1, 2, 3]
    assert together.status == one_by_one.status
    assert together.steps.tolist() == one_by_one.steps.tolist()
    torch.testing.assert_close(together.energy, one_by_one.energy, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(together.crystals.lattice, one_by_one.crystals.lattice, rtol=1e-5, atol=1e-6)


def test_a_fixed_cell_stays() -> None:
    crystals = packed([fcc(18, 4.1, rattle=0.1)])
    relaxed = relax(LennardJones(), crystals, RelaxSettings(cell=RelaxCell.FIXED, fmax=1e-3))
    assert relaxed.status == (RelaxStatus.CONVERGED,)
    assert torch.equal(relaxed.crystals.lattice, crystals.lattice)
    assert not torch.equal(relaxed.crystals.frac_coords, crystals.frac_coords)


def test_without_relaxation_each_crystal_is_evaluated_once_as_it_is() -> None:
    crystals = packed([fcc(18, 4.1, rattle=0.1), fcc(79, 4.1), fcc(18, 3.9)])
    result = relax(LennardJones(), crystals, RelaxSettings(cell=RelaxCell.NONE))
    single = RelaxStatus.SINGLE_POINT
    assert result.status == (single, RelaxStatus.REFUSED, single)
    assert result.steps.tolist() == [1, 0, 1]
    assert torch.equal(result.crystals.frac_coords, crystals.frac_coords)
    assert torch.equal(result.crystals.lattice, crystals.lattice)
    known = torch.tensor([0, 2])
    expected = LennardJones().compute(crystals.select(known))
    assert torch.equal(result.energy[known], expected.energy)
    assert torch.equal(result.start_energy[known], expected.energy)
    assert result.is_judged.tolist() == [True, False, True]
    assert result.max_force[0] == expected.forces[:4].norm(dim=1).max()
    assert result.max_force[1].isnan()


def test_energies_alone_are_those_of_the_whole_evaluation_and_leave_the_rest_unknown() -> None:
    crystals = packed([fcc(18, 4.1, rattle=0.1), fcc(79, 4.1), fcc(18, 3.9)])
    whole = relax(LennardJones(), crystals, RelaxSettings(cell=RelaxCell.NONE))
    alone = relax(LennardJones(), crystals, RelaxSettings(cell=RelaxCell.NONE, energy_only=True))
    torch.testing.assert_close(alone.energy, whole.energy, equal_nan=True)
    assert (alone.status, alone.reasons) == (whole.status, whole.reasons)
    assert alone.forces.isnan().all()
    assert alone.stress.isnan().all()
    with pytest.raises(ValueError, match="energy_only must go with cell=none"):
        RelaxSettings(energy_only=True)


def test_the_numbers_belong_to_the_geometry() -> None:
    for steps in (7, 500):
        relaxed = relax(LennardJones(), argon(), RelaxSettings(max_steps=steps))
        again = LennardJones().compute(relaxed.crystals)
        torch.testing.assert_close(again.energy, relaxed.energy)
        torch.testing.assert_close(again.forces, relaxed.forces)
        torch.testing.assert_close(again.stress, relaxed.stress)


@dataclass(frozen=True)
class Moody:
    """The analytic potential; some elements meet with a fate of their own."""

    @property
    def card(self) -> PotentialCard:
        return LennardJones().card

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        result = LennardJones().compute(crystals)
        kind = crystals.atomic_numbers[crystals.first_atom]
        of_atom = crystals.atomic_numbers
        blow_up = 50.0 * torch.eye(3, dtype=result.stress.dtype)
        stress = torch.where((kind == 10)[:, None, None], -blow_up, result.stress)
        stress = torch.where((kind == 29)[:, None, None], 0.01 * torch.ones_like(stress), stress)
        energy = torch.where(kind == 29, torch.zeros_like(result.energy), result.energy)
        forces = torch.where((of_atom == 36)[:, None], torch.nan, result.forces)
        failures = {int(k): "no reason given" for k in (kind == 36).nonzero().flatten()}
        return EnergyForces(energy=energy, forces=forces, stress=stress, failures=failures)


def test_each_failure_has_its_reason_and_stops_nobody_else() -> None:
    numbers, coords, cell = astuple(fcc(18, 4.1))
    crystals = packed(
        [
            fcc(10, 4.0),  # its stress blows it up
            fcc(18, 4.1, rattle=0.05),
            fcc(36, 4.0),  # the potential raises
            CrystalArrays(numbers, 0 * coords, cell),  # all atoms on one site
            fcc(29, 4.0),  # always pushed, never better
            fcc(18, 4.0, rattle=0.05, seed=5),
        ]
    )
    relaxed = relax(Moody(), crystals, RelaxSettings(patience=20, max_volume_ratio=2.0))
    assert relaxed.status == (
        RelaxStatus.EXPLODED,
        RelaxStatus.CONVERGED,
        RelaxStatus.POTENTIAL_FAILED,
        RelaxStatus.REFUSED,
        RelaxStatus.STALLED,
        RelaxStatus.CONVERGED,
    )
    words = ["its volume became", None, "no reason given", "closer than", "no progress in the last 20", None]
    for expected, reason in zip(words, relaxed.reasons, strict=True):
        assert (reason is None) == (expected is None)
        assert expected is None or expected in str(reason)
    assert relaxed.energy.isfinite().tolist() == [True, True, False, False, True, True]
    assert relaxed.steps[3] == 0
    alone = relax(Moody(), crystals.select(torch.tensor([1, 5])))
    torch.testing.assert_close(relaxed.energy[[1, 5]], alone.energy)


def test_a_budget_of_steps_is_kept() -> None:
    relaxed = relax(LennardJones(), argon(), replace(TIGHT, max_steps=4))
    assert relaxed.steps.tolist() == [4, 4, 4]
    assert relaxed.status == (RelaxStatus.STEP_LIMIT,) * 3
    assert all("not converged after 4 steps" in str(reason) for reason in relaxed.reasons)


def test_no_crystals_give_no_results() -> None:
    relaxed = relax(LennardJones(), CrystalBatch.from_arrays([]))
    assert relaxed.status == ()


@pytest.mark.parametrize(
    "wrong", [{"cell": "volume"}, {"fmax": 0.0}, {"max_steps": 0}, {"max_volume_ratio": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        RelaxSettings(**wrong)
