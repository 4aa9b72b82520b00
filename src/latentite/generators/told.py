"""Values of a network's conditions that jobs tell it."""

from __future__ import annotations

import torch
from torch import Tensor

from latentite.generators.jobs import Jobs
from latentite.nn.condition_values import ConditionKind, request_row
from latentite.nn.conditions import ConditionModule


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
