"""Skeletons drawn from a `CrystalGPT`: space groups, then letters with their elements, many crystals at a time.

Every draw inverts a distribution at a uniform number that belongs to one crystal and one decision, so that a crystal
does not depend on those beside it. Rows that have ended leave the batch, which then goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.choices import DrawSettings, choose, guided
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.reach import START, Needs, choices
from latentite.nn.gpt.skeleton_network import STOP
from latentite.nn.gpt.tokens import letter_tables
from latentite.nn.gpt.trunk import KeyValueCache
from latentite.nn.gpt.wishes import Wishes


@dataclass(kw_only=True, slots=True)
class Branch:
    """One run of the trunk over the tokens of a batch: with the conditions, or without for guidance."""

    told: Float[Tensor, "#crystal channel"]
    """Added to every token; one row for all crystals or one for each."""
    cache: KeyValueCache
    hidden: Float[Tensor, "crystal channel"]
    """Of the last token."""

    def step(self, model: CrystalGPT, token: Tensor, allowed: Bool[Tensor, " crystal"]) -> None:
        """Go on by one token of each crystal."""
        tokens = (token + self.told).unsqueeze(1)
        self.hidden = model.trunk(tokens, allowed.unsqueeze(-1), self.cache)[:, 0]

    def select(self, rows: Tensor) -> Branch:
        """Of some crystals."""
        told = self.told if len(self.told) == 1 else self.told[rows]
        return Branch(told=told, cache=self.cache.select(rows), hidden=self.hidden[rows])


@dataclass(kw_only=True, slots=True)
class Skeletons:
    """Skeletons on their way, or at their end."""

    rows: Int[Tensor, " crystal"]
    """Place of each in the batch that was asked for."""
    group: Int[Tensor, " crystal"]
    position: Int[Tensor, "crystal orbit"]
    element: Int[Tensor, "crystal orbit"]
    """0 after the last orbit."""
    log_prob: Float[Tensor, " crystal"]
    """Of group, letters and elements, nats."""
    ended: Bool[Tensor, " crystal"]
    used_atoms: Int[Tensor, " crystal"]
    present: Bool[Tensor, "crystal symbol"]
    allowed: Bool[Tensor, "crystal symbol"]
    missing: Bool[Tensor, "crystal symbol"]
    """Elements that must still occur."""
    needs: list[Needs | None]
    branches: list[Branch]
    """That with conditions, and for guidance that without."""

    def select(self, keep: Tensor) -> Skeletons:
        """Some of them."""
        tensors = ("rows", "group", "position", "element", "log_prob", "ended", "used_atoms", "present")
        return replace(
            self,
            **{name: getattr(self, name)[keep] for name in (*tensors, "allowed", "missing")},
            needs=[self.needs[place] for place in keep.tolist()],
            branches=[branch.select(keep) for branch in self.branches],
        )

    def logits(self, head: Callable[[Tensor], Tensor], scale: float) -> Tensor:
        """Of a head, guided where there are two branches."""
        return guided([head(branch.hidden) for branch in self.branches], scale)

    def step(self, model: CrystalGPT, token: Tensor, allowed: Bool[Tensor, " crystal"]) -> None:
        """Go on by one token of each crystal."""
        for branch in self.branches:
            branch.step(model, token, allowed)


def draw_skeletons(
    model: CrystalGPT,
    settings: DrawSettings,
    uniforms: Float[Tensor, "crystal number"],
    told: list[Tensor],
    wishes: Wishes,
) -> Iterator[Skeletons]:
    """Space groups, letters and elements; those that end at about the same length come together.

    Args:
        model: the network.
        settings: temperature and the like.
        uniforms: the first of each crystal's numbers: one for the group, and two for each orbit and the end.
        told: what crystals are told, one row for all or one for each; for guidance also what stands for nothing.
        wishes: what is asked of each.

    Raises:
        ValueError: when no space group fulfils a wish.
    """
    state = _begin(model, settings, uniforms, told, wishes)
    for step in range(model.limits.max_orbits + 1):
        _letters_and_elements(model, settings, state, uniforms[state.rows], step)
        num_ended = int(state.ended.sum())
        if num_ended == len(state.rows):
            yield state
            return
        if num_ended >= max(8, len(state.rows) // 3):
            yield state.select(torch.nonzero(state.ended).squeeze(-1))
            state = state.select(torch.nonzero(~state.ended).squeeze(-1))


def _begin(
    model: CrystalGPT, settings: DrawSettings, uniforms: Tensor, told: list[Tensor], wishes: Wishes
) -> Skeletons:
    """Space groups."""
    num, device = len(uniforms), uniforms.device
    everyone = torch.ones(num, dtype=torch.bool, device=device)
    start = (model.start + model.stage.weight[0]).expand(num, -1)
    state = Skeletons(
        rows=torch.arange(num, device=device),
        group=torch.zeros(num, dtype=torch.long, device=device),
        position=torch.zeros(num, 0, dtype=torch.long, device=device),
        element=torch.zeros(num, 0, dtype=torch.long, device=device),
        log_prob=torch.zeros(num, device=device),
        ended=~everyone,
        used_atoms=torch.zeros(num, dtype=torch.long, device=device),
        present=torch.zeros(num, NUM_SYMBOLS, dtype=torch.bool, device=device),
        allowed=wishes.element_mask().to(device),
        missing=wishes.required_mask().to(device),
        needs=wishes.needs(model.limits),
        branches=[Branch(told=one, cache=KeyValueCache(), hidden=start) for one in told],
    )
    state.step(model, start, everyone)
    logits = state.logits(lambda hidden: model.group_head(hidden).float(), settings.guidance)
    logits = logits.masked_fill(~wishes.group_mask(model.limits).to(device), float("-inf"))
    state.group, state.log_prob = choose(
        logits, uniforms[:, 0], temperature=settings.temperature, top_p=settings.top_p
    )
    state.step(model, model.groups(state.group) + model.stage.weight[0], everyone)
    return state


def _letters_and_elements(
    model: CrystalGPT, settings: DrawSettings, state: Skeletons, uniforms: Tensor, step: int
) -> None:
    """One more orbit of each crystal that has not ended, or its end."""
    tables = letter_tables(uniforms.device)
    zero = torch.zeros_like(state.group)
    last = state.position[:, -1] if step else zero
    last_element = state.element[:, -1] if step else zero
    mask, possible = _letter_mask(model, settings, state, last, last_element, step)
    logits = state.logits(lambda hidden: model.letter_logits(hidden, state.group), settings.guidance)
    letter, log = choose(
        logits.masked_fill(~mask, float("-inf")),
        uniforms[:, 1 + 2 * step],
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    state.log_prob = state.log_prob + torch.where(state.ended, 0.0, log)
    state.ended = state.ended | (letter == STOP)
    if bool(state.ended.all()):
        return
    position = torch.where(state.ended, 0, tables.first[state.group] + letter)
    same = (position == last) & ~state.ended & (step > 0)
    allowed = _element_mask(model, settings, state, last_element, same)
    if possible is not None:
        own = possible[torch.arange(len(letter), device=letter.device), letter.clamp(max=STOP - 1)]
        allowed = allowed & own
    allowed = torch.where(state.ended.unsqueeze(-1), True, allowed)
    logits = state.logits(lambda hidden: model.element_logits(hidden, position), settings.guidance)
    element, log = choose(
        logits.masked_fill(~allowed, float("-inf")),
        uniforms[:, 2 + 2 * step],
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    element = torch.where(state.ended, 0, element)
    state.log_prob = state.log_prob + torch.where(state.ended, 0.0, log)
    _append(state, position, element)
    token = model.orbit_tokens(position, element) + model.ordinal.weight[step] + model.stage.weight[0]
    state.step(model, token, ~state.ended)


def _append(state: Skeletons, position: Tensor, element: Tensor) -> None:
    """One orbit more of each crystal; of those that have ended nothing."""
    sizes = letter_tables(position.device).num_images[position]
    state.position = torch.cat([state.position, position.unsqueeze(-1)], dim=1)
    state.element = torch.cat([state.element, element.unsqueeze(-1)], dim=1)
    state.used_atoms = state.used_atoms + torch.where(state.ended, 0, sizes)
    is_new = torch.nn.functional.one_hot(element, NUM_SYMBOLS).bool() & ~state.ended.unsqueeze(-1)
    state.present = state.present | is_new
    state.missing = state.missing & ~is_new
    if any(needs is not None for needs in state.needs):
        state.needs = [
            needs if needs is None or z == 0 else needs.after(size, z)
            for needs, size, z in zip(state.needs, sizes.tolist(), element.tolist(), strict=True)
        ]


def _element_mask(
    model: CrystalGPT, settings: DrawSettings, state: Skeletons, last_element: Tensor, same: Tensor
) -> Bool[Tensor, "crystal symbol"]:
    """Elements that may come next, whatever the letter's multiplicity."""
    limit = model.limits.max_elements
    limit = limit if settings.max_elements is None else min(limit, settings.max_elements)
    mask = model.element_mask(last_element, same, state.present, limit) & state.allowed
    # Room is kept for elements that must still occur.
    is_full = (state.present | state.missing).sum(-1, keepdim=True) >= limit
    return mask & (~is_full | state.present | state.missing)


