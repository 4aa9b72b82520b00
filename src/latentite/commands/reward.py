"""`latentite reward check`: a reward of your own, held to its contract."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from latentite.base.files import parse_json
from latentite.base.options import make_command, option

if TYPE_CHECKING:
    from latentite.rewards.protocol import RewardReport


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """Options of `latentite reward check`."""

    target: str = field(metadata=option("REWARD", positional=True))
    """file.py:Name or package.module.Name, class or function."""
    arguments: tuple[str, ...] = field(default=(), metadata=option("KEY=VALUE", positional=True))
    """Arguments of the class, values as JSON or text."""
    crystals: str = field(default="prototypes", metadata=option("SOURCE"))
    """Files of crystals, or the name of a dataset."""
    limit: int = 100
    """Call it on at most N crystals."""


def register(parser: argparse.ArgumentParser) -> None:
    """Give `latentite reward` its command. `cli.py` reports mistakes."""
    commands = parser.add_subparsers(required=True, metavar="{check}")
    make_command(
        commands.add_parser("check", help="whether a reward keeps its promises, on real crystals"),
        _check,
        CheckOptions,
        description="Call a reward on real crystals and check what it promises: one number each, the same in any\n"
        "order, alone and in a batch, and an input that stays as it is. Says what it costs.",
        epilog="examples:\n  latentite reward check my_reward.py:MyReward target=8.0\n"
        "  latentite reward check latentite.rewards.properties.SymmetryReward --crystals my_cifs/",
    )


def _check(options: CheckOptions) -> int:
    from latentite.crystal import CrystalBatch
    from latentite.evaluation.read import read_crystals
    from latentite.rewards.protocol import check_reward
    from latentite.rewards.target import TARGET, build, locate

    named = locate(options.target)
    keywords = dict(_option(text) for text in options.arguments)
    is_made = isinstance(named, type) or keywords
    reward = build({TARGET: options.target, **keywords}, "REWARD") if is_made else named
    if options.limit < 2:
        raise ValueError(f"--limit must be at least 2, got {options.limit}")
    arrays = read_crystals(options.crystals, split="train").arrays
    stride = -(-len(arrays) // options.limit) or 1  # evenly spaced: data sets are often sorted
    report = _checked(
        options.target, lambda: check_reward(reward, CrystalBatch.from_arrays(arrays[::stride]))
    )
    console = Console()
    console.print(f"[green]{options.target} keeps the contract[/green] on {report.num_crystals} crystals")
    console.print(f"rewards from {report.lowest:.4g} to {report.highest:.4g}, mean {report.mean:.4g}")
    if report.num_failed:
        console.print(f"{report.num_failed} crystals got NaN; in a run they get the floor")
    kind = "compares the crystals of a batch" if report.is_collective else "judges each crystal alone"
    console.print(f"{kind}; {report.seconds_per_100:.3g} s per 100 structures")
    return 0


def _checked(target: str, check: Callable[[], RewardReport]) -> RewardReport:
    """The report; what the reward itself raises becomes one sentence that says where.

    Raises:
        ValueError: when the contract is broken, or the reward raises.
    """
    try:
        return check()
    except ValueError:
        raise
    except Exception as error:  # code of the user may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{target} must give a number for every crystal, but it raised {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        ) from error


def _option(text: str) -> tuple[str, Any]:
    """`target=8.0` as a name and a value in JSON's notation; what is none is text.

    Raises:
        ValueError: without an equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"arguments of a reward must be given as key=value, got {text!r}")
    try:
        return name, parse_json(value)
    except json.JSONDecodeError:
        return name, value
