"""Pieces of HTML pages: nothing of a user's text becomes markup."""

from __future__ import annotations

from latentite.evaluation.markup import Html, document, html_table, number_text


def test_cells_of_tables_are_escaped_unless_they_are_html() -> None:
    table = html_table(["<a>", ""], [["x & y", "<script>"], ["bar", Html("<b>1</b>")]])
    assert table == (
        "<table><tr><th>&lt;a&gt;</th><th></th></tr>"
        "<tr><td>x &amp; y</td><td class='n'>&lt;script&gt;</td></tr>"
        "<tr><td>bar</td><td class='n'><b>1</b></td></tr></table>"
    )


def test_labels_stand_left_of_numbers_and_a_table_may_do_without_heads() -> None:
    table = html_table([], [["step", "reason", "3"]], num_labels=2)
    assert table == "<table><tr><td>step</td><td>reason</td><td class='n'>3</td></tr></table>"


def test_a_number_that_does_not_exist_is_a_dash() -> None:
    assert number_text(None, ".3f", "eV") == "–"
    assert number_text(0.12345, ".3f", "eV") == "0.123 eV"
    assert number_text(12.0) == "12"


def test_the_title_of_a_page_is_plain_text() -> None:
    page = document("<b> & c", ["<h1>Here</h1>"])
    assert "<title>&lt;b&gt; &amp; c</title>" in page
    assert page.endswith("<h1>Here</h1>\n</body></html>")