def _letter_mask(
    model: CrystalGPT,
    settings: DrawSettings,
    state: Skeletons,
    last: Tensor,
    last_element: Tensor,
    step: int,
) -> tuple[Bool[Tensor, "crystal 28"], Bool[Tensor, "crystal 27 symbol"] | None]:
    """Letters that may come next, the end last; and where something is asked the elements on each letter."""
    tables = letter_tables(last.device)
    end = torch.arange(STOP + 1, device=last.device) == STOP
    mask = model.letter_mask(state.group, last, state.used_atoms, torch.full_like(state.ended, step == 0))
    if step == model.limits.max_orbits:
        mask = mask & end
    mask = torch.where(state.ended.unsqueeze(-1), end, mask)
    if all(needs is None for needs in state.needs):
        return mask, None
    possible = torch.ones(len(last), STOP, NUM_SYMBOLS, dtype=torch.bool, device=last.device)
    may_end = torch.ones_like(state.ended)
    letters = last - tables.first[state.group] if step else torch.full_like(last, START)
    columns = (state.needs, state.group.tolist(), letters.tolist(), state.ended.tolist())
    for row, (needs, group, letter, has_ended) in enumerate(zip(*columns, strict=True)):
        if needs is not None and not has_ended:
            possible[row] = torch.from_numpy(choices(group, letter, needs))
            may_end[row] = needs.is_fulfilled
    never = torch.zeros_like(state.ended)
    fresh = _element_mask(model, settings, state, last_element, never)
    again = _element_mask(model, settings, state, last_element, ~never) if step else fresh
    is_again = torch.arange(STOP, device=last.device) == letters.unsqueeze(-1)
    elements = torch.where(is_again.unsqueeze(-1), again.unsqueeze(1), fresh.unsqueeze(1))
    mask = mask & torch.cat([(possible & elements).any(-1), may_end.unsqueeze(-1)], dim=-1)
    return torch.where(state.ended.unsqueeze(-1), end, mask), possible
