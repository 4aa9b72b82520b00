"""`latentite reward check`: the command line of `rewards/contract.py`, called by `cli.py`."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

from latentite.base.files import parse_json

if TYPE_CHECKING:
    from latentite.rewards.contract import RewardReport


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `reward check`; it sets `func`, from the arguments to the exit code. `cli.py` reports mistakes."""
    group = subparsers.add_parser("reward", help="rewards of reinforcement learning: check one of your own")
    commands = group.add_subparsers(required=True, metavar="{check}")
    check = commands.add_parser(
        "check",
        help="whether a reward keeps its promises, on real crystals",
        description="Call a reward on real crystals and check what it promises: one number each, the same in any\n"
        "order, alone and in a batch, and an input that stays as it is. Says what it costs.",
        epilog="examples:\n  latentite reward check my_reward.py:MyReward target=8.0\n"
        "  latentite reward check latentite.rewards.properties.SymmetryReward --crystals my_cifs/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "target", metavar="REWARD", help="file.py:Name or package.module.Name, class or function"
    )
    check.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="arguments of the class, values as JSON or text"
    )
    check.add_argument(
        "--crystals",
        default="prototypes",
        metavar="SOURCE",
        help="files of crystals, or the name of a dataset [%(default)s]",
    )
    check.add_argument(
        "--limit", type=int, default=100, metavar="N", help="call it on at most N crystals [%(default)s]"
    )
    check.set_defaults(func=_check)


def _check(arguments: argparse.Namespace) -> int:
    from latentite.crystal import CrystalBatch
    from latentite.evaluation.read import read_crystals
    from latentite.rewards.contract import check_reward
    from latentite.rewards.target import TARGET, build, locate

    found = locate(arguments.target)
    options = dict(_option(text) for text in arguments.arguments)
    is_made = isinstance(found, type) or options
    reward = build({TARGET: arguments.target, **options}, "REWARD") if is_made else found
    if arguments.limit < 2:
        raise ValueError(f"--limit must be at least 2, got {arguments.limit}")
    arrays = read_crystals(arguments.crystals, split="train").arrays
    stride = -(-len(arrays) // arguments.limit) or 1  # evenly spaced: data sets are often sorted
    report = _checked(
        arguments.target, lambda: check_reward(reward, CrystalBatch.from_arrays(arrays[::stride]))
    )
    console = Console()
    console.print(f"[green]{arguments.target} keeps the contract[/green] on {report.num_crystals} crystals")
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
