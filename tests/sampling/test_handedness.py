"""One crystal in every file: a cell that is decoded left-handed is no crystal, and none is written as its mirror image.

A negative predicted length gave a left-handed cell. The extxyz had its atoms as they were, the CIF, which has
lengths and angles only, their mirror image, and both counted as the same sample.
"""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from test_run_window import ORIGIN, run
from tiny_checkpoint import fake_draw, write_checkpoint

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation.reconstruct import _right_handed
from latentite.generation import generate
from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Advance, Drawn
from latentite.lattice import lattice_from_parameters
from latentite.sampling.folder import Format
from latentite.sampling.run import run_to_folder
from latentite.sampling.window import RefusalKind, geometry_refusals
from latentite.sampling.writers import cif_text, reads_back

HELIX = np.array([[0.1, 0.2, 0.05], [0.45, 0.15, 0.3], [0.7, 0.65, 0.55], [0.2, 0.8, 0.9]])
"""Four atoms that are not their mirror image, in any cell without symmetry."""
NUMBERS = np.array([3, 8, 15, 26])


def chirality(positions: np.ndarray) -> float:
    """Signed volume of the first four atoms: its sign is that of a hand."""
    return float(np.linalg.det(positions[1:4] - positions[0]))


def positions_in(text: str) -> np.ndarray:
    """Of the four atoms in a CIF as pymatgen reads it, in the order of `NUMBERS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Structure.from_str(text, fmt="cif")
    coords = {site.specie.Z: site.frac_coords % 1.0 for site in found}
    return np.array([coords[z] for z in NUMBERS.tolist()]) @ found.lattice.matrix


def triclinic(lengths: tuple[float, float, float]) -> np.ndarray:
    angles = torch.tensor([80.0, 95.0, 70.0], dtype=torch.float64)
    return lattice_from_parameters(torch.tensor(lengths, dtype=torch.float64), angles).numpy()


def chiral_draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
    """Crystals of four atoms; those whose noise says so have a length below zero."""
    first = fake_draw()(jobs, batch_size, advance).crystals
    is_negative = first.lattice[:, 0, 0] < 1.0  # the ones that `fake_draw` collapses
    arrays = [
        CrystalArrays(NUMBERS, HELIX, triclinic((-5.1 if negative else 5.1, 6.2, 7.3)))
        for negative in is_negative.tolist()
    ]
    return Drawn(crystals=CrystalBatch.from_arrays(arrays))


def same_crystals_in_all_files(folder: Path) -> int:
    """Compare CIF, extxyz and JSON of every crystal, mirror images told apart; gives how many there are."""
    frames = ase.io.read(folder / "structures.extxyz", index=":")
    lines = [json.loads(line) for line in (folder / "structures.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((folder / "samples.csv").open(newline="")))
    for row, frame, line in zip(rows, frames, lines, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cif = Structure.from_file(folder / row["file"])
        others = (Structure.from_dict(line["structure"]), Structure.from_ase_atoms(frame))
        for other in others:
            # Equal fractional coordinates in two right-handed cells of equal metric: one is the other, rotated.
            for structure in (cif, other):
                assert np.linalg.det(structure.lattice.matrix) > 0.0
            metrics = [s.lattice.matrix @ s.lattice.matrix.T for s in (cif, other)]
            assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
            ours = cif.get_sorted_structure(
                key=lambda site: (site.specie.Z, *np.round(site.frac_coords % 1, 4))
            )
            theirs = other.get_sorted_structure(
                key=lambda site: (site.specie.Z, *np.round(site.frac_coords % 1, 4))
            )
            difference = ours.frac_coords - theirs.frac_coords
            assert np.abs(difference - np.round(difference)).max() < 2e-4
    return len(rows)


def test_cif_extxyz_and_json_of_every_written_crystal_are_the_same_crystal_and_no_mirror_image(
    tmp_path: Path,
) -> None:
    what = replace(
        run(chiral_draw, total=80),
        plan=lambda indices: Jobs.plain(torch.full((len(indices),), 4), list(indices)),
    )
    counts = run_to_folder(what, tmp_path, origin=ORIGIN, formats=list(Format))
    assert same_crystals_in_all_files(tmp_path) == counts.written == 80
    rejected = list(csv.DictReader((tmp_path / "rejected.csv").open(newline="")))
    assert counts.replaced == {"left_handed_cell": len(rejected)}
    assert len(rejected) > 5
    assert {row["reason"] for row in rejected} == {
        "the cell is left-handed: a length is below zero, or an angle outside of 0 to 180 degrees"
    }
    wanted = np.sign(chirality(HELIX @ triclinic((5.1, 6.2, 7.3))))
    for path in (tmp_path / "cifs").iterdir():
        assert np.sign(chirality(positions_in(path.read_text()))) == wanted


def test_a_model_that_predicts_a_negative_length_gives_counted_failures(tmp_path: Path) -> None:
    """From a checkpoint on, with the decoder's own head turned round."""
    path = write_checkpoint(tmp_path / "last.ckpt")
    assert generate(
        path, num_samples=8, steps=2, format="cif,extxyz,json", out=tmp_path / "good"
    ).counts.written
    assert same_crystals_in_all_files(tmp_path / "good") == 8
    content = torch.load(path, weights_only=False)
    (name,) = [name for name in content["state_dict"] if name.endswith("lattice_head.weight")]
    content["state_dict"][name][0] *= -1.0
    torch.save(content, path)
    counts = generate(path, num_samples=8, steps=2, max_attempts=2, out=tmp_path / "bad").counts
    assert (counts.written, counts.failed, counts.done) == (0, 8, 8)
    assert counts.rejected["left_handed_cell"] > 8
    assert not (tmp_path / "bad" / "cifs").exists()


