"""Pictures of crystals: unit cells drawn with matplotlib, alone or an original beside its reconstruction.

The drawing is our own light projection: balls shaded by concentric discs, two-coloured sticks for short unlike
contacts, the cell's edges, and copies of the atoms that lie on its border, all painted from back to front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.draw.charts import EDGE, INK, new_figure, save_figure
from latentite.elements import symbol_of
from latentite.formulas import reduced_formulas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch
    from pymatgen.core import Structure

Crystals = CrystalBatch | Sequence["Structure"]
"""Anything that can be drawn."""

_TURN, _TILT = math.radians(-24.0), math.radians(13.0)
"""Viewing direction: turned about the vertical axis, then tilted towards the viewer."""
_BORDER = 0.03
"""Atoms closer than this (fractional) to a face of the cell are repeated on the opposite face."""
_LIGHT = np.array([-0.30, 0.36])
"""Place of the highlight of a ball, in units of its radius."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """One projected crystal: everything in Å on the paper, depth growing towards the viewer."""

    numbers: np.ndarray
    """[atom], border copies included."""
    points: np.ndarray
    """[atom 3]: right, up, depth."""
    corners: np.ndarray
    """[8 3], corner i at the binary digits of i."""


def draw_crystals(
    crystals: Crystals,
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    heading: str | None = None,
    panel_inches: float = 2.3,
    dpi: int = 150,
) -> Path:
    """Write a grid of unit cells as PNG.

    Args:
        crystals: what to draw, one panel each.
        path: the picture; its folder is made.
        titles: one line above each panel; by default the reduced formula.
        columns: panels per row; by default about the square root of their number, at most six.
        heading: one line above the grid.
        panel_inches: side of a panel.
        dpi: pixels per inch.

    Raises:
        ValueError: without any crystal, or with another number of titles.
    """
    batch = _as_batch(crystals)
    if len(batch) == 0:
        raise ValueError("draw_crystals needs at least one crystal, got none")
    names = list(titles) if titles is not None else [pretty(name) for name in reduced_formulas(batch)]
    if len(names) != len(batch):
        raise ValueError(f"titles must be one per crystal ({len(batch)}), got {len(names)}")
    if columns is None:
        columns = min(6, math.ceil(math.sqrt(len(batch))))
    rows = math.ceil(len(batch) / columns)
    figure = new_figure(columns * panel_inches, rows * (panel_inches + 0.42), heading)
    axes = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    scenes = [_scene(crystal) for crystal in batch.to_arrays()]
    for number, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if number < len(scenes):
            _draw(axis, scenes[number], half_width=_half_width([scenes[number]]))
            axis.set_title(names[number], fontsize=10, color=INK, pad=3)
    return save_figure(figure, path, dpi)


def draw_pairs(
    originals: Crystals,
    reconstructions: Crystals,
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    columns: int = 3,
    heading: str | None = None,
    panel_inches: float = 2.0,
    dpi: int = 150,
) -> Path:
    """Write originals with their reconstructions at their right, same view and same scale, as PNG.

    Args:
        originals: the left picture of each pair.
        reconstructions: the right ones, in the same order.
        path: the picture; its folder is made.
        titles: one line above each original; by default its reduced formula.
        notes: one line above each reconstruction; by default its reduced formula.
        columns: pairs per row.
        heading: one line above the grid.
        panel_inches: side of one panel.
        dpi: pixels per inch.

    Raises:
        ValueError: without any crystal, or when the numbers of things differ.
    """
    left, right = _as_batch(originals), _as_batch(reconstructions)
    if len(left) == 0 or len(left) != len(right):
        raise ValueError(
            "originals and reconstructions must be equally many and at least one, "
            f"got {len(left)} and {len(right)}"
        )
    left_titles = list(titles) if titles is not None else [pretty(name) for name in reduced_formulas(left)]
    right_titles = list(notes) if notes is not None else [pretty(name) for name in reduced_formulas(right)]
    if not len(left_titles) == len(right_titles) == len(left):
        raise ValueError(f"titles and notes must be one per pair ({len(left)})")
    columns = min(columns, len(left))
    rows = math.ceil(len(left) / columns)
    figure = new_figure(2 * columns * panel_inches, rows * (panel_inches + 0.45), heading)
    grid = figure.add_gridspec(rows, columns, wspace=0.02, hspace=0.02)
    pairs = zip(left.to_arrays(), right.to_arrays(), strict=True)
    for number, (original, reconstruction) in enumerate(pairs):
        frame = figure.add_subfigure(grid[number // columns, number % columns])
        frame.set_facecolor("#f5f6f8")
        frame.text(0.5, 0.5, "→", ha="center", va="center", fontsize=13, color=EDGE)
        axes = frame.subplots(1, 2)
        scenes = [_scene(original), _scene(reconstruction, beside=original.frac_coords)]
        half_width = _half_width(scenes)
        for axis, scene, name in zip(axes, scenes, (left_titles[number], right_titles[number]), strict=True):
            axis.set_axis_off()
            _draw(axis, scene, half_width=half_width)
            axis.set_title(name, fontsize=8.5, color=INK, pad=3)
    return save_figure(figure, path, dpi)


def pretty(formula: str) -> str:
    """A formula with subscripts, for matplotlib."""
    return re.sub(r"(\d+)", r"$_{\1}$", formula)


def _as_batch(crystals: Crystals) -> CrystalBatch:
    return crystals if isinstance(crystals, CrystalBatch) else CrystalBatch.from_structures(crystals)


def _view() -> np.ndarray:
    """Rotation from (x, y, z) with z upwards to (right, up, towards the viewer)."""
    turn = np.array(
        [
            [math.cos(_TURN), -math.sin(_TURN), 0.0],
            [math.sin(_TURN), math.cos(_TURN), 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    tilt = np.array(
        [
            [1.0, 0.0, 0.0],
            [0.0, math.cos(_TILT), -math.sin(_TILT)],
            [0.0, math.sin(_TILT), math.cos(_TILT)],
        ]
    )
    to_paper = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    return to_paper @ tilt @ turn


def _scene(crystal: CrystalArrays, *, beside: np.ndarray | None = None) -> _Scene:
    """Project a crystal, its cell first in standard orientation, so that equal cells look equal.

    `beside` has the coordinates of the crystal that it is compared with: each atom is then drawn, and
    repeated on the border, where that one's is, so that 0.999 stands where 0.001 stood.
    """
    lengths, angles = lat.parameters_from_lattice(torch.from_numpy(crystal.lattice))
    standard = lat.lattice_from_parameters(lengths, angles).numpy()
    if beside is None or len(beside) != crystal.num_atoms:
        beside = crystal.frac_coords
    atoms, all_coords = _with_border_copies(beside)
    offset = (crystal.frac_coords - beside)[atoms]
    all_numbers, all_coords = crystal.atomic_numbers[atoms], all_coords + offset - np.round(offset)
    corners = np.array([[(i >> 2) & 1, (i >> 1) & 1, i & 1] for i in range(8)], dtype=float)
    centre = np.full(3, 0.5) @ standard
    view = _view()
    points = (all_coords @ standard - centre) @ view.T
    corner_points = (corners @ standard - centre) @ view.T
    # Weak perspective: what is nearer is slightly larger.
    distance = 7.0 * max(float(np.abs(corner_points).max()), 1e-6)
    for array in (points, corner_points):
        array[:, :2] *= (distance / (distance - array[:, 2]))[:, None]
    return _Scene(numbers=all_numbers, points=points, corners=corner_points)


def _with_border_copies(frac_coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The atoms of one cell, and again on the opposite side those that lie on a face, edge or corner.

    Returns:
        For each copy which atom it is, and where it is.
    """
    coords = frac_coords - np.floor(frac_coords)
    atoms = np.arange(len(coords))
    for axis in range(3):
        low, high = coords[:, axis] < _BORDER, coords[:, axis] > 1.0 - _BORDER
        step = np.eye(3)[axis]
        coords = np.concatenate([coords, coords[low] + step, coords[high] - step])
        atoms = np.concatenate([atoms, atoms[low], atoms[high]])
    return atoms, coords


