"""Denoiser: a diffusion transformer (DiT, Peebles & Xie 2023, adaLN-Zero) over the latent tokens of crystals.

Tokens stay packed through every linear layer, as in the VAE; only attention sees a padded view, so what a crystal
gets depends neither on the padding nor on the crystals beside it.

Departures from the paper: no patches; the place of a token is its atom's place in the crystal, told in one of
three ways; queries and keys are normalised by choice; the condition is a vector from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.base.plain import check_counts
from latentite.nn.conditions import Conditioning
from latentite.nn.transformer import Gelu, PackedLayout, SelfAttention, TokenLayout, attend, index_embedding

FREQUENCIES = 256
"""Width of the sine and cosine embedding of time."""


class DenoiserSize(StrEnum):
    """Named sizes, `depth x hidden_size x num_heads`."""

    MINI = "mini"
    """4 x 256 x 4, for CPUs."""
    S = "S"
    """6 x 384 x 6."""
    B = "B"
    """12 x 768 x 12, that of the public checkpoints."""
    L = "L"
    """24 x 1024 x 16."""
    CUSTOM = "custom"
    """As `depth`, `hidden_size` and `num_heads` say."""


SIZES = {
    DenoiserSize.MINI: (4, 256, 4),
    DenoiserSize.S: (6, 384, 6),
    DenoiserSize.B: (12, 768, 12),
    DenoiserSize.L: (24, 1024, 16),
}


class TokenIndex(StrEnum):
    """The way in which a token is told its place among the atoms of its crystal."""

    SINUSOIDAL = "sinusoidal"
    """The VAE's `index_embedding` is added to its embedding, as in the public checkpoints."""
    ROTARY = "rotary"
    """Queries and keys are turned by an angle that grows with the place (Su et al. 2021)."""
    NONE = "none"
    """Not at all: the denoiser treats the atoms as a set."""


class OutputLayout(StrEnum):
    """The way in which the last layer's `2 L` numbers per token become prediction and variance."""

    PLAIN = "plain"
    """A token's first L are its prediction, its last L its variance."""
    CHEMELEON2 = "chemeleon2"
    """`[N, 2L]` read as `[2N, L]`: rows 0..N-1 are the predictions, the rest the variances.

    So a token's prediction comes from half of the output of another token, and its variance depends on the
    padded length N. Only for checkpoints that were trained so; padding is then computed like atoms.
    """


