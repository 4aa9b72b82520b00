"""Makes the embedded data set `prototypes` again: several thousand plausible crystals, which ship with the package.

    python tools/make_prototypes.py [FOLDER]

Each AFLOW prototype that pymatgen ships gets other elements: for ionic ones the charge-balanced choices of
ions that data-mined substitution finds most probable, for elements and intermetallic compounds the elements
that stand for each other most readily. The volume is predicted by data-mined lattice scaling (bond lengths
from a table). Labels are computed from the crystal. Nothing is random: the same versions of pymatgen give the
same rows. These crystals are for learning, demonstration and tests; none has been relaxed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from latentite.base.files import replacing
from latentite.data.properties import GRAMS_PER_CUBIC_CM, space_group_number
from latentite.elements import ATOMIC_NUMBER, SYMBOLS
from latentite.formulas import join_amounts
from prototype_library import (
    ElementTable,
    Prototype,
    Species,
    load_elements,
    load_prototypes,
    load_species,
)

SHIPPED = Path(__file__).parents[1] / "src" / "latentite" / "data" / "prototypes"
"""The package's folder for the product."""

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Fraction of the reduced formulas in each split; all polymorphs of a formula share one."""

_COLUMNS = (
    "material_id", "pretty_formula", "prototype", "density", "volume_per_atom",
    "electronegativity_difference", "num_elements", "space_group", "cif",
)  # fmt: skip

# Crystals per prototype: ionic, intermetallic, elemental.
_MOST_IONIC, _MOST_METALLIC, _MOST_ELEMENTAL = 48, 28, 8
_CHOICES = (0, 100, 70, 30, 14, 7, 5)  # species tried per kind, by the number of kinds
_POOL = 3000  # most probable compounds of a prototype among which varied ones are picked
_REPETITION = 0.6  # taken off a compound's log-probability for each earlier use of one of its species
_VOLUME_FACTOR = (0.35, 2.8)  # of the predicted to the prototype's own volume
_VOLUME_PER_ATOM = (5.0, 70.0)  # Å^3
_MAX_DENSITY = 23.0  # g/cm^3; osmium has 22.6
_LOOSENESS = 1.25  # every atom has a neighbour within this factor of the expected bond length, or of the
# prototype's own looseness where that is larger
_SYMPREC = 0.01  # Å; prototypes are given with four or more digits


@dataclass(frozen=True, kw_only=True, slots=True)
class Compound:
    """One crystal of the dataset."""

    prototype: Prototype
    prototype_index: int
    elements: tuple[str, ...]
    """Element of each kind."""
    scale: float
    """Factor on the prototype's cell lengths."""
    space_group: int
    formula: str
    """Reduced formula, the elements in order of electronegativity."""

    @property
    def numbers(self) -> Int[np.ndarray, " atom"]:
        return np.array([ATOMIC_NUMBER[symbol] for symbol in self.elements])[self.prototype.kinds]

    @property
    def lattice(self) -> Float[np.ndarray, "3 3"]:
        """Å."""
        return self.prototype.lattice * self.scale


def make_tables() -> dict[str, str]:
    """The text of the CSV table of every split."""
    elements = load_elements()
    tables = {name: io.StringIO(newline="") for name in SPLITS}
    writers = {name: csv.writer(table, lineterminator="\n") for name, table in tables.items()}
    for writer in writers.values():
        writer.writerow(_COLUMNS)
    for compound in compounds(elements):
        writers[_split_of(compound.formula)].writerow(_row(compound, elements))
    return {name: table.getvalue() for name, table in tables.items()}


def write_tables(folder: Path) -> None:
    """Write `train.csv.gz`, `val.csv.gz` and `test.csv.gz`, without name and time of the writing in them."""
    for name, text in make_tables().items():
        with replacing(folder / f"{name}.csv.gz") as temporary:
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def compounds(elements: ElementTable) -> Iterator[Compound]:
    """All crystals of the dataset, prototype by prototype, the most probable of each first."""
    ions = load_species()
    atoms = _neutral(ions)
    for index, prototype in enumerate(load_prototypes()):
        space_group = space_group_number(
            prototype.kinds, prototype.frac_coords, prototype.lattice, symprec=_SYMPREC
        )
        if space_group is None:
            continue
        seen = set()
        for choice, scale in _substitutions(prototype, ions, atoms, elements):
            formula = _formula(choice, prototype.counts, elements)
            if formula in seen:  # the same elements on other sites
                continue
            seen.add(formula)
            yield Compound(
                prototype=prototype,
                prototype_index=index,
                elements=choice,
                scale=scale,
                space_group=space_group,
                formula=formula,
            )


