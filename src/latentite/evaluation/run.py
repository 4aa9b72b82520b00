"""The walk of an evaluation: plan, read, measure each structure, compare, count. `latentite.evaluate` in Python.

    from latentite import evaluate
    result = evaluate("samples/", reference="mp_20", protocol="chemeleon2", out="report")
    print(result.rates["unique"])

In = scored + failed. A structure that one metric fails on keeps the others: that cell stays empty, the failure is
listed with its reason, and the rate's denominator leaves it out and says so. Everything that a user can get wrong is
refused before anything heavy (`Plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from latentite.base.machine import count_workers
from latentite.base.plain import check_seed
from latentite.data.properties import SYMPREC
from latentite.evaluation.condition_section import check_tolerances, condition_section
from latentite.evaluation.distribution_section import distribution_section
from latentite.evaluation.energy_section import energy_section
from latentite.evaluation.feature_section import feature_section
from latentite.evaluation.matching_section import matching_section, verdict_section
from latentite.evaluation.measure import BeginStep, LatentSpace, measure, open_latent_space, silent, timed
from latentite.evaluation.options import (
    EnergyOptions,
    EvaluateOptions,
    Protocol,
    find_protocol,
    reference_hull,
)
from latentite.evaluation.prediction_section import prediction_section
from latentite.evaluation.read import Crystals, Source, read_crystals, require_source
from latentite.evaluation.report import new_record, recording, write_report
from latentite.evaluation.result import (
    Evaluation,
    MakeSection,
    Work,
    count_rates,
    list_failures,
    make_table,
)
from latentite.evaluation.several import read_sources, sources_of
from latentite.evaluation.structure_section import (
    charge_section,
    measured_section,
    source_section,
    validity_section,
)
from latentite.metrics.rates import Rate


class Fingerprints(StrEnum):
    """By which coverage is measured."""

    RADIAL = "radial"
    CRYSTALNN = "crystalnn"
    """CDVAE's as well: about 0.3 s a crystal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Options that were checked."""

    energies: EnergyOptions | None
    fingerprints: Fingerprints
    space: LatentSpace | None
    tolerances: Mapping[str, float]

    @property
    def relax(self) -> str:
        """In a few words."""
        return "none" if self.energies is None else self.energies.name

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for the record of a run."""
        return {
            "relax": "none" if self.energies is None else self.energies.to_plain(),
            "fingerprints": self.fingerprints.value,
            "vae (sha256)": None if self.space is None else self.space.sha256,
            "tolerances": dict(self.tolerances),
        }

    def check_source(self, crystals: Crystals) -> None:
        """Check of the options that needs the source.

        Raises:
            ValueError: for tolerances of what was not asked, or an energy that was asked to be 0 without one.
        """
        check_tolerances(self.tolerances, crystals, has_energies=self.energies is not None)

    def sections(self, targets: Crystals | None) -> tuple[MakeSection, ...]:
        """The sections in their order, after those that every evaluation has."""
        makers = [
            feature_section(with_crystal_nn=self.fingerprints is Fingerprints.CRYSTALNN, space=self.space)
        ]
        if self.energies is not None:
            makers.append(energy_section(self.energies))
        makers.append(condition_section(self.tolerances))  # after the energies, which may be asked
        if targets is not None:
            makers.append(prediction_section(targets))
        return tuple(makers)


def make_plan(options: EvaluateOptions) -> Plan:
    """The plan for options as users give them.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `evaluate`.
    """
    if options.fingerprints not in list(Fingerprints):
        raise ValueError(
            f"--fingerprints must be one of {', '.join(Fingerprints)}, got {options.fingerprints!r}"
        )
    chosen = Fingerprints(options.fingerprints)
    needed = {"--fingerprints crystalnn": chosen is Fingerprints.CRYSTALNN, "--vae": options.vae is not None}
    for option, is_given in needed.items():
        if is_given and options.reference is None:
            raise ValueError(f"{option} must be given together with --reference, got nothing to compare with")
    return Plan(
        energies=_energy_options(options),
        fingerprints=chosen,
        space=None if options.vae is None else open_latent_space(options.vae),
        tolerances=dict(options.tolerances or {}),
    )


def _energy_options(options: EvaluateOptions) -> EnergyOptions | None:
    """The options of energies, checked before anything heavy; None without `--relax`."""
    relax, hull = options.relax, options.hull
    if relax == "none":
        if hull is not None:
            raise ValueError("--hull must be given together with --relax, got no potential to judge by")
        return None
    energies = EnergyOptions(potential=relax) if isinstance(relax, str) else relax
    if hull is not None:
        energies = replace(energies, hull=(hull,) if isinstance(hull, str | Path) else tuple(hull))
    elif not energies.hull:
        energies = replace(energies, hull=reference_hull(options.reference))
    energies.check()
    return energies


SECTIONS: tuple[MakeSection, ...] = (
    source_section,
    measured_section,
    charge_section,
    validity_section,
    matching_section,
    verdict_section,
    distribution_section,
)
"""Those of every evaluation, in the order of the table and the page; `Plan.sections` adds others. Each sees the columns
of those before it."""


def evaluate(
    source: Source | Sequence[str | Path], *, stage: BeginStep = silent, **options: Any
) -> Evaluation:
    """Evaluate crystals, and write the report when `out` names a folder; the options are those of `EvaluateOptions`.

    Args:
        source: whatever the readers take: a folder or zip of CIFs, an extxyz, a table, ..., a folder of
            `latentite sample`; the name of a dataset; structures in memory. A list of paths and names is several
            sources, evaluated as one.
        stage: hears of progress.
        options: under their names in `EvaluateOptions`.

    Raises:
        FileNotFoundError: when a path or dataset does not exist.
        ImportError: when the potential's package is not installed.
        ValueError: for an unknown protocol, split, potential or checkpoint, a source without any row, the same
            crystals twice, a seed below 0, workers below 1, tolerances of what was not asked, levels of theory that
            do not fit, or an `out` that cannot be resumed.
    """
    return evaluate_from(EvaluateOptions(source=source, **options), stage=stage)


def evaluate_from(options: EvaluateOptions, *, stage: BeginStep = silent) -> Evaluation:
    """As `evaluate`."""
    protocol = find_protocol(options.protocol)
    sources = sources_of(options.source)
    for option, given in (("--reference", options.reference), ("--targets", options.targets)):
        require_source(option, given)
    _check_out(options.out, resume=options.resume)
    check_seed(options.seed)
    count_workers(options.workers)
    plan = make_plan(options)
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        crystals = _read_source(sources, options.split, stage)
        known = _read_known("--reference", options.reference, options.reference_split, stage)
        wanted = _read_known("--targets", options.targets, options.targets_split, stage)
    plan.check_source(crystals)
    record = new_record(crystals, known, _settings(protocol, options.seed, plan, wanted))
    out = options.out
    with nullcontext() if out is None else recording(Path(out), record, resume=options.resume):
        work = _measure(
            crystals,
            known,
            protocol,
            workers=options.workers,
            seed=options.seed,
            stage=stage,
            seconds=seconds,
        )
        result = _evaluate(work, plan, wanted)
        if out is not None:
            _write(result, out, work)
    return result


def _settings(protocol: Protocol, seed: int, plan: Plan, targets: Crystals | None) -> dict[str, Any]:
    """Every option that the report depends on, for its record."""
    return {
        "protocol": protocol.name,
        "seed": seed,
        **plan.to_plain(),
        "targets (content)": None if targets is None else targets.content_hash,
    }


def _write(result: Evaluation, out: str | Path, work: Work) -> None:
    work.stage("write the report", None)
    with timed(work.seconds, "report"):
        write_report(result, out, seed=work.seed)


def _check_out(out: str | Path | None, *, resume: bool) -> None:
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    if resume and out is None:
        raise ValueError("--resume must be given together with --out, got no folder to go on in")


def _read_source(sources: Sequence[Source], split: str, stage: BeginStep) -> Crystals:
    crystals = read_sources(sources, split=split, advance=stage("read structures", None))
    if crystals.num_in == 0:
        raise ValueError(f"SOURCE must hold at least one structure, got none in {crystals.name}")
    return crystals


def _read_known(option: str, source: Source | None, split: str, stage: BeginStep) -> Crystals | None:
    """The crystals that the source is held against; None where nothing is given."""
    if source is None:
        return None
    name = option.removeprefix("--")
    known = read_crystals(source, split=split, advance=stage(f"read the {name}", None))
    if not len(known):
        raise ValueError(f"{option} must hold a usable crystal, got none in {known.name}")
    return known


def _measure(
    crystals: Crystals,
    reference: Crystals | None,
    protocol: Protocol,
    *,
    workers: int | None,
    seed: int,
    stage: BeginStep,
    seconds: dict[str, float],
) -> Work:
    """Everything that a structure alone decides, of both sides."""
    one = partial(measure, workers=workers, seconds=seconds, stage=stage)
    measured = one(crystals)
    reference_measured = None
    if reference is not None:
        reference_measured = one(reference, symprecs=(SYMPREC,), name="reference: ")
    return Work(
        crystals=crystals,
        reference=reference,
        protocol=protocol,
        measured=measured,
        reference_measured=reference_measured,
        workers=workers,
        seed=seed,
        stage=stage,
        seconds=seconds,
    )


def _evaluate(work: Work, plan: Plan, targets: Crystals | None) -> Evaluation:
    """All sections, joined and counted."""
    crystals = work.crystals
    table, sections = make_table(work, (*SECTIONS, *plan.sections(targets)))
    counted = [item for section in sections for item in section.counted]
    readable = Rate(numerator=len(crystals), denominator=crystals.num_in)
    return Evaluation(
        crystals=crystals,
        reference=work.reference,
        protocol=work.protocol,
        relax=plan.relax,
        table=table,
        failures=tuple(list_failures(crystals, sections)),
        rates={"readable": readable, **count_rates(table, counted, num_in=crystals.num_in)},
        labels={"readable": "readable", **{item.column: item.label for item in counted if item.label}},
        sections=sections,
        measured=work.measured,
        reference_measured=work.reference_measured,
        seconds=work.seconds,
    )