def _half_width(scenes: Sequence[_Scene]) -> float:
    """Half the side of the square of paper (Å) that holds all the scenes that are cells at all."""
    reaches = [
        float(np.abs(np.concatenate([scene.points[:, :2], scene.corners[:, :2]])).max()) for scene in scenes
    ]
    return 0.75 + max((reach for reach in reaches if math.isfinite(reach)), default=1.0)


def _draw(axis: Axes, scene: _Scene, *, half_width: float) -> None:
    """Paint one scene from back to front, and the legend of its elements below."""
    if not np.isfinite(scene.points).all():
        axis.text(0.5, 0.5, "not a cell", transform=axis.transAxes, ha="center", color=EDGE, fontsize=9)
        return
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.collections import PatchCollection

    safe = np.clip(scene.numbers, 0, len(jmol_colors) - 1)
    colours, radii = jmol_colors[safe], 0.16 + 0.30 * covalent_radii[safe]
    span = max(float(np.ptp(scene.corners[:, 2])), 1e-6)

    def fog(depth: float) -> float:
        return 0.32 * min(1.0, max(0.0, 0.5 - depth / span))

    parts: list[tuple[float, list[Patch]]] = []
    for point, colour, radius in zip(scene.points, colours, radii, strict=True):
        parts.append((point[2], _ball(point[:2], radius, colour, fog(point[2]))))
    parts += _sticks(scene, colours, radii, fog)
    parts += _edges(scene.corners, fog, thickness=0.004 * half_width)
    parts.sort(key=lambda part: part[0])
    patches = [patch for _, group in parts for patch in group]
    axis.add_collection(PatchCollection(patches, match_original=True))
    axis.set_xlim(-half_width, half_width)
    axis.set_ylim(-1.16 * half_width, half_width)
    axis.set_aspect("equal")
    elements = np.unique(scene.numbers).tolist()
    for place, z in enumerate(elements):
        x = 0.5 + (place - 0.5 * (len(elements) - 1)) * 0.19
        axis.scatter(
            x - 0.045,
            0.02,
            s=26,
            color=jmol_colors[z],
            edgecolor=EDGE,
            linewidth=0.5,
            transform=axis.transAxes,
        )
        axis.text(
            x,
            0.02,
            symbol_of(z),
            transform=axis.transAxes,
            fontsize=7.5,
            color=INK,
            va="center_baseline",
        )


