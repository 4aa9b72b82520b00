"""What several fidelities (levels of theory) do not share: small heads on a common trunk, or one vector each."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.nn.predictor_config import FidelityMode, PredictorConfig


class FidelityHeads(nn.Module):
    """Per member of the ensemble and fidelity a head of its own; the reference's stands in the predictor itself."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.mode, self.reference = config.fidelity_mode, config.reference_index
        width, count = config.hidden_widths[-1], config.num_fidelities
        self.count = count
        self.embedding: nn.Embedding | None = None
        self.members = nn.ModuleList()
        if self.mode is FidelityMode.EMBEDDING:
            self.embedding = nn.Embedding(count, config.num_features)
            nn.init.zeros_(self.embedding.weight)
            return
        for _ in range(config.ensemble):
            heads = [self._head(width, config.total_outputs, position) for position in range(count)]
            self.members.append(nn.ModuleList(heads))

    def _head(self, width: int, num_outputs: int, position: int) -> nn.Module:
        if position == self.reference:
            return nn.Identity()
        if self.mode is FidelityMode.INDEPENDENT:
            return nn.Linear(width, num_outputs)
        last = nn.Linear(width, num_outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)

    def head(self, member: int, position: int) -> nn.Module:
        """What a fidelity has of its own in a member of the ensemble; without parameters for the reference."""
        heads = self.members[member]
        assert isinstance(heads, nn.ModuleList)
        return heads[position]

    def at_input(
        self, features: Float[Tensor, "crystal feature"], fidelity: Int[Tensor, " crystal"]
    ) -> Float[Tensor, "crystal feature"]:
        """Pooled features, told the fidelity where that is how it enters."""
        return features if self.embedding is None else features + self.embedding(fidelity)

    def at_output(
        self,
        member: int,
        hidden: Float[Tensor, "crystal width"],
        common: Float[Tensor, "crystal output"],
        fidelity: Int[Tensor, " crystal"],
    ) -> Float[Tensor, "crystal output"]:
        """The outputs of each crystal at its fidelity.

        Args:
            member: of the ensemble.
            hidden: what the trunk says.
            common: what the reference's head says.
            fidelity: position of each crystal's fidelity.
        """
        if self.embedding is not None:
            return common
        result = common
        for position in range(self.count):
            if position == self.reference:
                continue
            own = self.head(member, position)(hidden)
            if self.mode is FidelityMode.RESIDUAL:
                own = own + common
            result = torch.where((fidelity == position).unsqueeze(-1), own, result)
        return result
