"""A reward of one's own that keeps what it has given: so the first rollout's rewards are seen crystal by crystal."""

from __future__ import annotations

import json
from pathlib import Path

import torch


class RecordedReward:
    """Mean electronegativity (Pauling); each call adds a line with the rewards to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def __call__(self, structures, batch):
        values = [float(structure.composition.average_electroneg) for structure in structures]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        return torch.tensor(values)
