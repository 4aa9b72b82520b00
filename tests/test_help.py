"""`--help` of every command: each option says what it is, what it takes and what holds without it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from latentite import cli
from latentite.data.options import DEFAULT_FRACTIONS

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
def test_every_option_says_what_it_is(group: str) -> None:
    for parser in parsers(group):
        for action in parser._actions:
            where = f"{parser.prog} {action.metavar or action.option_strings}"
            words = re.sub(r"\[[^]]*\]", "", action.help or "").strip()
            assert len(words) > 5, f"{where} says nothing: {action.help!r}"


def test_no_option_has_a_default_of_its_own() -> None:
    """That of the field holds, so that it stands once; the shares of the splits are one field of the dataclass."""
    for group in GROUPS:
        for parser in parsers(group):
            own = {
                action.option_strings[0]: action.default
                for action in parser._actions
                if action.default not in (None, argparse.SUPPRESS)
            }
            fractions = {f"--{split}-fraction": share for split, share in DEFAULT_FRACTIONS.items()}
            assert own == (fractions if parser.prog.endswith("data build") else {}), parser.prog


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["sample", "--out", "x", "--nonsense"], "latentite sample"),
        (["sample", "--nonsense"], "latentite sample"),
        (["data", "build", "--nonsense"], "latentite data build"),
        (["sample", "merge", "part", "--out", "x", "--nonsense"], "latentite sample merge"),
        (["data", "info", "x", "--nonsense"], "latentite data info"),
        (["--nonsense"], "latentite"),
    ],
)
def test_an_unknown_option_is_answered_with_the_usage_of_its_command(
    words: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse left it to the outermost parser, which showed `usage: latentite [-h] [--version] COMMAND ...`.

    It is named before what is missing, which may be what was mistyped.
    """
    with pytest.raises(SystemExit) as ended:
        cli.parse(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"usage: {command} [-h]")
    assert f"{command}: error: " in told
    if command != "latentite":
        assert "unrecognized arguments: --nonsense" in told


def test_the_help_of_a_command_imports_no_torch() -> None:
    """That of `data build` took 11 s on a busy machine, for the names of three splits."""
    code = (
        "import sys\nfrom latentite import cli\n"
        "for group, (module, _) in cli.GROUPS.items():\n    cli.build_parser(group).format_help()\n"
        "print(sorted({'torch', 'pymatgen', 'ase', 'lightning', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


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
