"""Options of commands that are made of the fields of dataclasses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from latentite.base.options import add_options, fill, option, typed

if TYPE_CHECKING:
    from somewhere import Crystal  # type: ignore[import-not-found]  # what only type checkers see


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What several commands have."""

    source: str = field(metadata=option("SOURCE", positional=True))
    """A file or a folder."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(Shared):
    """One option of each type."""

    out: Path = field(metadata=option("DIR"))
    """CIFs go there, at 100 % of their size.

    Which only readers of the code are told."""
    rate: float = 1.0
    """Per second."""
    colour: Colour = Colour.BLUE
    """Of the picture."""
    split: Literal["train", "test"] = "test"
    """Which one."""
    names: tuple[str, ...] = field(default=(), metadata=option(flag="--name"))
    """To keep; repeatable."""
    max_atoms: int | None = field(default=20, metadata=option(none=0))
    """At most; 0: any number."""
    canonical: bool = field(default=True, metadata=option(flag="--as-is"))
    """Keep the cell."""
    quick: bool = False
    """Do less."""
    scale: float | str | Mapping[str, float] = field(default=2.0, metadata=option("S", group="chain"))
    """A number, or name=number [2, or what is best]."""
    start: Crystal | str | None = field(default=None, metadata=option("FILE", kind=str))
    """Structure to begin with [none]."""
    internal: int = field(default=3, metadata=option(is_typed=False))


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, Settings)
    return parser.parse_args(arguments)


def help_text() -> str:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=300))
    add_options(parser, Settings)
    return " ".join(parser.format_help().split())


def test_what_is_not_typed_keeps_the_default_of_its_field() -> None:
    arguments = parse("cifs", "--out", "there")
    assert typed(Settings, arguments) == {"source": "cifs", "out": Path("there")}
    assert fill(Settings, arguments) == Settings(source="cifs", out=Path("there"))


def test_what_is_typed_has_the_type_of_its_field() -> None:
    words = (
        "cifs --out there --rate 2 --colour red --split train --name a --name b --max-atoms 5 --as-is --quick"
    )
    found = fill(Settings, parse(*words.split(), "--scale", "a=1", "--start", "x.cif", "--seed", "7"))
    assert found == Settings(
        source="cifs",
        out=Path("there"),
        rate=2.0,
        colour=Colour.RED,
        split="train",
        names=("a", "b"),
        max_atoms=5,
        canonical=False,
        quick=True,
        scale="a=1",
        start="x.cif",
        seed=7,
    )
    assert isinstance(found.colour, Colour)


def test_the_value_that_stands_for_none_is_none() -> None:
    assert fill(Settings, parse("cifs", "--out", "there", "--max-atoms", "0")).max_atoms is None


def test_the_help_is_the_docstring_of_the_field_and_its_default() -> None:
    text = help_text()
    for line in (
        "SOURCE a file or a folder",
        "--seed N of everything random [0]",
        "--out DIR CIFs go there, at 100 % of their size --rate",
        "--rate X per second [1]",
        "--colour {red,blue} of the picture [blue]",
        "--name NAME to keep; repeatable --max-atoms N at most; 0: any number [20]",
        "--as-is keep the cell --quick do less",
        "chain: --scale S a number, or name=number [2, or what is best]",
    ):
        assert line in text
    assert "internal" not in text


def test_a_command_offers_some_fields_and_may_have_another_default() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Settings, only=["max_atoms"], defaults={"max_atoms": None})
    assert "[0]" in parser.format_help()
    assert typed(Settings, parser.parse_args([])) == {"max_atoms": None}
    assert typed(Settings, parser.parse_args(["--max-atoms", "3"])) == {"max_atoms": 3}


def test_two_dataclasses_of_one_command_may_have_a_field_of_the_same_name() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Other:
        seed: int = field(default=1, metadata=option(flag="--other-seed", group="chain"))
        """Of the rest."""

    parser = argparse.ArgumentParser()
    add_options(parser, Settings, Other)
    found = parser.parse_args(["cifs", "--out", "there", "--other-seed", "5"])
    assert typed(Other, found) == {"seed": 5}
    assert "seed" not in typed(Settings, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifs"], "the following arguments are required: --out"),
        (["--out", "x"], "the following arguments are required: SOURCE"),
        (["cifs", "--out", "x", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["cifs", "--out", "x", "--colour", "grey"], "argument --colour: invalid choice: 'grey'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence_that_names_it(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert message in capsys.readouterr().err