@dataclass(kw_only=True, slots=True)
class DenoiserConfig:
    """Size and options of the denoiser."""

    size: DenoiserSize = DenoiserSize.B
    depth: int | None = None
    """Blocks; with `hidden_size` and `num_heads` only for `size=custom`."""
    hidden_size: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    """Width of a block's feed-forward network, in hidden sizes."""
    latent_dim: int = 8
    """Channels of a latent token."""
    learn_variance: bool = True
    """Give a variance channel beside each prediction channel (Nichol & Dhariwal 2021, sec. 3.1)."""
    qk_norm: bool = False
    """Root-mean-square norm of every head's queries and keys (Henry et al. 2020; Dehghani et al. 2023)."""
    index: TokenIndex = TokenIndex.SINUSOIDAL
    gelu: Gelu = Gelu.TANH
    output_layout: OutputLayout = OutputLayout.PLAIN

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("depth", "hidden_size", "num_heads")}
        if self.size is DenoiserSize.CUSTOM:
            for name, value in given.items():
                if value is None or value < 1:
                    raise ValueError(f"{name} must be at least 1 for size=custom, got {value}")
        elif any(value is not None for value in given.values()):
            names = ", ".join(name for name, value in given.items() if value is not None)
            raise ValueError(f"{names} must not be given with size={self.size.value}; set size=custom")
        _, hidden_size, num_heads = self.shape
        if hidden_size % (2 * num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x num_heads={num_heads}, got {hidden_size}"
            )
        check_counts(self, "latent_dim")
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        if self.output_layout is OutputLayout.CHEMELEON2 and not self.learn_variance:
            raise ValueError("output_layout=chemeleon2 needs learn_variance=true, got false; use plain")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Depth, hidden size and number of heads of the chosen size."""
        if self.size is not DenoiserSize.CUSTOM:
            return SIZES[self.size]
        assert self.depth is not None
        assert self.hidden_size is not None
        assert self.num_heads is not None
        return self.depth, self.hidden_size, self.num_heads


def time_embedding(
    time: Float[Tensor, " crystal"] | Int[Tensor, " crystal"], channels: int = FREQUENCIES
) -> Float[Tensor, "crystal frequency"]:
    """Cosines, then sines, of `time * 10000 ** (-2 k / channels)`, as in DiT's code (Ho et al. 2020)."""
    half = channels // 2
    k = torch.arange(half, device=time.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(10000.0) / half * k)
    angle = time.float().unsqueeze(-1) * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotate_by_index(
    x: Float[Tensor, "crystal head slot channel"],
) -> Float[Tensor, "crystal head slot channel"]:
    """Turn channel pair (k, k + d/2) of slot i by `i * 10000 ** (-2 k / d)` (Su et al. 2021, eq. 15)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32).unsqueeze(-1) * frequency
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class DenoiserAttention(SelfAttention):
    """`SelfAttention` with an optional norm of queries and keys, rotary index and adapter."""

    def __init__(self, hidden_size: int, num_heads: int, *, qk_norm: bool, rotary_index: bool) -> None:
        super().__init__(hidden_size, num_heads)
        self.rotary_index = rotary_index
        self.q_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-6) if qk_norm else None
        self.in_proj_adapter: nn.Module | None = None
        """Added to the fused projection; set by `adapters.py`."""

    def forward(
        self, tokens: Float[Tensor, "row channel"], layout: PackedLayout
    ) -> Float[Tensor, "row channel"]:
        """Every token attends to all tokens of its crystal.

        Args:
            tokens: `hidden_size` channels per packed token, modulated already.
            layout: which rows belong to which crystal.

        Returns:
            What is to be gated and added, in the same shape.
        """
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        if self.in_proj_adapter is not None:
            projected = projected + self.in_proj_adapter(tokens)
        query, key, value = rearrange(
            layout.pad(projected), "c s (three h d) -> three c h s d", three=3, h=self.num_heads
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary_index:
            query, key = rotate_by_index(query), rotate_by_index(key)
        attended = attend(query, key, value, layout.attention_mask)
        return self.out_proj(layout.pack(rearrange(attended, "c h s d -> c s (h d)")))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, hidden_size: int, width: int, gelu: Gelu) -> None:
        super().__init__()
        self.approximate = "tanh" if gelu is Gelu.TANH else "none"
        self.fc1 = nn.Linear(hidden_size, width)
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, tokens: Float[Tensor, "row channel"]) -> Float[Tensor, "row channel"]:
        """Each token for itself, in the same shape."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate=self.approximate))


def modulation(hidden_size: int, parts: int) -> nn.Sequential:
    """SiLU and a linear layer that starts at zero: shifts, scales and gates from the conditioning vector."""
    linear = nn.Linear(hidden_size, parts * hidden_size)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class DenoiserBlock(nn.Module):
    """Attention and feed-forward, each modulated before and gated after (Peebles & Xie 2023, fig. 3)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        _, hidden_size, num_heads = config.shape
        self.attn = DenoiserAttention(
            hidden_size,
            num_heads,
            qk_norm=config.qk_norm,
            rotary_index=config.index is TokenIndex.ROTARY,
        )
        self.mlp = FeedForward(hidden_size, int(hidden_size * config.mlp_ratio), config.gelu)
        self.adaLN_modulation = modulation(hidden_size, 6)

    def forward(
        self,
        tokens: Float[Tensor, "row channel"],
        conditioning: Float[Tensor, "crystal channel"],
        layout: TokenLayout,
    ) -> Float[Tensor, "row channel"]:
        """Tokens after attention and feed-forward.

        Args:
            tokens: `hidden_size` channels per packed token.
            conditioning: `hidden_size` channels per crystal, of time and condition.
            layout: which rows belong to which crystal.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(conditioning).chunk(
            6, dim=-1
        )
        attended = self.attn(layout.modulate(tokens, shift_1, scale_1), layout.packed)
        tokens = layout.gate(tokens, gate_1, attended)
        return layout.gate(tokens, gate_2, self.mlp(layout.modulate(tokens, shift_2, scale_2)))