def _mix(colour: np.ndarray, other: float, share: float) -> np.ndarray:
    """A colour moved towards grey level `other` (1 white, 0 black)."""
    return np.clip((1.0 - share) * colour + share * other, 0.0, 1.0)


def _ball(centre: np.ndarray, radius: float, colour: np.ndarray, fog: float) -> list[Patch]:
    """Concentric discs that shrink and brighten towards the light."""
    from matplotlib.patches import Circle

    body = 0.94 * colour
    discs: list[Patch] = [
        Circle(
            (float(centre[0]), float(centre[1])),
            radius,
            facecolor=_mix(_mix(body, 0.0, 0.55), 1.0, fog),
            linewidth=0,
        )
    ]
    steps = 12
    for step in range(steps):
        t = step / (steps - 1)
        shade = (
            _mix(body, 0.0, 0.42 * (1.0 - t / 0.55))
            if t < 0.55
            else _mix(body, 1.0, 0.75 * ((t - 0.55) / 0.45) ** 1.6)
        )
        size = 0.94 * radius * (1.0 - t) ** 0.8 + 0.03 * radius
        x, y = centre + _LIGHT * radius * t
        discs.append(Circle((x, y), size, facecolor=_mix(shade, 1.0, fog), linewidth=0))
    return discs


def _sticks(
    scene: _Scene, colours: np.ndarray, radii: np.ndarray, fog: Callable[[float], float]
) -> list[tuple[float, list[Patch]]]:
    """Half a stick from each end of every short contact between unlike atoms."""
    from ase.data import covalent_radii

    points, reach = scene.points, covalent_radii[np.clip(scene.numbers, 0, len(covalent_radii) - 1)]
    offset = points[:, None] - points[None]
    is_near = np.linalg.norm(offset, axis=-1) < 1.18 * (reach[:, None] + reach[None])
    is_bonded = is_near & (scene.numbers[:, None] != scene.numbers[None])
    parts: list[tuple[float, list[Patch]]] = []
    for i, j in np.argwhere(is_bonded):
        half = 0.5 * (points[j] - points[i])
        # A stick begins at the surface of its ball, else the nearer half is painted across the ball's face.
        start = points[i] + half * (0.93 * radii[i] / max(float(np.linalg.norm(half)), 1e-9))
        stop = points[i] + half
        if 0.93 * radii[i] >= np.linalg.norm(half):
            continue
        depth = 0.5 * (start[2] + stop[2])
        strips: list[Patch] = []
        for width, dark in ((0.075, 0.38), (0.047, 0.12), (0.019, -0.25)):
            shade = _mix(0.94 * colours[i], 0.0, dark) if dark > 0 else _mix(colours[i], 1.0, -dark)
            strips.append(_strip(start, stop, width, _mix(shade, 1.0, fog(depth))))
        parts.append((depth, strips))
    return parts


def _edges(
    corners: np.ndarray, fog: Callable[[float], float], *, thickness: float
) -> list[tuple[float, list[Patch]]]:
    """The twelve edges of the cell, cut into short pieces so that atoms can stand before and behind them."""
    grey = np.array([0.36, 0.39, 0.44])
    parts: list[tuple[float, list[Patch]]] = []
    for first in range(8):
        for bit in (1, 2, 4):
            if first & bit:
                continue
            for start, stop in pairwise(np.linspace(corners[first], corners[first | bit], 15)):
                depth = 0.5 * (start[2] + stop[2])
                parts.append((depth, [_strip(start, stop, thickness, _mix(grey, 1.0, 1.4 * fog(depth)))]))
    return parts


def _strip(start: np.ndarray, stop: np.ndarray, half_width: float, colour: np.ndarray) -> Patch:
    """A straight band on the paper; a point seen end-on becomes an invisible band."""
    from matplotlib.patches import Polygon

    along = stop[:2] - start[:2]
    side = half_width * np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9)
    corners = [start[:2] + side, stop[:2] + side, stop[:2] - side, start[:2] - side]
    return Polygon(corners, closed=True, facecolor=colour, linewidth=0)
