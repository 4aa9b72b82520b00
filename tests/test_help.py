"""`--help` of every command: each option says what it is, what it takes and what holds without it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from latentite import cli

GROUPS = [name for name, (module, _) in cli.GROUPS.items() if module is not None]


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers at the ends of the tree."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for child in action.choices.values():
            yield from commands(child)


def parsers(group: str) -> list[argparse.ArgumentParser]:
    (subparsers,) = cli.build_parser(group)._subparsers._group_actions  # type: ignore[union-attr]
    chosen = [parser for name, parser in subparsers.choices.items() if name.split()[0] == group]  # type: ignore[union-attr]
    return [command for parser in chosen for command in commands(parser)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_what_it_is_and_its_default(group: str) -> None:
    for parser in parsers(group):
        for action in parser._actions:
            where = f"{parser.prog} {action.metavar or action.option_strings}"
            words = re.sub(r"\[[^]]*\]", "", action.help or "").strip()
            assert len(words) > 5 or (group == "export" and words == ""), (
                f"{where} says nothing: {action.help!r}"
            )
            if action.default not in (None, False, [], argparse.SUPPRESS):
                assert "[" in (action.help or ""), f"{where} does not tell its default"


@pytest.mark.parametrize("group", GROUPS)
def test_values_are_named_by_what_they_are(group: str) -> None:
    """argparse's own names repeat the option: `--max-atoms MAX_ATOMS`."""
    for parser in parsers(group):
        for action in parser._actions:
            if action.nargs != 0 and action.choices is None:
                assert action.metavar, f"{parser.prog} {action.option_strings or action.dest}"


@pytest.mark.parametrize("group", GROUPS)
def test_help_fits_a_terminal(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions whose lines are kept as they are must be broken by hand."""
    monkeypatch.setenv("COLUMNS", "110")
    for parser in parsers(group):
        for line in parser.format_help().splitlines():
            assert len(line) <= 110, line


def test_every_group_has_the_same_line_in_both_lists() -> None:
    """`latentite --help` does not import the groups, so their lines stand in `cli.py` as well."""
    for group in GROUPS:
        (subparsers,) = cli.build_parser(group)._subparsers._group_actions  # type: ignore[union-attr]
        lines = {action.dest: action.help for action in subparsers._choices_actions}  # type: ignore[attr-defined]
        assert lines[group] == cli.GROUPS[group][1]
