"""From what a user asks (conditions, formulas, elements) to asks that a generator accepts.

What it cannot do is refused here, before anything is sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentite.elements import ATOMIC_NUMBER, MAX_ATOMIC_NUMBER, SYMBOLS
from latentite.formulas import parse_amounts
from latentite.generators.elements import element_numbers
from latentite.generators.jobs import Ask, ElementRules
from latentite.generators.protocol import Askable, Generator, GeneratorCard
from latentite.generators.sizes import NumAtoms
from latentite.nn.condition_values import (
    ConditionConfig,
    ConditionKind,
    ConditionValue,
    parse_conditions,
)


def build_asks(
    generator: Generator,
    *,
    conditions: str | Mapping[str, object] | None = None,
    formulas: Sequence[str] | str = (),
    formula_units: Sequence[int] | None = None,
    allowed: Sequence[str] | str | None = None,
    required: Sequence[str] | str | None = None,
    forbidden: Sequence[str] | str | None = None,
) -> tuple[Ask, ...]:
    """The asks of a run: one request per formula, or one in all, as the generator accepts them, ordered by request.

    A request for a formula has one ask for each number of formula units, which `plan_jobs` draws from: by
    default the multiples whose number of atoms occurs in training, as often as there, or as often as the generator
    knows better; if units are given, these equally often. A generator with conditions that follow from a formula
    (composition, chemical system) is told them. Where nobody knows the sizes of the training set, one formula unit is
    the default, and atoms have no limit.

    Args:
        generator: that is to fulfil them.
        conditions: `band_gap=2.0,chemical_system=Li-Fe-O` or a mapping.
        formulas: with whole numbers, such as LiFePO4.
        formula_units: of each formula.
        allowed: symbols of the elements that may occur; all by default.
        required: symbols of elements that must occur.
        forbidden: symbols of elements that must not.

    Raises:
        ValueError: for what the generator cannot do, or what contradicts itself.
    """
    card = generator.card
    given = parse_conditions(conditions, card.conditions) if conditions else {}
    sizes = {given[c.name] for c in card.conditions if c.kind is ConditionKind.NUM_ATOMS and c.name in given}
    num_atoms = next((int(size) for size in sizes if isinstance(size, int | float)), None)
    rules = element_rules(allowed, required, forbidden)
    base = Ask(
        label="" if rules is None else _describe(rules), conditions=given, elements=rules, num_atoms=num_atoms
    )
    asks = _per_formula(card, base, formulas, formula_units)
    _refuse_unable(card, asks)
    accepted = generator.accept(asks)
    refuse_sizes(accepted, card.sizes)
    return accepted


def _refuse_unable(card: GeneratorCard, asks: Sequence[Ask]) -> None:
    """Refuse what the generator cannot be asked, and elements that it does not make."""
    for ask in asks:
        if ask.composition is not None and Askable.FORMULA not in card.asks:
            raise ValueError(f"formula must not be given: the generator {card.kind} cannot be asked for one")
        if ask.elements is not None and Askable.ELEMENTS not in card.asks:
            raise ValueError(
                f"elements_* must not be given: the generator {card.kind} cannot be asked for elements"
            )
        needed = set(ask.composition or ()) | set(() if ask.elements is None else ask.elements.required)
        if foreign := needed - set(card.elements):
            raise ValueError(
                f"formula and elements_required must have elements that the generator {card.kind} makes, "
                f"got {SYMBOLS[min(foreign) - 1]}"
            )
        allowed = None if ask.elements is None else ask.elements.allowed
        if allowed is not None and not set(allowed) & set(card.elements):
            raise ValueError(
                f"elements_allowed must leave an element that the generator {card.kind} makes, got none"
            )


def refuse_sizes(asks: Sequence[Ask], train_sizes: NumAtoms | None) -> None:
    """Refuse cells that are larger than any in training, or too small for what they must hold."""
    for ask in asks:
        if ask.num_atoms is None:
            continue
        if train_sizes is not None and ask.num_atoms > train_sizes.largest:
            raise ValueError(
                f"{ask.label or 'a crystal'} must have at most {train_sizes.largest} atoms, the most that the model "
                f"has seen, got {ask.num_atoms}; ask for fewer formula units or a smaller cell"
            )
        if ask.num_atoms < ask.min_atoms:
            raise ValueError(
                f"num_atoms must be at least {ask.min_atoms}, one for each required element, got {ask.num_atoms}"
            )


def _per_formula(
    card: GeneratorCard, base: Ask, formulas: Sequence[str] | str, formula_units: Sequence[int] | None
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
        for ask in _formula_asks(card, replace(base, request=request), formula, formula_units)
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


def _formula_asks(card: GeneratorCard, base: Ask, formula: str, units: Sequence[int] | None) -> list[Ask]:
    """One ask for each number of formula units."""
    unit, train_sizes = formula_unit(formula), card.sizes
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
        ask = replace(base, label=label, weight=weight, is_by_size=units is None)
        asks.append(with_composition(card.conditions, ask, composition))
    if base.num_atoms is not None:
        asks = [ask for ask in asks if ask.num_atoms == base.num_atoms]
        if not asks:
            raise ValueError(f"num_atoms must fit the formula {formula}, got {base.num_atoms}")
    return asks


def with_composition(configs: Sequence[ConditionConfig], ask: Ask, composition: tuple[int, ...]) -> Ask:
    """The ask for exactly these atoms, with the conditions that follow from them."""
    amounts = Counter(composition)
    follows: dict[ConditionKind, ConditionValue] = {
        ConditionKind.COMPOSITION: {SYMBOLS[z - 1]: n / len(composition) for z, n in amounts.items()},
        ConditionKind.CHEMICAL_SYSTEM: tuple(SYMBOLS[z - 1] for z in amounts),
    }
    conditions = dict(ask.conditions)
    for name, kind in ((config.name, config.kind) for config in configs):
        if kind in follows and name in conditions:
            raise ValueError(
                f"condition {name} must not be given together with a formula, which says it already"
            )
        if kind in follows:
            conditions[name] = follows[kind]
    return replace(ask, conditions=conditions, composition=composition, num_atoms=len(composition))


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