def _formula(symbols: tuple[str, ...], counts: Int[np.ndarray, " kind"], elements: ElementTable) -> str:
    reduced = (counts // np.gcd.reduce(counts)).tolist()
    pairs = sorted(zip(symbols, reduced, strict=True), key=lambda pair: elements.electronegativity[pair[0]])
    return join_amounts(pairs)


def _split_of(formula: str) -> str:
    """The split of a reduced formula, from its hash: nothing depends on the order or number of crystals."""
    position = int.from_bytes(hashlib.sha256(formula.encode()).digest()[:8], "big") / 2**64
    for name, fraction in SPLITS.items():
        position -= fraction
        if position < 0.0:
            return name
    return next(reversed(SPLITS))


# --------------------------------------------------------------------------------------- substitution


def _neutral(ions: Species) -> Species:
    """The same table for uncharged atoms: two elements are as alike as their most alike ions."""
    symbols = tuple(dict.fromkeys(ions.symbols))
    members = [np.flatnonzero(np.array(ions.symbols) == symbol) for symbol in symbols]
    weight = np.array([[ions.log_weight[np.ix_(one, two)].max() for two in members] for one in members])
    return Species(symbols=symbols, charges=np.zeros(len(symbols), dtype=np.int64), log_weight=weight)


def _substitutions(
    prototype: Prototype, ions: Species, atoms: Species, elements: ElementTable
) -> list[tuple[tuple[str, ...], float]]:
    """Elements of each kind and the factor on the lengths, for the compounds kept of one prototype.

    Ions stand for ions where the prototype is ionic and the table knows its ions (it has no carbides, borides
    or arsenides, for example); otherwise atoms stand for atoms.
    """
    species, limit = ions, _MOST_IONIC
    choices = None if prototype.charges is None else _choices(prototype, ions, elements, prototype.charges)
    if choices is None:
        species, limit = atoms, _MOST_METALLIC if len(prototype.elements) > 1 else _MOST_ELEMENTAL
        choices = _choices(prototype, atoms, elements, (0,) * len(prototype.elements))
    if choices is None:
        return []
    grid = np.stack(np.meshgrid(*[indices for indices, _ in choices], indexing="ij"), axis=-1)
    grid = grid.reshape(-1, len(choices))
    scores = sum(np.meshgrid(*[weights for _, weights in choices], indexing="ij"), np.zeros(()))
    scores = np.asarray(scores).ravel()
    symbols = np.array(species.symbols)
    names = np.array([ATOMIC_NUMBER[symbol] for symbol in species.symbols])[grid]
    names.sort(axis=1)
    is_valid = (np.diff(names, axis=1) != 0).all(axis=1)
    is_valid &= species.charges[grid] @ prototype.counts == 0
    grid, scores = grid[is_valid], scores[is_valid]
    best = np.argsort(-scores, kind="stable")[:_POOL]
    grid, scores = grid[best], scores[best]
    scales = _sensible_scales(prototype, symbols[grid], elements)
    grid, scores, scales = grid[scales > 0.0], scores[scales > 0.0], scales[scales > 0.0]
    return [
        (tuple(symbols[grid[place]].tolist()), float(scales[place]))
        for place in _varied(grid, scores, len(symbols), limit)
    ]


def _choices(
    prototype: Prototype, species: Species, elements: ElementTable, signs: tuple[int, ...]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """For each kind the species that may take its place, most probable first, and their log-weights.

    Args:
        prototype: whose kinds to fill.
        species: what to fill them with.
        elements: the elements allowed.
        signs: of the charge of each kind.

    Returns:
        None when the table does not know one of the prototype's own species.
    """
    symbols, num_kinds = np.array(species.symbols), len(prototype.elements)
    is_allowed = np.array([symbol in elements.mass for symbol in species.symbols])
    result = []
    for element, sign in zip(prototype.elements, signs, strict=True):
        has_sign = np.sign(species.charges) == sign
        is_original = has_sign & (symbols == element)
        if not is_original.any():
            return None
        weights = species.log_weight[is_original].max(axis=0)
        indices = np.flatnonzero(has_sign & is_allowed)
        order = np.argsort(-weights[indices], kind="stable")[: _CHOICES[min(num_kinds, len(_CHOICES) - 1)]]
        result.append((indices[order], weights[indices[order]]))
    return result


def _varied(grid: np.ndarray, scores: np.ndarray, num_species: int, limit: int) -> list[int]:
    """Up to `limit` rows, picked one by one for their score, where repeated species count against a row."""
    scores = scores.copy()
    picked: list[int] = []
    for _ in range(min(limit, len(grid))):
        place = int(scores.argmax())
        picked.append(place)
        scores -= _REPETITION * (grid == grid[place]).sum(axis=1)
        scores[place] = -np.inf
    return picked


def predict_scales(
    prototype: Prototype, symbols: np.ndarray, elements: ElementTable
) -> tuple[Float[np.ndarray, " compound"], Float[np.ndarray, " compound"]]:
    """Factors on the cell lengths by data-mined lattice scaling (Chu et al. 2018), and how loose that is.

    The cell is scaled until the tightest pair of atoms has its expected bond length: the sum of two radii,
    each `r + k * (standard deviation of the electronegativity over the sites)`.

    Args:
        prototype: at any volume.
        symbols: element of each kind, [compound kind].
        elements: radii and electronegativities.

    Returns:
        The scales, and for the loneliest atom of each compound its nearest distance over the expected one.
    """
    shares = prototype.counts / prototype.counts.sum()
    negativity = _lookup(elements.electronegativity, symbols)
    mean = (negativity * shares).sum(axis=1, keepdims=True)
    spread = np.sqrt((((negativity - mean) ** 2) * shares).sum(axis=1, keepdims=True))
    radii = _lookup(elements.radius, symbols) + _lookup(elements.radius_slope, symbols) * spread
    expected = radii[:, prototype.kinds][:, :, None] + radii[:, None, :]
    closest = (prototype.nearest / expected).min(axis=2)
    tightest = closest.min(axis=1)
    return 1.0 / tightest, closest.max(axis=1) / tightest


def _sensible_scales(
    prototype: Prototype, symbols: np.ndarray, elements: ElementTable
) -> Float[np.ndarray, " compound"]:
    """The predicted factors on the cell lengths; 0 for a compound that makes no sense."""
    scales, looseness = predict_scales(prototype, symbols, elements)
    limit = _LOOSENESS
    if all(element in elements.radius for element in prototype.elements):
        own = np.array([prototype.elements])
        limit = max(limit, float(predict_scales(prototype, own, elements)[1][0]))
    volume = np.linalg.det(prototype.lattice) * scales**3
    per_atom = volume / len(prototype.kinds)
    mass = (_lookup(elements.mass, symbols) * prototype.counts).sum(axis=1)
    makes_sense = (
        (looseness <= limit)
        & (scales**3 > _VOLUME_FACTOR[0])
        & (scales**3 < _VOLUME_FACTOR[1])
        & (per_atom > _VOLUME_PER_ATOM[0])
        & (per_atom < _VOLUME_PER_ATOM[1])
        & (mass / volume * GRAMS_PER_CUBIC_CM < _MAX_DENSITY)
    )
    return np.where(makes_sense, scales, 0.0)


def _lookup(table: dict[str, float], symbols: np.ndarray) -> Float[np.ndarray, "compound kind"]:
    names, place = np.unique(symbols, return_inverse=True)
    return np.array([table[name] for name in names.tolist()])[place].reshape(symbols.shape)


# --------------------------------------------------------------------------------------------- rows


def _row(compound: Compound, elements: ElementTable) -> list[str]:
    """The cells of one row, in the order of `_COLUMNS`."""
    prototype = compound.prototype
    volume = float(np.linalg.det(compound.lattice))
    counts = prototype.counts.tolist()
    mass = sum(elements.mass[symbol] * count for symbol, count in zip(compound.elements, counts, strict=True))
    negativities = [elements.electronegativity[symbol] for symbol in compound.elements]
    return [
        f"prototype-{compound.prototype_index:03d}-{compound.formula}",
        compound.formula,
        prototype.name,
        f"{mass / volume * GRAMS_PER_CUBIC_CM:.6f}",
        f"{volume / len(prototype.kinds):.6f}",
        f"{max(negativities) - min(negativities):.2f}",
        str(len(compound.elements)),
        str(compound.space_group),
        _cif(compound, volume),
    ]


def _cif(compound: Compound, volume: float) -> str:
    """P1 CIF in the layout of pymatgen's writer, which the reader has a fast path for."""
    a, b, c = compound.lattice
    vectors = np.linalg.norm(compound.lattice, axis=1)
    cosines = np.array([b @ c, a @ c, a @ b]) / (vectors[[1, 0, 0]] * vectors[[2, 2, 1]])
    lengths, angles = vectors.tolist(), np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).tolist()
    total = compound.prototype.counts.tolist()
    composition = " ".join(f"{s}{n}" for s, n in sorted(zip(compound.elements, total, strict=True)))
    units = int(np.gcd.reduce(compound.prototype.counts))
    lines = [f"data_{compound.formula}", "_symmetry_space_group_name_H-M   'P 1'"]
    lines += [f"_cell_length_{name}   {value:.8f}" for name, value in zip("abc", lengths, strict=True)]
    lines += [
        f"_cell_angle_{name}   {value:.8f}"
        for name, value in zip(("alpha", "beta", "gamma"), angles, strict=True)
    ]
    lines += [
        "_symmetry_Int_Tables_number   1",
        f"_chemical_formula_structural   {compound.formula}",
        f"_chemical_formula_sum   '{composition}'",
        f"_cell_volume   {volume:.8f}",
        f"_cell_formula_units_Z   {units}",
        *_CIF_LOOPS,
    ]
    for place, (number, xyz) in enumerate(
        zip(compound.numbers.tolist(), compound.prototype.frac_coords.tolist(), strict=True)
    ):
        symbol = SYMBOLS[number - 1]
        lines.append(f"  {symbol}  {symbol}{place}  1  {xyz[0]:.8f}  {xyz[1]:.8f}  {xyz[2]:.8f}  1")
    return "\n".join(lines) + "\n"


_CIF_LOOPS = """\
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
  1  'x, y, z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_symmetry_multiplicity
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy""".splitlines()


def main() -> None:
    """Write the three tables."""
    parser = argparse.ArgumentParser(description="Make the embedded data set `prototypes` (about 20 s).")
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED, help="where [%(default)s]")
    write_tables(parser.parse_args().folder)


if __name__ == "__main__":
    main()
