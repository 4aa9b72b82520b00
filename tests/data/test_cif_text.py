"""The grammar of CIF: what is a block, a value, a loop; and what is refused with its line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentite.data.readers.cif_text import number, read_blocks


def test_a_text_field_with_a_data_line_inside_is_no_block() -> None:
    [block] = read_blocks("data_a\n_refine_details\n;\ntext\ndata_b\nloop_\n;\n_cell_length_a 5\n")
    assert block.name == "a"
    assert block.text("_cell_length_a") == "5"
    assert "data_b" in (block.text("_refine_details") or "")


def test_tags_are_the_same_in_capitals_and_in_the_names_of_ddlm() -> None:
    [block] = read_blocks("DATA_x\n_CELL_Length_a 5\nLOOP_\n_atom_site.label\n_atom_site.fract_x\nNa1 0\n")
    assert block.text("_cell_length_a") == "5"
    assert block.column("_atom_site_label") == ["Na1"]
    assert block.has_atoms


def test_quotes_end_before_white_space_only() -> None:
    [block] = read_blocks(
        "data_x\n_publ_author_name 'O'Brien, X'\n_space_group_name_Hall '-R 3 2\"'\n_a \"x # y\" # z\n"
    )
    assert block.values == {
        "_publ_author_name": "O'Brien, X",
        "_space_group_name_hall": '-R 3 2"',
        "_a": "x # y",
    }


def test_every_kind_of_line_ending_is_read() -> None:
    for ending in ("\n", "\r\n", "\r"):
        [block] = read_blocks("\ufeff" + ending.join(["data_x", "_a 1", "loop_", "_b", "1", "2", ""]))
        assert block.values == {"_a": "1", "_b": ["1", "2"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "data_x\n_refine_details\n;\nnever ended\n_cell_length_a 5\n",
            "line 3: a text field begins and never ends",
        ),
        ("data_x\nloop_\n_atom_site_label\n_atom_site_fract_x\nNa1 0\nCl1\n", "2 columns and 3 values"),
        ("data_x\nloop_\n_atom_site_label\n_atom_site_fract_x\n", "2 columns and 0 values"),
        ("data_x\nloop_\n", "nothing has 0 columns"),
        ("data_x\n_cell_length_a 5\n_cell_length_a 6\n", "line 3: _cell_length_a is given twice"),
        ("data_x\n_space_group_name_H-M_alt P 21/c\n", "more than one value ('21/c')"),
        ("data_x\n_cell_length_a\n_cell_length_b 5\n", "_cell_length_a has no value"),
        ("data_x\n_space_group_name_H-M_alt 'P 21/c\n", "quotation begins and never ends"),
        ("data_x\nsave_y\n_a 1\n", "save frames"),
        ("_cell_length_a 5\ndata_x\n", "before the first data_ line"),
        ("", "no data_ line"),
        ("a page of prose", "no data_ line"),
    ],
)
def test_a_broken_text_is_refused_with_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_blocks(text)


def test_a_value_too_many_after_a_title_is_harmless() -> None:
    [block] = read_blocks("data_x\n_chemical_name_common rock salt\n_cell_length_a 5\n")
    assert block.text("_cell_length_a") == "5"


@pytest.mark.parametrize(
    ("text", "value"),
    [("5.64(2)", 5.64), ("-.5", -0.5), ("1/3", 1 / 3), ("1.5e-1", 0.15), ("1.0D+00", 1.0), ("7.", 7.0)],
)
def test_numbers_of_a_cif_are_read(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["5,64", "?", "", "1_000", "0x10", "nan", "5.64 A", "1/0", "\u0665"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        number(text)


@given(st.text(max_size=300))
def test_any_text_gives_blocks_or_one_sentence(text: str) -> None:
    for candidate in (text, "data_x\n" + text, "data_x\nloop_\n_atom_site_label\n" + text):
        try:
            blocks = read_blocks(candidate)
        except ValueError:
            continue
        assert blocks
