"""What a model can be asked: refusals in one sentence, before anything is sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from latentite.elements import SYMBOLS
from latentite.generators.jobs import Ask
from latentite.nn.condition_values import ConditionKind
from latentite.nn.denoiser import TokenIndex
from latentite.nn.ldm import LatentDiffusion

Guidance = float | Mapping[str, float]
"""One scale for all conditions, or one for each by name."""


def conditions_of(network: LatentDiffusion) -> list[tuple[str, ConditionKind]]:
    """Name and kind of each of the model's conditions."""
    module = network.condition_module
    return [] if module is None else [(config.name, config.kind) for config in module.config.conditions]


def refuse_fixed(
    network: LatentDiffusion, ask: Ask, numbers: tuple[int, ...], fixed: tuple[int, ...]
) -> None:
    """Refuse fixed atoms that the formula or the rules have no place for."""
    names = ", ".join(sorted({SYMBOLS[z - 1] for z in fixed}))
    if ask.composition is not None:
        if fixed and not network.config.vae.atom_type_predict and ask.composition != numbers:
            raise ValueError(
                "formula must be that of the structure where atoms are fixed in a structure-prediction model"
            )
        if Counter(fixed) - Counter(ask.composition):
            raise ValueError(f"formula must hold the fixed atoms ({names}), got {ask.label}")
    if ask.elements is None:
        return
    if ask.elements.allowed is not None and not set(fixed) <= set(ask.elements.allowed):
        raise ValueError(f"elements_allowed and _forbidden must allow the fixed atoms ({names})")
    if len(set(ask.elements.required) - set(fixed)) > len(numbers) - len(fixed):
        raise ValueError("elements_required must be no more than the atoms that are not fixed")


def refuse_elements(network: LatentDiffusion, asks: Sequence[Ask]) -> None:
    """Refuse what a structure-prediction model cannot do."""
    if network.config.vae.atom_type_predict:
        return
    if any(ask.elements is not None for ask in asks):
        raise ValueError(
            "elements_* must not be given: this model predicts structures, and is told its elements by a formula"
        )
    if any(ask.composition is None for ask in asks):
        raise ValueError("formula must be given: this model predicts structures, not elements")
    if ConditionKind.COMPOSITION not in {kind for _, kind in conditions_of(network)}:
        raise ValueError(
            "formula must be asked of a model with a composition condition: this one's denoiser "
            "is never told the elements"
        )
    if network.config.denoiser.index is TokenIndex.NONE:
        raise ValueError(
            "formula must be asked of a model that knows which token is which atom: this one predicts structures, "
            "but its denoiser has no token index (denoiser.index=none)"
        )


def refuse_guidance(network: LatentDiffusion, asks: Sequence[Ask], guidance: Guidance) -> None:
    """Refuse conditions that guidance would ignore, and scales of nothing."""
    conditions = conditions_of(network)
    if isinstance(guidance, Mapping):
        names = [name for name, _ in conditions]
        unknown = [name for name in guidance if name not in names]
        if unknown:
            raise ValueError(
                f"guidance must be for conditions of the model, which has: {', '.join(names) or 'none'}; "
                f"got {unknown[0]}"
            )
        missing = [name for ask in asks for name in _given(ask, conditions) if name not in guidance]
        if missing:
            raise ValueError(
                f"guidance must have a scale for each condition that is given, got none for {missing[0]}"
            )
    for ask in asks:
        for name in ask.conditions:
            scale = guidance.get(name, 1.0) if isinstance(guidance, Mapping) else guidance
            if scale == 0.0:
                what = f"condition {name}" if name in _given(ask, conditions) else f"formula {ask.label}"
                raise ValueError(
                    f"guidance must not be 0 where something is asked: 0 is the unconditional model and would "
                    f"ignore {what}; 1 is the conditional model"
                )


def _given(ask: Ask, conditions: Sequence[tuple[str, ConditionKind]]) -> list[str]:
    """Conditions that the user gave: not those that follow from the atoms."""
    follow = (ConditionKind.COMPOSITION, ConditionKind.CHEMICAL_SYSTEM)
    return [
        name
        for name, kind in conditions
        if name in ask.conditions and not (kind in follow and ask.composition is not None)
    ]


def ask_warnings(network: LatentDiffusion, asks: Sequence[Ask]) -> list[str]:
    """Sentences that the user should read: about compositions that a model does not aim at."""
    kinds = {kind for _, kind in conditions_of(network)}
    labels = {ask.label for ask in asks if ask.composition is not None}
    if not labels or ConditionKind.COMPOSITION in kinds:
        return []
    knows = (
        "is told the elements, but not how many of each"
        if ConditionKind.CHEMICAL_SYSTEM in kinds
        else "is not told the composition"
    )
    return [
        f"this model {knows}: the elements of {sorted(labels)[0]}{' and others' if len(labels) > 1 else ''} are "
        "put on the atoms of structures that were not made for that composition"
    ]