@given(
    lengths=st.tuples(*[st.sampled_from([-6.0, -4.5, 4.0, 5.5, 7.0])] * 3),
    angles=st.tuples(*[st.floats(-170.0, 350.0)] * 3),
)
def test_no_cell_whose_cif_would_be_its_mirror_image_is_usable(
    lengths: tuple[float, float, float], angles: tuple[float, float, float]
) -> None:
    """Whatever a decoder says, lengths below zero and angles that no cell has: what is left agrees with its CIF."""
    cell = lattice_from_parameters(torch.tensor(lengths).double(), torch.tensor(angles).double()).numpy()
    batch = CrystalBatch.from_arrays([CrystalArrays(NUMBERS, HELIX, cell)])
    [refusal] = geometry_refusals(batch)
    arrays = batch.to_arrays()[0]
    text = cif_text(arrays, "LiFePO") if np.isfinite(cell).all() else ""
    if refusal is None and reads_back(text, arrays) is None:
        written = (arrays.frac_coords % 1.0) @ arrays.lattice
        assert np.sign(chirality(positions_in(text))) == np.sign(chirality(written))
    elif refusal is not None and refusal.kind is RefusalKind.LEFT_HANDED_CELL:
        assert np.linalg.det(arrays.lattice) < 0.0


def test_a_writer_refuses_a_left_handed_cell_by_itself() -> None:
    crystal = CrystalArrays(NUMBERS, HELIX, triclinic((-5.1, 6.2, 7.3)))
    reason = reads_back(cif_text(crystal, "LiFePO"), crystal)
    assert (
        reason
        == "the cell is left-handed: the CIF, which has lengths and angles only, holds its mirror image"
    )


def test_a_rebuilt_crystal_in_a_left_handed_cell_is_written_in_a_right_handed_one() -> None:
    """`latentite vae reconstruct` shows what was decoded, so there it is kept: the same crystal, inverted cell and
    coordinates."""
    left = Structure(Lattice(triclinic((-5.1, 6.2, 7.3))), NUMBERS, HELIX)
    right = _right_handed(left)
    assert np.linalg.det(right.lattice.matrix) > 0.0
    assert right.cart_coords == pytest.approx(left.cart_coords)
    wrapped = (right.frac_coords % 1.0) @ right.lattice.matrix
    assert np.sign(chirality(positions_in(right.to(fmt="cif")))) == np.sign(chirality(wrapped))
    assert _right_handed(right) is right
