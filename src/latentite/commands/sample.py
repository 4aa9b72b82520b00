"""`latentite sample` and `latentite sample merge`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from latentite.base.options import add_options, fill, make_command, option, typed
from latentite.generators.gpt.options import GPTOptions
from latentite.generators.latent.options import LatentOptions
from latentite.sampling.options import GenerateConfig

if TYPE_CHECKING:
    from latentite.generation import GenerateResult
    from latentite.sampling.folder import Counts

EPILOG = """examples:
  latentite sample --num-samples 100 --out samples
  latentite sample --ckpt last.ckpt --num-samples 1000 --out samples
  latentite sample --ckpt last.ckpt --formula LiFePO4 --formula-units 1,2,4 --num-samples 20 --out csp
  latentite sample --ckpt last.ckpt --conditions "band_gap=2.0,chemical_system=Li-Fe-O" --guidance 2 --out gap
  latentite sample --ckpt last.ckpt --init structure.cif --strength 0.3 --num-samples 16 --out near
  latentite sample --num-samples 100000 --shard 2/8 --resume --out part2
  latentite sample merge part1 part2 part3 part4 part5 part6 part7 part8 --out samples"""


OF_GENERATORS = (LatentOptions, GPTOptions)
"""The options that only one generator has, of each of `GENERATORS`, which is not imported for a help text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeOptions:
    """Options of `latentite sample merge`."""

    parts: tuple[Path, ...] = field(metadata=option("PART", positional=True))
    """Folder of a shard, in any order."""
    out: Path = field(metadata=option("DIR"))
    """A new or empty folder."""


def register(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite sample`. `cli.py` reports mistakes."""
    parser.description = (
        "Sample crystals and write them as files, in order, with a manifest. Crystal i of a seed does not\n"
        "depend on the batch size, on shards or on interruptions."
    )
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_options(parser, GenerateConfig, *OF_GENERATORS, required=["out"])
    parser.set_defaults(func=_sample)


def register_merge(parser: argparse.ArgumentParser) -> None:
    """Make it `latentite sample merge`. `cli.py` reports mistakes."""
    make_command(
        parser,
        _merge,
        MergeOptions,
        description="Join the folders of all shards of a run into the folder of the whole run: the same files as "
        "without shards, to be evaluated, or extended by --resume. Unfinished, damaged, missing and doubled parts "
        "and parts of other runs are refused.",
    )


def _sample(arguments: argparse.Namespace) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.generation import generate_from

    given = sys.argv[1:]
    command = ["latentite", *([] if given[:1] == ["sample"] else ["sample"]), *given]  # or src/sample.py
    result = generate_from(*sample_options(arguments), command=command)
    _print(summary_lines(result))
    return 0


def sample_options(arguments: argparse.Namespace) -> tuple[GenerateConfig, dict[str, Any]]:
    """The options that every generator has, and what was typed of others, which the chosen generator takes or refuses.

    Raises:
        ValueError: what `GenerateConfig` refuses.
    """
    own = {name: value for kind in OF_GENERATORS for name, value in typed(kind, arguments).items()}
    return fill(GenerateConfig, arguments), own


def _merge(options: MergeOptions) -> int:
    from latentite.sampling.merge import merge

    counts = merge(options.parts, options.out)
    _print([counts_line(counts.done, counts), f"structures in {options.out}"])
    return 0


def _print(lines: list[str]) -> None:
    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_lines(result: GenerateResult) -> list[str]:
    """Summary of a run, in words."""
    counts = result.counts
    lines = [counts_line(result.asked, counts)]
    if counts.first_refused:
        lines.append(usable_line(counts))
    if result.has_requests:
        lines.append(f"requests verified: {counts.verified} of {counts.written} written crystals")
    lines.append(f"structures in {result.out}")
    return lines


def usable_line(counts: Counts) -> str:
    """The line with the first attempts that were usable, the reasons of the others, and all attempts."""
    first, attempts = (
        counts.done - sum(counts.first_refused.values()),
        counts.written + sum(counts.rejected.values()),
    )
    return (
        f"usable: {first} of {counts.done} first attempts{_kinds(counts.first_refused)}, "
        f"{counts.written} of {attempts} attempts in all"
    )


def counts_line(asked: int, counts: Counts) -> str:
    """The counts of a run in words."""
    replaced = f"{sum(counts.replaced.values())} replaced{_kinds(counts.replaced)}"
    left = {
        kind: rest
        for kind, number in counts.rejected.items()
        if (rest := number - counts.replaced.get(kind, 0))
    }
    return f"asked {asked}, written {counts.written}, {replaced}, {counts.failed} failed{_kinds(left)}"


def _kinds(numbers: dict[str, int]) -> str:
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{kind} {number}' for kind, number in ordered)})" if ordered else ""
