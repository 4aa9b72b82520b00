"""Formulas, against pymatgen's reading and writing of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition as PymatgenComposition

from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENTS, SYMBOLS
from latentite.formulas import (
    alphabetical_formula,
    chemical_system,
    compositions,
    is_formula,
    parse_amounts,
    parse_formula,
    plain_formula,
    reduced,
    reduced_composition,
    reduced_formulas,
    usual_formula,
)

COUNTS = st.dictionaries(st.integers(1, NUM_ELEMENTS), st.integers(1, 24), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore")  # pymatgen's, of elements without electronegativity
@given(COUNTS)
def test_a_written_formula_is_read_as_the_composition_that_it_was_written_from(
    counts: dict[int, int],
) -> None:
    composition = reduced(counts)
    for write in (plain_formula, alphabetical_formula, usual_formula):
        assert parse_formula(write(composition)) == composition
    whole = PymatgenComposition({SYMBOLS[number - 1]: count for number, count in counts.items()})
    assert usual_formula(composition) == whole.reduced_formula
    assert chemical_system(composition) == whole.chemical_system


@given(st.lists(st.lists(st.integers(1, NUM_ELEMENTS), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_batch_and_its_lists_of_atoms_have_the_same_compositions(cells: list[list[int]]) -> None:
    batch = CrystalBatch(
        atomic_numbers=torch.tensor([number for cell in cells for number in cell]),
        frac_coords=torch.zeros(sum(map(len, cells)), 3),
        lattice=torch.eye(3).repeat(len(cells), 1, 1),
        num_atoms=torch.tensor([len(cell) for cell in cells]),
    )
    assert compositions(batch) == [reduced_composition(cell) for cell in cells]
    assert reduced_formulas(batch) == [usual_formula(reduced_composition(cell)) for cell in cells]


def test_the_ways_to_write_a_formula() -> None:
    composition = parse_formula("Li2Fe2P2O8")
    assert composition == ((3, 1), (8, 4), (15, 1), (26, 1))
    assert plain_formula(composition) == "Li1O4P1Fe1"
    assert alphabetical_formula(composition) == "FeLiO4P"
    assert usual_formula(composition) == "LiFePO4"
    assert chemical_system(composition) == "Fe-Li-O-P"
    assert usual_formula(parse_formula("O")) == "O2"
    assert parse_amounts("Ca(OH)2") == {"Ca": 1.0, "O": 2.0, "H": 2.0}


@pytest.mark.parametrize("text", ["", "Xx2", "H2O)", "lithium", "Li0.1234567O"])
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"formula such as|at least one element|fractions of small whole"):
        parse_formula(text)


def test_a_number_that_is_no_element_is_not_written_as_another() -> None:
    with pytest.raises(ValueError, match="atomic number 0"):
        usual_formula(((0, 1), (8, 1)))


def test_words_that_are_compounds_are_told_from_words_that_are_not() -> None:
    assert all(map(is_formula, ["NaN", "InF", "NO", "Nd(Mo3Se4)2", "Fe0.5O"]))
    assert not any(map(is_formula, ["", "nan", "inf", "None", "n/a", "()", "N/O"]))


def test_elements_and_formulas_are_light_to_import() -> None:
    code = "import sys, latentite.formulas; print(sorted({'torch', 'pymatgen', 'ase'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_sampling_draws_no_picture_to_write_a_formula() -> None:
    code = "import sys, latentite.sampling.window; print('latentite.draw.cells' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
