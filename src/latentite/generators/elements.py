"""Elements that keep what was asked: an exact composition, or rules, by optimal assignment of the decoder's logits.

Everything holds by construction, whatever the network says; among all choices that keep the rules, the most likely
one is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.elements import ATOMIC_NUMBER, MAX_ATOMIC_NUMBER, NUM_ELEMENT_CLASSES, NUM_ELEMENTS, SYMBOLS
from latentite.generators.jobs import ElementRules, Jobs

_NEVER = -1e9  # log-probability of what a diverged network (NaN) says; finite, so that an assignment exists


def element_numbers(option: str, symbols: Sequence[str] | str) -> tuple[int, ...]:
    """Atomic numbers of symbols (a sequence, or text such as `Li,Fe,O` or `Li-Fe-O`), increasing, each once.

    Raises:
        ValueError: for what is no element with a class, naming the option.
    """
    names = re.split(r"[\s,-]+", symbols.strip()) if isinstance(symbols, str) else symbols
    found = {}
    for name in names:
        if name:
            found[name] = ATOMIC_NUMBER.get(name, 0)
            if not 1 <= found[name] <= MAX_ATOMIC_NUMBER:
                last = SYMBOLS[MAX_ATOMIC_NUMBER - 1]
                raise ValueError(f"{option} must name elements from H to {last}, got '{name}'")
    return tuple(sorted(set(found.values())))


def assign_composition(
    log_probs: Float[np.ndarray, "atom element"], composition: Sequence[int]
) -> Int[np.ndarray, " atom"]:
    """Exactly these elements, in the most likely order.

    Args:
        log_probs: of each atom, by atomic number.
        composition: an atomic number per atom, in any order.

    Returns:
        The atomic number of each atom: of all orders of `composition` one with the largest sum of
        log-probabilities.

    Raises:
        ValueError: when there are not as many elements as atoms.
    """
    if len(composition) != len(log_probs):
        raise ValueError(
            f"a composition must have one element per atom ({len(log_probs)}), got {len(composition)}"
        )
    elements = np.asarray(composition, dtype=np.int64)
    _, place = linear_sum_assignment(log_probs[:, elements], maximize=True)
    return elements[place]


def assign_elements(
    log_probs: Float[np.ndarray, "atom element"], rules: ElementRules
) -> Int[np.ndarray, " atom"]:
    """The most likely elements that keep the rules.

    Without required elements each atom takes its best allowed one. A required element r on atom a costs
    best[a] - log_probs[a, r], and every choice that keeps the rules has distinct atoms for the required
    elements, so the cheapest assignment of these is the optimum.

    Args:
        log_probs: of each atom, by atomic number (column 0 is never chosen).
        rules: allowed and required elements.

    Raises:
        ValueError: when there are fewer atoms than required elements.
    """
    if len(log_probs) < len(rules.required):
        raise ValueError(
            f"a crystal must have an atom for each of {len(rules.required)} required elements, "
            f"got {len(log_probs)} atoms"
        )
    masked = np.where(allowed_elements(rules), log_probs, -np.inf)
    chosen = masked.argmax(axis=1)
    if set(rules.required) <= set(chosen.tolist()):
        return chosen
    required = np.asarray(rules.required, dtype=np.int64)
    cost = masked.max(axis=1)[None, :] - log_probs[:, required].T
    rows, atoms = linear_sum_assignment(cost)
    chosen[atoms] = required[rows]
    return chosen


def allowed_elements(rules: ElementRules | None) -> Bool[np.ndarray, " element"]:
    """True for the classes that an atom may have; never for class 0."""
    allowed = np.zeros(NUM_ELEMENT_CLASSES, dtype=bool)
    if rules is None or rules.allowed is None:
        allowed[1:] = True
    else:
        allowed[list(rules.allowed)] = True
    return allowed


def choose_elements(
    logits: Float[Tensor, "atom element"], jobs: Jobs, fixed: Int[Tensor, " atom"] | None = None
) -> Int[Tensor, " atom"]:
    """The elements of decoded crystals, as their jobs ask.

    Args:
        logits: the decoder's, packed in the order of the jobs.
        jobs: one per crystal.
        fixed: atomic numbers of atoms whose element is given, 0 for the others; they count towards the
            composition and the required elements.

    Returns:
        Atomic numbers, on the CPU.
    """
    scores = logits.double().log_softmax(dim=-1).nan_to_num(nan=_NEVER, neginf=_NEVER).cpu().numpy()
    given = np.zeros(len(scores), dtype=np.int64) if fixed is None else fixed.cpu().numpy()
    ask_of_atom = jobs.asks.repeat_interleave(jobs.num_atoms).numpy()
    used, place = np.unique(ask_of_atom, return_inverse=True)
    allowed = np.stack([allowed_elements(jobs.asked[ask].elements) for ask in used])
    chosen = np.where(allowed[place], scores, -np.inf).argmax(axis=1)
    chosen = np.where(given > 0, given, chosen)
    ends = jobs.num_atoms.cumsum(0).tolist()
    for ask, end, count in zip(jobs.asks.tolist(), ends, jobs.num_atoms.tolist(), strict=True):
        asked = jobs.asked[ask]
        atoms = slice(end - count, end)
        free = given[atoms] == 0
        held = Counter(given[atoms][~free].tolist())
        if asked.composition is not None:
            rest = sorted((Counter(asked.composition) - held).elements())
            chosen[atoms][free] = assign_composition(scores[atoms][free], rest)
        elif asked.elements is not None and not set(asked.elements.required) <= set(chosen[atoms].tolist()):
            required = tuple(z for z in asked.elements.required if z not in held)
            rules = ElementRules(allowed=asked.elements.allowed, required=required)
            chosen[atoms][free] = assign_elements(scores[atoms][free], rules)
    return torch.from_numpy(chosen)


def fulfilled(crystals: CrystalBatch, jobs: Jobs) -> Bool[Tensor, " crystal"]:
    """Whether each crystal has the number of atoms, the composition and the elements that its job asks for.

    Counted from the crystals alone: it shares nothing with the way in which the elements were chosen. What a
    model was merely conditioned on (a band gap, a chemical system) is not judged here.

    Args:
        crystals: on the CPU, in the order of the jobs.
        jobs: one per crystal.
    """
    counts = torch.zeros(len(crystals), NUM_ELEMENTS + 1, dtype=torch.long)
    counts.index_put_(
        (crystals.crystal_index, crystals.atomic_numbers),
        torch.ones(crystals.total_atoms, dtype=torch.long),
        accumulate=True,
    )
    result = (jobs.num_atoms == 0) | (crystals.num_atoms == jobs.num_atoms)
    for number in jobs.asks.unique().tolist():
        ask = jobs.asked[number]
        rows = jobs.asks == number
        if ask.num_atoms is not None:
            result[rows] &= crystals.num_atoms[rows] == ask.num_atoms
        if ask.composition is not None:
            wanted = torch.bincount(torch.tensor(ask.composition), minlength=NUM_ELEMENTS + 1)
            result[rows] &= (counts[rows] == wanted).all(dim=-1)
        if ask.elements is not None:
            is_allowed = torch.zeros(NUM_ELEMENTS + 1, dtype=torch.bool)
            is_allowed[1:] = ask.elements.allowed is None
            is_allowed[list(ask.elements.allowed or ())] = True
            result[rows] &= ~(counts[rows] > 0)[:, ~is_allowed].any(dim=-1)
            result[rows] &= (counts[rows][:, list(ask.elements.required)] > 0).all(dim=-1)
    return result
