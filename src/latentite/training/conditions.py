"""The conditions of a run: `data.target_condition` names them, `condition_module` says how they are trained.

`resolve_conditions` joins the two with what the data say of each name into the network's own `ConditionModuleConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from latentite.data.dataset import CrystalDataset
from latentite.data.labels import require_numbers
from latentite.nn.condition_values import LABELS, ConditionConfig, ConditionKind, Transform
from latentite.nn.conditions import ConditionModuleConfig

FROM_CRYSTAL = tuple(kind.value for kind in ConditionKind if kind not in LABELS)
"""Conditions that are read off the crystal itself: their names are those of their kinds, and no label is
loaded for them."""

UNITS = {
    "band_gap": "eV",
    "dft_band_gap": "eV",
    "formation_energy_per_atom": "eV/atom",
    "energy_above_hull": "eV/atom",
    "e_above_hull": "eV/atom",
    "density": "g/cm^3",
    ConditionKind.VOLUME_PER_ATOM.value: "Å^3",
}
"""Units of well-known properties; others are given in `condition_module.conditions.<name>.unit`."""


@dataclass(kw_only=True, slots=True)
class ConditionOptions:
    """Options of one condition; everything has a default."""

    kind: ConditionKind | None = None
    """null: by the name for what is read off the crystal and for `space_group`, scalar for what has a unit in `UNITS`;
    else categorical where the labels are names and scalar where they are numbers."""
    unit: str | None = None
    transform: Transform = Transform.NONE
    drop_probability: float | None = None
    """null: that of the module."""


@dataclass(kw_only=True, slots=True)
class ConditionModuleOptions:
    """Training of conditions: `condition_module` of the stage's section; `{}` takes all defaults."""

    drop_probability: float = 0.1
    """Probability in training that a condition alone is hidden."""
    row_drop_probability: float = 0.1
    """Probability that all conditions of a crystal are hidden together."""
    descriptors: bool = False
    """Tell compositions and chemical systems with stoichiometry, roles, means and spreads of their elements, too."""
    conditions: dict[str, ConditionOptions] = field(default_factory=dict)
    """Details by name, for names of `data.target_condition`."""

    def __post_init__(self) -> None:
        for name in ("drop_probability", "row_drop_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


def check_conditions(
    names: Sequence[str], options: ConditionModuleOptions | None, *, section: str = "ldm_module"
) -> None:
    """Refuse a conditional run without a condition module, and the other way round.

    Args:
        names: `data.target_condition`.
        options: `condition_module` of the stage's section.
        section: its name.

    Raises:
        ValueError: saying which of the two is missing.
    """
    if names and options is None:
        raise ValueError(
            f"data.target_condition={list(names)} needs a condition module, but {section}.condition_module is null; "
            f"set {section}.condition_module={{}} or leave data.target_condition out"
        )
    if options is None:
        return
    if not names:
        raise ValueError(
            f"{section}.condition_module needs conditions, but data.target_condition is empty; "
            f"set data.target_condition=[...] or {section}.condition_module=null"
        )
    if unknown := [name for name in options.conditions if name not in names]:
        raise ValueError(
            f"{section}.condition_module.conditions.{unknown[0]} must be one of data.target_condition "
            f"({', '.join(names)})"
        )


def resolve_conditions(
    names: Sequence[str],
    options: ConditionModuleOptions | None,
    *,
    categories: Mapping[str, Sequence[str]],
    hidden_size: int,
    section: str = "ldm_module",
) -> ConditionModuleConfig | None:
    """The network's condition module for these names; None for an unconditional run.

    Args:
        names: `data.target_condition`.
        options: `condition_module` of the stage's section.
        categories: of the data set: the names behind the codes of its categorical labels.
        hidden_size: of the network that takes them.
        section: name of the stage's section, for messages.

    Raises:
        ValueError: when one of names and options is missing, or an option does not fit its condition.
    """
    check_conditions(names, options, section=section)
    if options is None:
        return None
    return ConditionModuleConfig(
        conditions=[_resolve(name, options, categories) for name in names],
        hidden_size=hidden_size,
        row_drop_probability=options.row_drop_probability,
        descriptors=options.descriptors,
    )


def _resolve(
    name: str, options: ConditionModuleOptions, categories: Mapping[str, Sequence[str]]
) -> ConditionConfig:
    said = options.conditions.get(name, ConditionOptions())
    kind = said.kind or _kind_of(name, categories)
    if kind.value in FROM_CRYSTAL and kind.value != name:
        raise ValueError(
            f"a condition of kind {kind} must be called {kind} in data.target_condition, got {name}"
        )
    return ConditionConfig(
        name=name,
        kind=kind,
        unit=UNITS.get(name, "") if said.unit is None else said.unit,
        transform=said.transform,
        classes=list(categories.get(name, ())) if kind is ConditionKind.CATEGORICAL else [],
        drop_probability=options.drop_probability if said.drop_probability is None else said.drop_probability,
    )


def _kind_of(name: str, categories: Mapping[str, Sequence[str]]) -> ConditionKind:
    if name in FROM_CRYSTAL or name == ConditionKind.SPACE_GROUP.value:
        return ConditionKind(name)
    # Energies and the like are numbers: where their labels are names, something is wrong (`check_labels`).
    is_class = name in categories and name not in UNITS
    return ConditionKind.CATEGORICAL if is_class else ConditionKind.SCALAR


def check_labels(conditions: Sequence[ConditionConfig], train: CrystalDataset) -> None:
    """Refuse labels that are names where a condition takes numbers, or that are other names than its classes.

    Raises:
        ValueError: naming the condition, and the first crystal with a label that does not fit.
    """
    for condition in conditions:
        name, classes = condition.name, list(train.categories.get(condition.name, ()))
        if condition.kind is ConditionKind.CATEGORICAL:
            if classes != condition.classes:
                raise ValueError(
                    f"condition {name} must have labels of the classes {condition.classes}, got "
                    f"{classes or 'numbers'}; build the data with --categorical {name}, from the same names"
                )
        elif condition.kind in LABELS:
            require_numbers(train, name, use=f"condition {name} of kind {condition.kind}")


def kept_conditions(
    base: ConditionModuleConfig, run: ConditionModuleConfig | None, *, setting: str = "ldm_ckpt_path"
) -> ConditionModuleConfig:
    """The conditions of a model that is fine-tuned, with the run's drop probabilities.

    Args:
        base: the model's.
        run: those of the run.
        setting: that names the model, for messages.

    Raises:
        ValueError: when the run's conditions are not the base's, in name, order or meaning.
    """
    names = [condition.name for condition in base.conditions]
    found = [] if run is None else [condition.name for condition in run.conditions]
    if run is None or found != names:
        raise ValueError(
            f"data.target_condition must be [{', '.join(names)}], the conditions of the base ({setting}), "
            f"got [{', '.join(found)}]; only an unconditional base can be given conditions"
        )
    for own, stated in zip(run.conditions, base.conditions, strict=True):
        other = stated if stated.unit else replace(stated, unit=own.unit)  # imported ones do not state units
        if _meaning(own) != _meaning(other):
            raise ValueError(
                f"condition {own.name} must mean what it means in the base ({setting}), "
                f"{_meaning(other)}, got {_meaning(own)}"
            )
    return replace(run, absent=base.absent)


def _meaning(condition: ConditionConfig) -> dict[str, object]:
    """Properties of a condition that must not change between base and fine-tuning."""
    return {
        "kind": str(condition.kind),
        "unit": condition.unit,
        "transform": str(condition.transform),
        "classes": condition.classes,
    }