class FinalLayer(nn.Module):
    """Modulated norm and the linear layer, zero at the start, that gives the output channels."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = modulation(hidden_size, 2)

    def forward(
        self,
        tokens: Float[Tensor, "row channel"],
        conditioning: Float[Tensor, "crystal channel"],
        layout: TokenLayout,
    ) -> Float[Tensor, "row output"]:
        """Output channels per packed token: the prediction's, then with `learn_variance` the variance's."""
        shift, scale = self.adaLN_modulation(conditioning).chunk(2, dim=-1)
        return self.linear(layout.modulate(tokens, shift, scale))


class TimeEmbedder(nn.Module):
    """Sine and cosine embedding of time, then two linear layers with a SiLU between."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(
        self, time: Float[Tensor, " crystal"] | Int[Tensor, " crystal"]
    ) -> Float[Tensor, "crystal channel"]:
        """`hidden_size` channels per crystal; `time` is the noise level from 0 to 1000."""
        return self.mlp(time_embedding(time))


class Denoiser(nn.Module):
    """The network of the latent diffusion stage. Tensor names and the order of shifts, scales and gates are
    those of the public checkpoints. At the start every output is zero."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        depth, hidden_size, _ = config.shape
        self.x_embedder = nn.Linear(config.latent_dim, hidden_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        self.blocks = nn.ModuleList(DenoiserBlock(config) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, config.latent_dim * (2 if config.learn_variance else 1))
        self._initialise()

    @property
    def hidden_size(self) -> int:
        """Width of the conditioning vector."""
        return self.config.shape[1]

    def layout(self, mask: Bool[Tensor, "crystal token"]) -> TokenLayout:
        """The layout that `forward` would make from this mask; pass it on when many steps share a mask."""
        if self.config.output_layout is OutputLayout.CHEMELEON2:
            return TokenLayout.dense(mask)
        return TokenLayout.of(mask)

    def forward(
        self,
        tokens: Float[Tensor, "crystal token channel"],
        time: Float[Tensor, " crystal"] | Int[Tensor, " crystal"],
        mask: Bool[Tensor, "crystal token"],
        condition: Conditioning | None = None,
        *,
        layout: TokenLayout | None = None,
    ) -> Float[Tensor, "crystal token output"]:
        """The network's answer to noisy latents.

        Args:
            tokens: noisy latents; what stands where the mask is False is ignored.
            time: noise level from 0 to 1000, steps of a schedule or 1000 t of a flow.
            mask: True where a token is an atom; a crystal's atoms come first.
            condition: what `ConditionModule` says of the crystals; None for an unconditional model.
            layout: `self.layout(mask)`, where the caller has it already.

        Returns:
            The prediction's channels, then with `learn_variance` as many of the variance; zero where the mask
            is False.
        """
        layout = self.layout(mask) if layout is None else layout
        num_slots = layout.packed.num_slots
        conditioning = self.t_embedder(time)
        if condition is not None:
            conditioning = conditioning + condition.vector
        # Autocast makes linear layers give bfloat16; what is passed on from block to block stays float32.
        rows = self.x_embedder(layout.packed.pack(tokens[:, :num_slots])).to(tokens.dtype)
        if self.config.index is TokenIndex.SINUSOIDAL:
            rows = rows + index_embedding(layout.token_index, self.hidden_size)
        for block in self.blocks:
            rows = block(rows, conditioning, layout)
        output = layout.packed.pad(self.final_layer(rows, conditioning, layout)).to(tokens.dtype)
        if self.config.output_layout is OutputLayout.CHEMELEON2:
            output = chemeleon2_output(output)
        if layout.packed.slot is None and layout.packed.attention_mask is not None:
            output = output * mask.unsqueeze(-1)
        return F.pad(output, (0, 0, 0, tokens.shape[1] - num_slots))

    def _initialise(self) -> None:
        """Xavier-uniform linear layers, small normals for time; what starts at zero stays so."""
        for module in (self.x_embedder, *self.blocks):
            for name, linear in module.named_modules():
                if isinstance(linear, nn.Linear) and not name.startswith("adaLN_modulation"):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.zeros_(linear.bias)
        for linear in self.t_embedder.mlp:
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)


def chemeleon2_output(
    output: Float[Tensor, "crystal token channel"],
) -> Float[Tensor, "crystal token channel"]:
    """Reorder the last layer's output as `OutputLayout.CHEMELEON2` says."""
    prediction, variance = rearrange(output, "c n (two l) -> c (n two) l", two=2).chunk(2, dim=1)
    return torch.cat([prediction, variance], dim=-1)
