"""Options of `latentite evaluate`, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentite.base.files import parse_json

if TYPE_CHECKING:
    from latentite.evaluation.energy_options import EnergyOptions

SPLIT_CHOICES = ("train", "val", "test", "all")


def add_run(add: Callable[..., argparse.Action]) -> None:
    """Add what is measured against what, where the report goes, and how it is computed."""
    add(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder or zip of CIFs, an extxyz, a table, a folder of `latentite sample`, ..., or a dataset's name; "
        "several are evaluated as one",
    )
    add(
        "--reference",
        metavar="NAME_OR_FILE",
        help="what is known already, given like SOURCE; without it there is no novelty",
    )
    add(
        "--protocol",
        default="default",
        metavar="NAME",
        help="what counts as valid, unique and novel: default, chemeleon2, mattergen, cdvae, lemat [%(default)s]",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add(
        "--split",
        choices=SPLIT_CHOICES,
        default="test",
        help="which one of a SOURCE with splits [%(default)s]",
    )
    add(
        "--reference-split",
        choices=SPLIT_CHOICES,
        default="train",
        help="which one of the reference [%(default)s]",
    )
    add("--resume", action="store_true", help="go on where an evaluation of the same into --out was stopped")
    add("--workers", type=int, metavar="N", help="processes; they do not change the result [all cores]")
    add("--seed", type=int, default=0, metavar="N", help="draws the structures of the gallery [%(default)s]")


def add_comparisons(add: Callable[..., argparse.Action]) -> None:
    """Add what the report compares besides: features, conditions, targets."""
    add(
        "--fingerprints",
        default="radial",
        metavar="NAME",
        help="radial; crystalnn adds CDVAE's coverage, 0.3 s a crystal when it is new [%(default)s]",
    )
    add(
        "--vae", metavar="NAME_OR_PATH", help="checkpoint in whose latent space the reference is compared too"
    )
    add(
        "--tolerance",
        action="append",
        metavar="NAME=VALUE",
        help="how far from what was asked of NAME still hits, in its unit; repeatable; needed where 0 was asked "
        "[5 %% of the value]",
    )
    add(
        "--targets",
        metavar="NAME_OR_FILE",
        help="right structures of what was to be predicted; samples are compared with those of their formula",
    )
    add(
        "--targets-split",
        choices=SPLIT_CHOICES,
        default="test",
        help="which one of the targets [%(default)s]",
    )


def add_energies(add: Callable[..., argparse.Action]) -> None:
    """Add what judges and relaxes, and what the structures compete with."""
    add(
        "--relax",
        default="none",
        metavar="POTENTIAL",
        help="none, chgnet, 7net-0 or package.module:Class of an ASE calculator [%(default)s]",
    )
    add(
        "--relax-cell",
        choices=("full", "fixed", "none"),
        default="full",
        help="cell and atoms move, only atoms, or nothing (single points) [%(default)s]",
    )
    add("--relax-steps", type=int, default=500, metavar="N", help="most steps per structure [%(default)s]")
    add("--fmax", type=float, default=0.05, metavar="X", help="largest force at the end, eV/Å [%(default)s]")
    add(
        "--hull",
        action="append",
        metavar="NAME_OR_FILE",
        help="table with formation energies to compete with, every split of it; repeatable [the reference]",
    )
    add(
        "--hull-theory",
        metavar="LEVEL",
        help="level of theory of a hull without a known name, such as 'PBE(+U), corrected' (the Materials Project's)",
    )
    add(
        "--phase-diagram",
        type=Path,
        metavar="JSON",
        help="hull to take instead: a phase diagram or entries of pymatgen, or a hull of latentite; --hull still gives "
        "the element references",
    )
    add("--potential-arguments", metavar="JSON", help="keyword arguments of an ASE calculator")
    add("--potential-theory", metavar="LEVEL", help="what an ASE calculator's energies are, as --hull-theory")
    add(
        "--allow-mixed-theory",
        action="store_true",
        help="judge also when the levels of theory of potential and hull differ",
    )


def tolerances(given: Sequence[str]) -> dict[str, float]:
    """`--tolerance NAME=VALUE`, each once, by name.

    Raises:
        ValueError: for anything else.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--tolerance must be written NAME=VALUE with a number, got {text!r}") from None
        if name in found:
            raise ValueError(f"--tolerance {name} must be given once, got it twice")
        found[name] = number
    return found


def energy_options(arguments: argparse.Namespace) -> EnergyOptions | str:
    """The group of `add_energies` as `evaluate` takes it.

    Raises:
        ValueError: for arguments that are no JSON object, or what `EnergyOptions` refuses.
    """
    if arguments.relax == "none":
        return "none"
    from latentite.energy.catalogue import parse_theory
    from latentite.energy.relax import RelaxCell
    from latentite.evaluation.energy_options import EnergyOptions

    try:
        given = parse_json(arguments.potential_arguments or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(
            f"--potential-arguments must be a JSON object, got {arguments.potential_arguments!r}"
        )
    return EnergyOptions(
        potential=arguments.relax,
        cell=RelaxCell(arguments.relax_cell),
        max_steps=arguments.relax_steps,
        fmax=arguments.fmax,
        hull_theory=parse_theory(arguments.hull_theory) if arguments.hull_theory else None,
        phase_diagram=arguments.phase_diagram,
        arguments=given,
        theory=parse_theory(arguments.potential_theory) if arguments.potential_theory else None,
        allow_mixed_theory=arguments.allow_mixed_theory,
    )
