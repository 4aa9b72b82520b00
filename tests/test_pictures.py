"""Pictures and charts: what is drawn, and that it is written whole or not at all."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.draw import cells as pictures
from latentite.draw import charts

pytestmark = pytest.mark.pictures


def test_border_atoms_are_drawn_on_every_face_edge_and_corner(rocksalt: CrystalArrays) -> None:
    atoms, coords = pictures._with_border_copies(rocksalt.frac_coords)
    # The conventional rocksalt cell as textbooks draw it: 14 sites of one kind, 13 of the other.
    assert sorted(np.unique(rocksalt.atomic_numbers[atoms], return_counts=True)[1].tolist()) == [13, 14]
    assert coords.min() >= 0.0
    assert coords.max() <= 1.0


def test_equal_crystals_in_other_orientations_give_the_same_scene(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    scenes = [pictures._scene(CrystalArrays(numbers, coords, cell)) for cell in (lattice, lattice @ rotation)]
    np.testing.assert_allclose(scenes[0].points, scenes[1].points, atol=1e-6)


def test_reconstruction_is_drawn_on_the_side_of_the_border_where_its_original_is(
    rocksalt: CrystalArrays,
) -> None:
    shifted = (rocksalt.frac_coords - 0.001) % 1.0  # atoms at 0 are now at 0.999
    original = pictures._scene(rocksalt)
    rebuilt = pictures._scene(replace(rocksalt, frac_coords=shifted), beside=rocksalt.frac_coords)
    assert np.array_equal(rebuilt.numbers, original.numbers)
    assert np.abs(rebuilt.points - original.points).max() < 0.02  # Å on the paper: 0.001 of a cell of 5.64 Å


def test_each_crystal_leaves_ink_in_its_own_panel(tmp_path: Path, crystals: CrystalBatch) -> None:
    path = pictures.draw_crystals(
        crystals.select(torch.arange(4)), tmp_path / "deep" / "grid.png", columns=2, dpi=50
    )
    image = imread(path)[..., :3]
    height, width = image.shape[:2]
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert (image[rows, columns].min(axis=-1) < 0.9).mean() > 0.02
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_pairs_with_a_reconstruction_that_is_no_cell_are_still_drawn(
    tmp_path: Path, crystals: CrystalBatch
) -> None:
    originals = crystals.select(torch.arange(2))
    broken = replace(originals, frac_coords=originals.frac_coords * float("nan"))
    assert imread(pictures.draw_pairs(originals, broken, tmp_path / "pairs.png", dpi=40)).std() > 0


def test_counts_that_disagree_are_refused_and_leave_no_file(tmp_path: Path, crystals: CrystalBatch) -> None:
    with pytest.raises(ValueError, match=r"one per crystal \(16\), got 1"):
        pictures.draw_crystals(crystals, tmp_path / "x.png", titles=["only one"])
    with pytest.raises(ValueError, match="got 16 and 2"):
        pictures.draw_pairs(crystals, crystals.select(torch.arange(2)), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_formula_gets_subscripts() -> None:
    assert pictures.pretty("Co(RhS2)12") == "Co(RhS$_{2}$)$_{12}$"


def test_metrics_are_read_at_the_steps_at_which_they_were_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train/loss,val/match_rate_loose\n0,1,2.5,\n0,2,1.5,\n0,2,,0.25\n", encoding="utf-8"
    )
    found = charts.read_metrics(path)
    assert [c.tolist() for c in found["train/loss"]] == [[1.0, 2.0], [2.5, 1.5]]
    assert [c.tolist() for c in found["val/match_rate_loose"]] == [[2.0], [0.25]]
    assert charts.draw_training_curve(path, tmp_path / "curve.png", dpi=40).stat().st_size > 1000
    with pytest.raises(ValueError, match="train/loss"):
        charts.draw_training_curve(path, tmp_path / "curve.png", losses=["absent"], rates=[])


def test_rewards_stand_on_linear_axes_with_every_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logarithmic axis hides rewards that turn negative, as they may."""
    rows = [
        f"{i},{i - 20},{i},{i / 10},{'nan' if i == 3 else 0.5},0.1,{i if i % 5 == 0 else ''}"
        for i in range(50)
    ]
    head = "epoch,train/reward,step,reward/density/raw,reward/my_own/raw,reward/unusable,val/reward"
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    drawn = []
    monkeypatch.setattr(charts, "save_figure", lambda figure, path, dpi: drawn.append(figure) or path)
    charts.draw_reward_curve(path, tmp_path / "reward.png", units={"density": "g/cm$^3$"})
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == [
        "reward (weighted sum)",
        "density (raw mean)",
        "my own (raw mean)",
        "unusable crystals",
    ]
    assert {axis.get_yscale() for axis in axes} == {"linear"}
    assert [axis.get_ylabel() for axis in axes] == ["", "g/cm$^3$", "", "share"]
    mean = axes[0].lines[1]  # over 5 rollouts: -20, ..., -16 first
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == pytest.approx((2.0, -18.0))
    assert np.isfinite(axes[2].lines[1].get_ydata()).all()
    assert axes[0].lines[2].get_xdata().tolist() == list(range(0, 50, 5))


def test_rewards_of_another_stage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n0,1.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must be of a run of reinforcement learning"):
        charts.draw_reward_curve(path, tmp_path / "reward.png")
