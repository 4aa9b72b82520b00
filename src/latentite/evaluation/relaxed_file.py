"""`relaxed.extxyz`: the structures that a relaxation left, with energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentite.base.files import replacing
from latentite.energy.relax import RelaxStatus
from latentite.evaluation.energies import Energies


def write_relaxed(path: str | Path, energies: Energies, ids: Sequence[str]) -> None:
    """All structures in order, one frame each, atomically; `ase.io.read(path, index=":")` reads them.

    The info of a frame has `id`, `status`, `steps`, `converged` and `potential`, and `reason` for a failure. A
    failure keeps the last geometry that the potential could judge, with that one's energy, forces and stress;
    one that it never judged stands as it came, without numbers.

    Args:
        path: of the file.
        energies: of `measure_energies`.
        ids: of each structure.

    Raises:
        ValueError: when there is not one id per structure.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.extxyz import write_extxyz

    relaxed = energies.relaxed
    if len(ids) != len(relaxed.crystals):
        raise ValueError(f"one id per structure is needed, got {len(ids)} for {len(relaxed.crystals)}")
    forces = relaxed.forces.split(relaxed.crystals.num_atoms.tolist())
    is_judged = relaxed.is_judged.tolist()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for k, atoms in enumerate(relaxed.crystals.to_atoms()):
            status, reason = relaxed.status[k], relaxed.reasons[k]
            atoms.info = {
                "id": ids[k],
                "status": status.value,
                "steps": int(relaxed.steps[k]),
                "converged": status is RelaxStatus.CONVERGED,
                "potential": energies.card.name,
            }
            if reason is not None:
                atoms.info["reason"] = " ".join(reason.replace('"', "'").split())
            if is_judged[k]:
                atoms.calc = SinglePointCalculator(
                    atoms,
                    energy=float(relaxed.energy[k]),
                    forces=forces[k].numpy(),
                    stress=relaxed.stress[k].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],  # as Voigt
                )
            write_extxyz(file, [atoms])
