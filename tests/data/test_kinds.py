"""What a column of labels is: decided on all its cells, and never a guess."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentite.data.kinds import ColumnKind, read_column
from latentite.data.readers.records import Value

MARKERS = (
    "NaN|nan| NAN |-nan|NA|N/A|n/a|#N/A|NULL|null|None|<NA>|<na>|-|--| - |\u2013|\u2014|#DIV/0!|"
    "#VALUE!|#REF!|#NUM!|n.a.|?|.|missing|unknown|***|not available|1.#QNAN|NaT"
)
TEXTS = (
    "1.00 eV|1.00eV|1000 meV|1,234.5|1,00|~1.0|>5|<0.1|1.0\xb10.1|1.0 +/- 0.1|5%|1 000|"
    "1_000|1'000|0x1F|1.2.3|1.5e-3 eV|"
    "1/2|10\xb2|1.0*|high|Na|No|InF|1.0 (calc.)|2024-01-05|1e|e5|1.0,2.0|[1.0]|--1.0|1.0 1.0|=A1|True?"
)
NUMBERS = ["1.10", "1.20", "1.30"]


def numbers_of(cells: list[Value]) -> list[float | None]:
    """What the column is read as; None where a label is missing."""
    column = read_column(cells)
    assert column.is_numeric, column
    return [None if math.isnan(value) else value for value in column.numbers.tolist()]


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t", "\xa0", *MARKERS.split("|")],
)
def test_a_missing_marker_in_a_column_of_numbers_is_a_missing_label(text: str) -> None:
    """One `-` once turned the numbers of its file into codes of classes 0 to 9."""
    column = read_column([text, *NUMBERS])
    assert column.kind is ColumnKind.NUMBERS
    assert numbers_of([text, *NUMBERS]) == [None, 1.1, 1.2, 1.3]
    said = [(remark.position, remark.text, remark.words) for remark in column.remarks]
    assert said == ([(0, text.strip(), "1 cell taken as missing")] if text.strip() else [])


@pytest.mark.parametrize(
    "cell", ["inf", "-inf", "+Inf", "Infinity", "-INFINITY", "\u221e", math.inf, -math.inf]
)
def test_an_infinite_number_is_a_missing_label_and_counted(cell: Value) -> None:
    assert numbers_of([1.0, cell, "2"]) == [1.0, None, 2.0]
    [remark] = read_column([1.0, cell, "2"]).remarks
    assert (remark.position, remark.words) == (1, "1 cell not finite and taken as missing")


@pytest.mark.parametrize(
    "text",
    TEXTS.split("|"),
)
def test_a_text_among_numbers_is_a_problem_that_names_cell_and_text(text: str) -> None:
    column = read_column([*NUMBERS, text])
    assert column.kind is ColumnKind.UNREADABLE
    assert column.problem is not None
    assert (column.problem.position, column.problem.text) == (3, text)
    assert np.isnan(column.numbers).all()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\u22121.5", -1.5),
        ("\u20131.5", -1.5),
        ("1e\u22123", 0.001),
        ("\uff11\uff0e\uff15", 1.5),
        ("\xa01.5\u2009", 1.5),
        ("\ufeff1.5", 1.5),
        ("1.50(2)", 1.5),
        ("-0.123(14)", -0.123),
        ("1.2(1)e-3", 0.0012),
        ("1.5D-3", 0.0015),
    ],
)
def test_a_text_with_one_reading_as_a_number_is_cleaned_and_said(text: str, value: float) -> None:
    assert numbers_of([text, *NUMBERS])[0] == value
    [remark] = read_column([text, *NUMBERS]).remarks
    assert (remark.position, remark.words) == (0, "1 cell cleaned to plain numbers")


def test_decimal_commas_throughout_a_column_are_read_and_said() -> None:
    assert numbers_of(["1,00", "-0,5", "3", "", "1,5e-3"]) == [1.0, -0.5, 3.0, None, 1.5e-3]
    [remark] = read_column(["1,00", "0,5"]).remarks
    assert "2 cells read with decimal commas" in remark.words
    assert numbers_of(["1,234", "0,5"]) == [1.234, 0.5]


@pytest.mark.parametrize("cells", [["1,234", "2,345"], ["1,234", "950"]])
def test_commas_that_may_be_thousands_or_decimals_are_a_problem_with_both_readings(
    cells: list[Value],
) -> None:
    problem = read_column(cells).problem
    assert problem is not None
    assert problem.words == "may be 1234 or 1.234, and no other cell says which"


@pytest.mark.parametrize("cells", [["1,50", "2.5"], ["1,50", 2.5], ["1,50", "1.0(2)"], ["1.234,5", "2,5"]])
def test_decimal_commas_are_never_mixed_with_points(cells: list[Value]) -> None:
    assert read_column(cells).kind is ColumnKind.UNREADABLE


@pytest.mark.parametrize(
    "cells", [["TRUE", "FALSE", ""], ["true", "False", "#N/A"], ["yes", "no", None], ["Yes", " NO ", "-"]]
)
def test_true_and_false_and_yes_and_no_are_booleans(cells: list[Value]) -> None:
    assert read_column(cells).kind is ColumnKind.BOOLEANS
    assert numbers_of(cells) == [1.0, 0.0, None]


def test_booleans_beside_other_numbers_than_0_and_1_are_a_problem() -> None:
    assert numbers_of(["1", "0", "yes"]) == [1.0, 0.0, 1.0]
    problem = read_column(["0.5", "TRUE"]).problem
    assert problem is not None
    assert (problem.position, problem.text) == (1, "TRUE")


def test_formulas_that_look_like_markers_stay_formulas_in_a_column_of_formulas() -> None:
    """`NO` is nitric oxide, `InF` indium fluoride, `Na` sodium, and `NaN` was once taken for a missing label."""
    formulas = ["NO", "InF", "NaN", "Na", "F", "CO2", "Ca(OH)2"]
    column = read_column(formulas)
    assert (column.kind, list(column.names)) == (ColumnKind.NAMES, formulas)
    assert read_column(["Na", "No", "K"]).names == ("Na", "No", "K")


def test_markers_among_names_are_missing_and_names_of_their_own_are_not() -> None:
    column = read_column(["FM", "AFM", "NaN", "", "unknown", "N/A", None, " FM "])
    assert column.names == ("FM", "AFM", None, None, "unknown", None, None, "FM")
    assert read_column(["+", "-", "+"]).names == ("+", "-", "+")
    assert read_column(["up", "-", "down"]).names == ("up", None, "down")


@pytest.mark.parametrize("as_names", [False, True])
def test_names_that_are_taken_as_missing_are_said_and_counted(as_names: bool) -> None:
    """A class called `none` once lost its crystals without a word."""
    column = read_column(["FM", "none", "-", "none", "", None], as_names=as_names)
    said = [(remark.position, remark.text, remark.words) for remark in column.remarks]
    assert said == [(1, "none", "2 cells taken as missing"), (2, "-", "1 cell taken as missing")]


def test_every_spelling_of_a_missing_label_is_said() -> None:
    """The ninth kind of marker in a column was once not mentioned."""
    column = read_column([*MARKERS.split("|"), *NUMBERS])
    assert {remark.text for remark in column.remarks} == {text.strip() for text in MARKERS.split("|")}


@pytest.mark.parametrize(
    "cells", [["1.0 eV", "1.1 eV"], ["1_000", "2_000"], ["300 K", "77 K"], ["1,234.5", "2,000.5"]]
)
def test_texts_that_all_look_like_quantities_are_a_problem_and_no_classes(cells: list[Value]) -> None:
    """Ten energies with their unit would else be ten classes."""
    problem = read_column(cells).problem
    assert problem is not None
    assert (problem.position, problem.text) == (0, cells[0])
    assert read_column(cells, as_names=True).names == tuple(cells)


def test_names_may_begin_with_a_digit() -> None:
    for cells in (["2H", "3C", "6H-SiC"], ["4/mmm", "m-3m", "6/m"], ["3/2", "1/2", "5/2"], ["1T'", "2H"]):
        assert read_column(cells).names == tuple(cells)


def test_one_number_among_names_makes_no_classes_unless_names_are_asked_for() -> None:
    groups: list[Value] = ["m-3m", "1", "-1"]
    problem = read_column(groups).problem
    assert problem is not None
    assert (problem.text, problem.words) == ("m-3m", "is no number, while 2 of 3 cells are")
    assert read_column(groups, as_names=True).names == ("m-3m", "1", "-1")


def test_numbers_taken_as_names_are_one_name_however_they_are_written() -> None:
    assert read_column(["225", "225.0", 225.0, "62", "", math.nan], as_names=True).names == (
        "225", "225", "225", "62", None, None,
    )  # fmt: skip


@pytest.mark.parametrize("cell", ["1e300", "1e999", 1e39, "-3.5e38"])
def test_a_number_that_a_label_cannot_hold_is_a_problem_and_not_infinite(cell: Value) -> None:
    problem = read_column(["1.0", cell]).problem
    assert problem is not None
    assert problem.position == 1


def test_a_sentinel_is_a_number_and_said() -> None:
    assert numbers_of(["0.5", "-999", "1.5"]) == [0.5, -999.0, 1.5]
    [remark] = read_column(["0.5", "-999", "1.5"]).remarks
    assert (remark.position, remark.words) == (
        1, "1 cell kept as numbers; empty them if they stand for missing labels",
    )  # fmt: skip
    assert not read_column(["999", "1001", "998"]).remarks


def test_whole_numbers_that_lose_digits_are_said() -> None:
    [remark] = read_column(["20240101", "20240102"]).remarks
    assert (remark.position, remark.text) == (0, "20240101")
    assert not read_column(["123456.789", "16777216"]).remarks


def test_a_column_of_missing_labels_is_empty() -> None:
    for cells in ([None, ""], ["-", "N/A"], []):
        assert read_column(cells).kind is ColumnKind.EMPTY


@given(st.lists(st.one_of(st.none(), st.floats(-1e30, 1e30), st.integers(-(10**9), 10**9)), min_size=1))
def test_plain_numbers_are_read_exactly_whether_written_or_native(values: list[float | int | None]) -> None:
    expected = np.array([math.nan if value is None else float(value) for value in values])
    for cells in (
        [None if v is None else float(v) for v in values],
        ["" if v is None else repr(v) for v in values],
    ):
        np.testing.assert_array_equal(read_column(cells).numbers, expected)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.integers(0, 3))
def test_any_text_among_numbers_is_missing_read_or_a_problem_and_changes_no_other_cell(
    texts: list[str], place: int
) -> None:
    cells: list[Value] = [*NUMBERS]
    cells[place:place] = texts
    column = read_column(cells)
    assert column.kind in (ColumnKind.NUMBERS, ColumnKind.UNREADABLE)
    if column.kind is ColumnKind.NUMBERS:
        plain = [column.numbers[cells.index(text)] for text in NUMBERS if text not in texts]
        assert plain == [float(text) for text in NUMBERS if text not in texts]
        assert not np.isinf(column.numbers).any()
