"""`latentite sample` and `latentite sample merge`: the command line of `generate.py` and `sampling/merge.py`.

Called by `cli.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from latentite.generate import GenerateResult
    from latentite.sampling.folder import Counts

EPILOG = """examples:
  latentite sample --num-samples 100 --out samples
  latentite sample --ckpt last.ckpt --num-samples 1000 --out samples
  latentite sample --ckpt last.ckpt --formula LiFePO4 --formula-units 1,2,4 --num-samples 20 --out csp
  latentite sample --ckpt last.ckpt --conditions "band_gap=2.0,chemical_system=Li-Fe-O" --guidance 2 --out gap
  latentite sample --ckpt last.ckpt --init structure.cif --strength 0.3 --num-samples 16 --out near
  latentite sample --num-samples 100000 --shard 2/8 --resume --out part2
  latentite sample merge part1 part2 part3 part4 part5 part6 part7 part8 --out samples"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sample` and `sample merge`; they set `func`, arguments to exit code. `cli.py` reports mistakes."""
    _register_merge(subparsers)
    command = subparsers.add_parser(
        "sample",
        help="sample new crystals from a trained latent diffusion model",
        description="Sample crystals and write them as files, in order, with a manifest. Crystal i of a seed does not\n"
        "depend on the batch size, on shards or on interruptions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the defaults are those of GenerateConfig
    )
    command.add_argument(
        "--ckpt", metavar="CKPT", help="a checkpoint file, or a hub name [the bundled mp_20_biternary_ldm]"
    )
    command.add_argument(
        "--out", required=True, metavar="DIR", help="a new or empty folder, or with --resume that of the run"
    )
    command.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help="how many crystals; of each formula where formulas are given [64]",
    )
    command.add_argument("--batch-size", type=int, metavar="N", help="most crystals at once [256]")
    command.add_argument("--seed", type=int, metavar="N", help="of everything random [0]")
    command.add_argument("--format", metavar="LIST", help="cif, extxyz, json, joined by commas [cif,extxyz]")
    _add_chain(command.add_argument_group("how it is sampled"))
    _add_requests(command.add_argument_group("what is asked"))
    _add_start(command.add_argument_group("start from structures"))
    _add_campaign(command.add_argument_group("long runs"))
    command.set_defaults(func=_sample)


def _register_merge(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # A command of two words, as `cli.py` joins them: its name is also what the help shows.
    command = subparsers.add_parser(
        "sample merge",
        description="Join the folders of all shards of a run into the folder of the whole run: the same files as "
        "without shards, to be evaluated, or extended by --resume. Unfinished, damaged, missing and doubled parts "
        "and parts of other runs are refused.",
    )
    command.add_argument(
        "parts", nargs="+", metavar="PART", type=Path, help="folder of a shard, in any order"
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    command.set_defaults(func=_merge)


def _add_chain(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ddpm, dpm_solver; heun, euler, flow_sde for flows [ddim or heun]",
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="denoising steps, at most those of the schedule [25 for heun, else 50]",
    )
    group.add_argument(
        "--eta", type=float, metavar="X", help="noise that ddim and flow_sde add: 0 is deterministic [1]"
    )
    group.add_argument(
        "--noise-scale",
        type=float,
        metavar="X",
        help="times the noise of flow_sde: below 1 likelier crystals, and fewer kinds of them [1]",
    )
    group.add_argument(
        "--guidance",
        metavar="S",
        help="s of u + s (c - u), u without and c with the condition: a number, or name=number,... [2]",
    )
    group.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps [auto]")
    group.add_argument("--precision", metavar="NAME", help="of the denoiser: fp32, bf16, fp16 [fp32]")
    group.add_argument(
        "--weights", metavar="NAME", help="ema (moving average) or raw (last step) [ema where there is one]"
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--conditions",
        metavar="NAME=VALUE,...",
        help="values of properties, such as band_gap=2.0,chemical_system=Li-Fe-O",
    )
    group.add_argument(
        "--num-atoms", metavar="N|N:M", help="atoms per cell, such as 12 or 8:20 [as in training]"
    )
    group.add_argument(
        "--num-atoms-distribution",
        metavar="train|FILE",
        help="from where numbers of atoms are drawn: the training set, or a CSV or JSON of counts [train]",
    )
    group.add_argument(
        "--formula", action="append", metavar="FORMULA|FILE", help="exactly this composition; repeatable"
    )
    group.add_argument(
        "--formula-units", metavar="LIST", help="formula units per cell, such as 1,2,4 [as in training]"
    )
    group.add_argument("--elements-allowed", metavar="LIST", help="no other elements, such as Li,Fe,O")
    group.add_argument(
        "--elements-required", metavar="LIST", help="each of these at least once, such as Li,O"
    )
    group.add_argument("--elements-forbidden", metavar="LIST", help="none of these, such as Pb,Hg")


def _add_start(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--init", metavar="FILE", help="a file or folder of structures to start from")
    group.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help="how far from them, from 0 to 1: the share of the steps that are taken, such as 0.3",
    )
    group.add_argument(
        "--fix-sites", metavar="LIST", help="atoms of them to keep, counted from 0, such as 0,1"
    )
    group.add_argument("--fix-species", metavar="LIST", help="elements whose atoms are kept, such as O")


def _add_campaign(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in DIR, if there is one; a larger --num-samples extends it",
    )
    group.add_argument("--shard", metavar="K/N", help="the K-th of N parts of the run, each into its own DIR")
    group.add_argument("--no-replace", action="store_true", help="do not sample again what cannot be used")
    group.add_argument(
        "--max-attempts", type=int, metavar="N", help="tries at each crystal before it counts as failed [20]"
    )
    group.add_argument(
        "--trajectory", action="store_true", help="write every state on the way as a crystal, too"
    )


def _sample(arguments: argparse.Namespace) -> int:
    # Imported here: torch and the networks take seconds, and `--help` should not.
    from latentite.generate import generate_from, split_options

    options = {name: value for name, value in vars(arguments).items() if name != "func"}
    typed = sys.argv[1:]
    command = ["latentite", *([] if typed[:1] == ["sample"] else ["sample"]), *typed]  # or src/sample.py
    result = generate_from(*split_options(options), command=command)
    _print(summary_lines(result))
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from latentite.sampling.merge import merge

    counts = merge(arguments.parts, arguments.out)
    _print([counts_line(counts.done, counts), f"structures in {arguments.out}"])
    return 0


def _print(lines: list[str]) -> None:
    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_lines(result: GenerateResult) -> list[str]:
    """What became of a run, in words."""
    counts = result.counts
    lines = [counts_line(result.asked, counts)]
    if result.has_requests:
        lines.append(f"requests verified: {counts.verified} of {counts.written} written crystals")
    lines.append(f"structures in {result.out}")
    return lines


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
