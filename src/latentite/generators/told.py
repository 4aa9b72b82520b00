"""Values of a network's conditions that jobs tell it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentite.generators.asks import Ask
from latentite.generators.jobs import Jobs
from latentite.nn.condition_values import ConditionKind, request_row
from latentite.nn.conditions import ConditionModule

FAR = 4.0
"""Standard deviations from the mean beyond which the user is warned."""


def told(module: ConditionModule, jobs: Jobs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of the conditions that any of the jobs gives, and masks of the crystals that give them."""
    used, place = jobs.asks.unique(return_inverse=True)
    asks = [jobs.asked[ask] for ask in used.tolist()]
    values, present = {}, {}
    for config in module.config.conditions:
        name = config.name
        if config.kind is ConditionKind.NUM_ATOMS:
            rows, given = jobs.num_atoms.float(), jobs.num_atoms > 0
        else:
            known = [request_row(config, ask.conditions[name]) for ask in asks if name in ask.conditions]
            if not known:
                continue
            is_given = torch.tensor([name in ask.conditions for ask in asks])
            table = torch.zeros(len(asks), *known[0].shape)
            table[is_given] = torch.stack(known)
            rows, given = table[place], is_given[place]
        values[name], present[name] = rows.to(module.device), given.to(module.device)
    return values, present


def unusual_values(module: ConditionModule, asks: Sequence[Ask]) -> list[str]:
    """Sentences about numbers that are far from all that the model has seen."""
    numbers = {
        (name, float(value)): None
        for ask in asks
        for name, value in ask.conditions.items()
        if name in module.statistics and isinstance(value, int | float)
    }
    configs = {config.name: config for config in module.config.conditions}
    sentences = []
    for name, value in numbers:
        mean, std = module.statistics[name]
        away = (float(configs[name].transform(torch.tensor(value))) - mean) / std
        if abs(away) > FAR:
            side = "above" if away > 0 else "below"
            sentences.append(
                f"condition {name}={value:g} is {abs(away):.0f} standard deviations {side} the mean of the training "
                "data: the model has hardly seen such crystals, and what it makes need not have the value"
            )
    return sentences
