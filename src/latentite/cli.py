"""The `latentite` command: gathers the commands of `commands/`, runs one, and says in one line what is wrong.

Commands set `func`, from the parsed arguments to an exit code. Mistakes that the user can set right end with one line
and exit code 2. Imports are late, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from latentite import __version__

EPILOG = """examples:
  latentite demo
  latentite data build my_cifs/ --out data/mine
  latentite train vae data.data_dir=data/mine trainer=cpu trainer.max_epochs=50
  latentite vae reconstruct logs/.../checkpoints/last.ckpt my_cifs/ --out report
  latentite sample --ckpt last.ckpt --num-samples 1000 --out samples
  latentite evaluate samples/ --reference mp_20 --out report
  latentite predict predictor.ckpt samples/ --out table.csv
  latentite hub list

Each command has its own --help."""

TRAIN_HELP = """usage: latentite train STAGE [key=value ...] [--cfg job] [--multirun]

Stages: vae, ldm, rl, predictor, gpt.

examples:
  latentite train vae experiment=prototypes/vae_dng
  latentite train vae experiment=mp_20/vae_dng trainer=gpu logger.wandb.name=first
  latentite train vae experiment=mp_20/vae_dng --cfg job        print every setting
  latentite train vae experiment=mp_20/vae_dng ckpt_path=logs/.../checkpoints/last.ckpt    resume
  latentite train ldm experiment=prototypes/ldm_null ldm_module.vae_ckpt_path=logs/.../checkpoints/last.ckpt
  latentite train rl experiment=prototypes/rl_density rl_module.ldm_ckpt_path=logs/.../checkpoints/last.ckpt
  latentite train predictor experiment=prototypes/predictor_density predictor_module.vae_ckpt_path=logs/.../last.ckpt
  latentite train gpt experiment=prototypes/gpt

The keys are those of configs/, the same as for python src/train_vae.py, train_ldm.py, train_rl.py, train_predictor.py
and train_gpt.py.
"""

STAGES = ("vae", "ldm", "rl", "predictor", "gpt")

_CHILD = "LATENTITE_TRAIN_STAGE"
"""The stage, for the further processes of a distributed run: Lightning passes them the overrides only."""

GROUPS = {
    "demo": ("demo.register", "train every stage on embedded crystals and show what comes out"),
    "data": ("data.register", "datasets: build from your files, convert to HDF5, look into one"),
    "train": (None, "train a stage: latentite train vae|ldm|rl|predictor|gpt [key=value ...]"),
    "vae": ("reconstruct.register", "a trained VAE at work: rebuild crystals"),
    "predict": (
        "predictor.register_predict",
        "predict properties of any structures with a trained predictor",
    ),
    "sample": ("sample.register", "sample new crystals from a trained model"),
    "reward": ("reward.register", "rewards of reinforcement learning: check one of your own"),
    "evaluate": ("evaluate.register", "measure any set of structures against a reference"),
    "export": ("predictor.register_export", "a predictor at one fidelity as one file that runs elsewhere"),
    "baseline": ("predictor.register_baseline", "element baselines of a property: fit"),
    "hub": ("hub.register", "named checkpoints: list, download, verify, export, bundle"),
}
"""Groups of commands: the function of `latentite.commands` that completes the parser, and a line of help."""

TWO_WORDS = {"evaluate compare": "evaluate.register_compare", "sample merge": "sample.register_merge"}
"""Commands beside one that stands alone: a source of `evaluate` called `compare` is given as `./compare`."""


class CommandParser(argparse.ArgumentParser):
    """A parser, and the class of those below it, that answers an unknown option with the usage of its own command."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parsed arguments; ends the program when any is left, which argparse would leave to the outermost parser.

        A first pass requires nothing: a mistyped option is named before what is missing, which it may have been.
        """
        required = [action for action in self._actions if action.required]
        try:
            for action in required:
                action.required = False
            _, unknown = super().parse_known_args(args)
        finally:
            for action in required:
                action.required = True
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return super().parse_known_args(args, namespace)


def build_parser(group: str | None = None) -> argparse.ArgumentParser:
    """The parser with all groups, of which only the named one is imported and complete."""
    parser = CommandParser(
        prog="latentite",
        description="Inorganic crystals by staged latent generation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentite {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, line) in GROUPS.items():
        command = subparsers.add_parser(name, help=line)
        if function is not None and name == group:
            _complete(command, function)
    for words, function in TWO_WORDS.items():
        if words.split()[0] == group:
            _complete(subparsers.add_parser(words), function)
    return parser


def _complete(parser: argparse.ArgumentParser, function: str) -> None:
    module, _, name = function.partition(".")
    getattr(import_module(f"latentite.commands.{module}"), name)(parser)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments of any command but `train`; ends the program with the usage when they are wrong."""
    parser = build_parser(arguments[0] if arguments else None)
    first_two = " ".join(arguments[:2])
    return parser.parse_args([first_two, *arguments[2:]] if first_two in TWO_WORDS else arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if _CHILD in os.environ and "LOCAL_RANK" in os.environ:
        arguments = ["train", os.environ[_CHILD], *arguments]
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    parsed = parse(arguments)
    return _run(lambda: parsed.func(parsed))


def csv_to_dataset(argv: Sequence[str] | None = None) -> int:
    """The command `csv-to-dataset`."""
    from latentite.commands import data as commands

    return _run(lambda: commands.csv_to_dataset(argv))


def _run(command: Callable[[], int]) -> int:
    """Run with logging on; one line for what the user can set right."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return command()
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(TRAIN_HELP)
        return 0 if arguments else 2
    stage, *overrides = arguments
    if stage not in STAGES:
        sys.stderr.write(f"error: stage must be one of {', '.join(STAGES)}, got {stage!r}\n")
        return 2
    from latentite.config import run_stage

    os.environ[_CHILD] = stage
    sys.argv = [sys.argv[0], *overrides]
    run_stage(stage)
    return 0
