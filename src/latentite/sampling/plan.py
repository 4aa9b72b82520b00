"""A generator and what is asked of it, made into a run; everything that it cannot do is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from latentite.base.files import sha256_file
from latentite.base.plain import names, numbers
from latentite.generators.asks import build_asks
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.protocol import Advance, Askable, Drawn, Generator
from latentite.generators.sizes import NumAtoms, choose_num_atoms, plan_jobs
from latentite.sampling.checks import GeometryLimits
from latentite.sampling.options import GenerateConfig, parse_shard, read_formulas
from latentite.sampling.run import Run
from latentite.sampling.window import shard_range, window_size


def plan_run(generator: Generator, config: GenerateConfig) -> tuple[Run, tuple[Ask, ...]]:
    """The run, or the shard of it, and what it asks.

    Raises:
        ValueError: for what the generator cannot do, and options that contradict each other.
    """
    if generator.card.has_trajectory and config.out is None:
        raise ValueError("out must be given together with trajectory, which is about its files")
    shard = parse_shard(config.shard)
    units = config.formula_units
    asks = build_asks(
        generator,
        conditions=config.conditions,
        formulas=read_formulas(config.formula),
        formula_units=None if units is None else numbers("formula_units", units),
        allowed=config.elements_allowed,
        required=config.elements_required,
        forbidden=config.elements_forbidden,
    )
    total = config.num_samples * (1 + asks[-1].request)
    size = window_size(config.batch_size)
    first, stop = shard_range(total, *shard, size)

    def draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        return generator.draw(jobs, seed=config.seed, batch_size=batch_size, advance=advance)

    run = Run(
        plan=partial(
            plan_jobs,
            seed=config.seed,
            sizes=_sizes(generator, config, asks),
            asks=asks,
            num_samples=config.num_samples,
        ),
        draw=draw,
        seed=config.seed,
        total=total,
        first=first,
        stop=stop,
        window_size=size,
        batch_size=config.batch_size,
        max_attempts=1 if config.no_replace else config.max_attempts,
        limits=GeometryLimits(min_distance_scaled=config.min_distance_scaled),
        conditions=generator.card.told,
        has_deviation=generator.card.has_deviation,
    )
    return run, asks


def _sizes(generator: Generator, config: GenerateConfig, asks: Sequence[Ask]) -> NumAtoms | None:
    """From what numbers of atoms are drawn; None where the requests say them, or the generator chooses."""
    card, option = generator.card, config.size_option
    if all(ask.num_atoms is not None for ask in asks):
        if option is not None:
            raise ValueError(
                f"{option} must not be given with a condition or structures that say how many atoms there are; "
                "leave one out"
            )
        return None
    if option is not None and Askable.NUM_ATOMS not in card.asks:
        raise ValueError(
            f"{option} must not be given: the generator {card.kind} cannot be asked for a number of atoms"
        )
    if option is None and not card.needs_num_atoms:
        return None
    return choose_num_atoms(config.num_atoms, config.num_atoms_distribution, train=card.sizes)


def plain_settings(generator: Generator, config: GenerateConfig) -> dict[str, Any]:
    """Every option that the files depend on, as plain values; contents of files by their hash."""
    left_out = ("ckpt", "out", "device", "resume")
    settings = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in left_out}
    units, weights = config.formula_units, generator.card.weights
    settings |= {
        "weights": None if weights is None else weights.value,
        "conditions": _conditions_text(config.conditions),
        "num_atoms": None if config.num_atoms is None else str(config.num_atoms),
        "num_atoms_distribution": str(config.num_atoms_distribution),
        "formula": read_formulas(config.formula),
        "formula_units": None if units is None else numbers("formula_units", units),
        "format": [name.value for name in config.formats()],
    }
    for name in ("elements_allowed", "elements_required", "elements_forbidden"):
        value = settings[name]
        settings[name] = None if value is None else names(value)
    if config.num_atoms_distribution != "train" and config.num_atoms is None:
        settings["num_atoms_distribution_sha256"] = sha256_file(config.num_atoms_distribution)
    return settings | dict(generator.settings)


def _conditions_text(conditions: str | Mapping[str, object] | None) -> str | None:
    if isinstance(conditions, Mapping):
        return ",".join(f"{name}={value}" for name, value in conditions.items())
    return conditions
