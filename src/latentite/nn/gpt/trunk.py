"""A causal transformer with a cache of keys and values: the trunk of the crystal GPT."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(kw_only=True, slots=True)
class KeyValueCache:
    """Keys and values of the tokens so far, layer by layer; filled by `CausalTransformer` as it goes."""

    keys: list[Float[Tensor, "crystal head token channel"]] = field(default_factory=list)
    values: list[Float[Tensor, "crystal head token channel"]] = field(default_factory=list)
    allowed: Bool[Tensor, "crystal token"] | None = None
    """True for tokens that may be attended to."""

    def select(self, rows: Tensor) -> KeyValueCache:
        """The cache of some crystals."""
        return KeyValueCache(
            keys=[key[rows] for key in self.keys],
            values=[value[rows] for value in self.values],
            allowed=None if self.allowed is None else self.allowed[rows],
        )


class CausalLayer(nn.Module):
    """Pre-norm block: causal attention, then a GELU feed-forward network, each added to its input."""

    def __init__(self, d_model: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(d_model)
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "crystal token channel"],
        allowed: Bool[Tensor, "crystal 1 token key"],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Float[Tensor, "crystal token channel"], tuple[Tensor, Tensor]]:
        """The tokens after the block, and all keys and values, the past ones first."""
        projected = self.in_proj(self.norm1(tokens))
        query, key, value = rearrange(
            projected, "c t (three h d) -> three c h t d", three=3, h=self.num_heads
        )
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        weights = scores.float().masked_fill(~allowed, float("-inf")).softmax(dim=-1).to(value.dtype)
        mixed = rearrange(weights @ value, "c h t d -> c t (h d)")
        tokens = tokens + self.dropout(self.out_proj(mixed))
        hidden = F.gelu(self.linear1(self.norm2(tokens)), approximate="tanh")
        return tokens + self.dropout(self.linear2(hidden)), (key, value)


class CausalTransformer(nn.Module):
    """A stack of `CausalLayer` with a final layer norm."""

    def __init__(
        self, *, d_model: int, num_layers: int, num_heads: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CausalLayer(d_model, num_heads, dim_feedforward, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self,
        tokens: Float[Tensor, "crystal token channel"],
        allowed: Bool[Tensor, "crystal token"],
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "crystal token channel"]:
        """Output for each token, of itself and those before it.

        Args:
            tokens: the next ones of every crystal.
            allowed: False for padding, which others do not attend to.
            cache: of the tokens before; these are added to it.
        """
        num_new = tokens.shape[1]
        if cache is not None and cache.allowed is not None:
            keys = torch.cat([cache.allowed, allowed], dim=1)
        else:
            keys = allowed
        num_past = keys.shape[1] - num_new
        order = torch.arange(keys.shape[1], device=tokens.device)
        own = order[num_past:]
        causal = order <= own.unsqueeze(-1)
        # A token always sees itself, so that no row of padding is without a key.
        mask = (causal & keys.unsqueeze(1)) | (order == own.unsqueeze(-1))
        for index, layer in enumerate(self.layers):
            past = None
            if cache is not None and index < len(cache.keys):
                past = (cache.keys[index], cache.values[index])
            tokens, (key, value) = layer(tokens, mask.unsqueeze(1), past)
            if cache is not None:
                if index < len(cache.keys):
                    cache.keys[index], cache.values[index] = key, value
                else:
                    cache.keys.append(key)
                    cache.values.append(value)
        if cache is not None:
            cache.allowed = keys
        return self.norm(tokens)
