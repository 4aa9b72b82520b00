"""From what a user asks (conditions, formulas, elements, structures) to asks, checked against the model.

What a model cannot do is refused here, before anything is sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentite.elements import ATOMIC_NUMBER, MAX_ATOMIC_NUMBER, SYMBOLS
from latentite.formulas import parse_amounts
from latentite.generators.elements import element_numbers
from latentite.generators.jobs import Ask, ElementRules
from latentite.generators.latent.capability import (
    Guidance,
    conditions_of,
    refuse_elements,
    refuse_fixed,
    refuse_guidance,
    refuse_sizes,
)
from latentite.generators.latent.start import Start
from latentite.generators.sizes import NumAtoms
from latentite.nn.condition_values import ConditionKind, ConditionValue, parse_conditions
from latentite.nn.ldm import LatentDiffusion


def build_asks(
    network: LatentDiffusion,
    *,
    train_sizes: NumAtoms | None,
    conditions: str | Mapping[str, object] | None = None,
    formulas: Sequence[str] = (),
    formula_units: Sequence[int] | None = None,
    allowed: Sequence[str] | str | None = None,
    required: Sequence[str] | str | None = None,
    forbidden: Sequence[str] | str | None = None,
    guidance: Guidance = 2.0,
    start: Start | None = None,
) -> tuple[Ask, ...]:
    """What a run asks: one request per formula (or one in all) and starting structure, ordered by request.

    A request for a formula has one ask for each number of formula units, which `plan_jobs` draws from: by
    default the multiples whose number of atoms occurs in training, as often as there; if units are given, these
    equally often. A model with conditions that follow from a formula (composition, chemical system) is told them.

    Args:
        network: the model.
        train_sizes: sizes of its training set; None where the checkpoint does not say, which makes one formula
            unit the default and lifts the limit on atoms.
        conditions: `band_gap=2.0,chemical_system=Li-Fe-O` or a mapping.
        formulas: with whole numbers, such as LiFePO4.
        formula_units: of each formula.
        allowed: symbols of the elements that may occur; all by default.
        required: symbols of elements that must occur.
        forbidden: symbols of elements that must not.
        guidance: see `chain.SamplingConfig`.
        start: structures to start from.

    Raises:
        ValueError: for what the model cannot do, or what contradicts itself.
    """
    module = network.condition_module
    configs = [] if module is None else module.config.conditions
    given = parse_conditions(conditions, configs) if conditions else {}
    sizes = {given[c.name] for c in configs if c.kind is ConditionKind.NUM_ATOMS and c.name in given}
    num_atoms = next((int(size) for size in sizes if isinstance(size, int | float)), None)
    rules = element_rules(allowed, required, forbidden)
    base = Ask(
        label="" if rules is None else _describe(rules), conditions=given, elements=rules, num_atoms=num_atoms
    )
    asks = _per_formula(network, base, formulas, formula_units, train_sizes)
    if start is not None:
        asks = _start_asks(network, asks, start)
    refuse_sizes(asks, train_sizes)
    refuse_elements(network, asks)
    refuse_guidance(network, asks, given, guidance)
    return tuple(asks)


def _per_formula(
    network: LatentDiffusion,
    base: Ask,
    formulas: Sequence[str] | str,
    formula_units: Sequence[int] | None,
    train_sizes: NumAtoms | None,
) -> list[Ask]:
    """The asks of every formula in turn; what is asked anyway, without any."""
    if isinstance(formulas, str):
        formulas = [formulas]
    if not formulas:
        if formula_units is not None:
            raise ValueError("formula_units must be given together with a formula, got no formula")
        return [base]
    if base.elements is not None:
        raise ValueError(
            "elements_allowed, _required and _forbidden must not be given with a formula, which fixes all"
        )
    return [
        ask
        for request, formula in enumerate(formulas)
        for ask in _formula_asks(network, replace(base, request=request), formula, formula_units, train_sizes)
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


def element_rules(
    allowed: Sequence[str] | str | None,
    required: Sequence[str] | str | None,
    forbidden: Sequence[str] | str | None,
) -> ElementRules | None:
    """The rules that the options state; None without any.

    Raises:
        ValueError: for unknown symbols, or options that contradict each other.
    """
    if allowed is None and not required and not forbidden:
        return None
    must = element_numbers("elements_required", required or ())
    never = element_numbers("elements_forbidden", forbidden or ())
    may = range(1, MAX_ATOMIC_NUMBER + 1) if allowed is None else element_numbers("elements_allowed", allowed)
    left = tuple(z for z in may if z not in never)
    if not left:
        raise ValueError("elements_allowed must leave an element that is not in elements_forbidden, got none")
    impossible = [SYMBOLS[z - 1] for z in must if z not in left]
    if impossible:
        raise ValueError(f"elements_required must be allowed and not forbidden, got {impossible[0]}")
    return ElementRules(allowed=left if allowed is not None or never else None, required=must)


def formula_unit(formula: str) -> tuple[int, ...]:
    """Atomic number of every atom of a formula unit, in increasing order.

    Raises:
        ValueError: for what is no formula, fractions of atoms, or elements that have no class.
    """
    try:
        amounts = parse_amounts(formula)
    except ValueError as error:
        raise ValueError(f"formula must be written such as LiFePO4, got '{formula}'") from error
    if not amounts or any(amount != int(amount) or amount < 1 for amount in amounts.values()):
        raise ValueError(f"formula must have whole numbers of atoms, such as Li2Fe2O5, got '{formula}'")
    element_numbers("formula", list(amounts))
    return tuple(sorted(ATOMIC_NUMBER[symbol] for symbol, n in amounts.items() for _ in range(int(n))))


def _formula_asks(
    network: LatentDiffusion,
    base: Ask,
    formula: str,
    units: Sequence[int] | None,
    train_sizes: NumAtoms | None,
) -> list[Ask]:
    """One ask for each number of formula units."""
    unit = formula_unit(formula)
    if units is not None:
        if not units or min(units) < 1:
            raise ValueError(f"formula_units must be 1 or more, got {', '.join(map(str, units)) or 'none'}")
        weights = dict.fromkeys(units, 1.0)
    elif train_sizes is None:
        weights = {1: 1.0}
    else:
        multiples = range(1, train_sizes.largest // len(unit) + 1)
        weights = {
            n: train_sizes.weight(n * len(unit)) for n in multiples if train_sizes.weight(n * len(unit)) > 0
        }
        if not weights:
            raise ValueError(
                f"formula {formula} must fit in a size that the model has seen, up to {train_sizes.largest} atoms, "
                f"but no multiple of its {len(unit)} atoms does; another model may do"
            )
    asks = []
    for number, weight in weights.items():
        composition = tuple(sorted(unit * number))
        label = formula if number == 1 else f"{formula} x {number}"
        ask = replace(base, label=label, weight=weight)
        asks.append(_with_composition(network, ask, composition))
    if base.num_atoms is not None:
        asks = [ask for ask in asks if ask.num_atoms == base.num_atoms]
        if not asks:
            raise ValueError(f"num_atoms must fit the formula {formula}, got {base.num_atoms}")
    return asks


def _with_composition(network: LatentDiffusion, ask: Ask, composition: tuple[int, ...]) -> Ask:
    """The ask for exactly these atoms, with the conditions that follow from them."""
    amounts = Counter(composition)
    follows: dict[ConditionKind, ConditionValue] = {
        ConditionKind.COMPOSITION: {SYMBOLS[z - 1]: n / len(composition) for z, n in amounts.items()},
        ConditionKind.CHEMICAL_SYSTEM: tuple(SYMBOLS[z - 1] for z in amounts),
    }
    conditions = dict(ask.conditions)
    for name, kind in conditions_of(network):
        if kind in follows and name in conditions:
            raise ValueError(
                f"condition {name} must not be given together with a formula, which says it already"
            )
        if kind in follows:
            conditions[name] = follows[kind]
    return replace(ask, conditions=conditions, composition=composition, num_atoms=len(composition))


def _start_asks(network: LatentDiffusion, asks: Sequence[Ask], start: Start) -> list[Ask]:
    """Every request once for each structure to start from, where their numbers of atoms agree."""
    result = []
    num_starts = len(start.crystals)
    counts = start.crystals.num_atoms.tolist()
    structures = start.crystals.atomic_numbers.split(counts)
    for request in range(asks[-1].request + 1):
        ways = [ask for ask in asks if ask.request == request]
        for number, atoms in enumerate(structures):
            fitting = [ask for ask in ways if ask.num_atoms in (None, len(atoms))]
            if not fitting:
                raise ValueError(
                    f"formula and num_atoms must fit the structure to start from, which has {len(atoms)} atoms; "
                    f"got {' or '.join(str(ask.num_atoms) for ask in ways)}"
                )
            numbers = tuple(atoms.tolist())
            fixed = tuple(atoms[start.fixed[number, : len(atoms)]].tolist())
            for ask in fitting:
                begun = replace(
                    ask, num_atoms=len(atoms), start=number, request=request * num_starts + number
                )
                if ask.composition is None and not network.config.vae.atom_type_predict:
                    begun = _with_composition(network, begun, numbers)
                refuse_fixed(network, begun, numbers, fixed)
                result.append(begun)
    return result


def _describe(rules: ElementRules) -> str:
    """A label such as "only Li-Fe-O, with Li"."""
    parts = []
    if rules.allowed is not None and len(rules.allowed) <= MAX_ATOMIC_NUMBER // 2:
        parts.append("only " + "-".join(SYMBOLS[z - 1] for z in rules.allowed))
    elif rules.allowed is not None:
        never = sorted(set(range(1, MAX_ATOMIC_NUMBER + 1)) - set(rules.allowed))
        parts.append("without " + "-".join(SYMBOLS[z - 1] for z in never))
    if rules.required:
        parts.append("with " + "-".join(SYMBOLS[z - 1] for z in rules.required))
    return ", ".join(parts)
