"""The denoiser: padding, batch-mates, adaLN-Zero, time, the public layout and its reference outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentite.nn.conditions import Conditioning
from latentite.nn.denoiser import (
    Denoiser,
    DenoiserConfig,
    DenoiserSize,
    OutputLayout,
    TokenIndex,
    chemeleon2_output,
    rotate_by_index,
    time_embedding,
)
from latentite.nn.transformer import Gelu, TokenLayout, index_embedding
from latentite.nn.vae import LatentBatch

CUSTOM = DenoiserConfig(
    size=DenoiserSize.CUSTOM, depth=2, hidden_size=32, num_heads=4, mlp_ratio=2.0, latent_dim=5
)
VARIANTS = [
    replace(CUSTOM, index=index, qk_norm=qk_norm, learn_variance=learn_variance)
    for index, qk_norm, learn_variance in product(TokenIndex, (False, True), (False, True))
]


def noisy(module: nn.Module, std: float = 0.1) -> nn.Module:
    """The same network with noise on every parameter, so that what starts at zero does something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def asked(vector: Tensor) -> Conditioning:
    """Conditions that say this, of a model that has none by name."""
    return Conditioning(
        vector=vector,
        per_condition=torch.zeros(len(vector), 0, vector.shape[1]),
        present=torch.zeros(len(vector), 0, dtype=torch.bool),
    )


def latents(num_atoms: list[int], num_tokens: int, channels: int = 5) -> tuple[Tensor, Tensor]:
    """Random tokens, also where the mask is False, and the mask."""
    generator = torch.Generator().manual_seed(2)
    mask = LatentBatch.token_mask(torch.tensor(num_atoms), num_tokens)
    return torch.randn(*mask.shape, channels, generator=generator), mask


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.index}-{c.qk_norm}-{c.learn_variance}")
def test_output_is_independent_of_padding_and_batch_mates(config: DenoiserConfig) -> None:
    """Regression: in Chemeleon2's denoiser the variance channel changed with the padded length."""
    denoiser = noisy(Denoiser(config))
    num_atoms = [3, 1, 7, 7, 4]
    tokens, mask = latents(num_atoms, 7)
    time = torch.tensor([0.0, 17.0, 250.5, 900.0, 999.0])
    condition = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    together = denoiser(tokens, time, mask, asked(condition))
    assert together.shape == (5, 7, 10 if config.learn_variance else 5)
    assert together[~mask].abs().max() == 0
    wide = F.pad(tokens, (0, 0, 0, 6), value=7.0)
    padded = denoiser(wide, time, F.pad(mask, (0, 6)), asked(condition))
    torch.testing.assert_close(padded[:, :7], together, atol=1e-5, rtol=1e-4)
    assert padded[:, 7:].abs().max() == 0
    for i, count in enumerate(num_atoms):
        row = slice(i, i + 1)
        alone = denoiser(tokens[row, :count], time[row], mask[row, :count], asked(condition[row]))
        torch.testing.assert_close(alone[0], together[i, :count], atol=1e-5, rtol=1e-4)
    dense = denoiser(tokens, time, mask, asked(condition), layout=TokenLayout.dense(mask))
    torch.testing.assert_close(dense, together, atol=1e-5, rtol=1e-4)


def test_gradients_do_not_flow_to_padding_or_between_crystals() -> None:
    denoiser = noisy(Denoiser(CUSTOM))
    tokens, mask = latents([2, 6, 4], 6)
    tokens.requires_grad_()
    denoiser(tokens, torch.tensor([5.0, 6.0, 7.0]), mask)[1].square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert tokens.grad[1].abs().min() > 0
    assert tokens.grad[0].abs().max() == 0
    assert tokens.grad[2].abs().max() == 0


@pytest.mark.parametrize("num_atoms", [[4, 4], [2, 4]])
def test_atoms_are_a_set_only_without_an_index(num_atoms: list[int]) -> None:
    tokens, mask = latents(num_atoms, 4)
    order = torch.tensor([1, 0, 2, 3])
    time = torch.tensor([3.0, 400.0])
    for index in TokenIndex:
        denoiser = noisy(Denoiser(replace(CUSTOM, index=index)))
        plain, shuffled = denoiser(tokens, time, mask), denoiser(tokens[:, order], time, mask)
        difference = (plain[:, order] - shuffled).abs().max()
        assert (difference < 1e-5) == (index is TokenIndex.NONE)


def test_a_new_denoiser_gives_zero_and_its_blocks_are_the_identity() -> None:
    """adaLN-Zero: gates and the last layer start at zero, so only the last layer gets a gradient first."""
    denoiser = Denoiser(CUSTOM)
    tokens, mask = latents([3, 5], 5)
    assert denoiser(tokens, torch.tensor([1.0, 2.0]), mask).abs().max() == 0
    layout = denoiser.layout(mask)
    rows = torch.randn(8, 32)
    assert denoiser.blocks[0](rows, torch.randn(2, 32), layout).equal(rows)
    for parameter in denoiser.parameters():
        parameter.grad = None
    denoiser(tokens, torch.tensor([1.0, 2.0]), mask).sum().backward()
    assert denoiser.final_layer.linear.weight.grad.abs().max() > 0


def test_a_block_is_the_written_out_formula() -> None:
    """Peebles & Xie 2023, section 3.2, written with torch's own attention module, one crystal at a time."""
    config = replace(CUSTOM, gelu=Gelu.EXACT)
    denoiser = noisy(Denoiser(config))
    block = denoiser.blocks[0]
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    attention.load_state_dict(block.attn.state_dict())
    num_atoms = [2, 5]
    _, mask = latents(num_atoms, 5)
    rows, conditioning = torch.randn(7, 32), torch.randn(2, 32)
    result = block(rows, conditioning, denoiser.layout(mask))
    expected = []
    for x, c in zip(rows.split(num_atoms), conditioning, strict=True):
        b1, a1, g1, b2, a2, g2 = block.adaLN_modulation[1](F.silu(c)).chunk(6)
        u = F.layer_norm(x, (32,), eps=1e-6) * (1 + a1) + b1
        x = x + g1 * attention(u[None], u[None], u[None])[0][0]
        u = F.layer_norm(x, (32,), eps=1e-6) * (1 + a2) + b2
        expected.append(x + g2 * block.mlp.fc2(F.gelu(block.mlp.fc1(u))))
    torch.testing.assert_close(result, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_time_embedding_is_cosines_then_sines() -> None:
    embedded = time_embedding(torch.tensor([0.0, 3.0]), 256)
    assert embedded[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert embedded[1, 0].item() == pytest.approx(-0.9899925)
    assert embedded[1, 128 + 64].item() == pytest.approx(torch.sin(torch.tensor(0.03)).item())


def test_rotary_products_depend_only_on_the_distance_of_places() -> None:
    query, key = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    query, key = (rotate_by_index(x.expand(-1, -1, 9, -1)) for x in (query, key))
    many = query @ key.mT
    for offset in range(-3, 4):
        diagonal = many.diagonal(offset, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), atol=1e-5, rtol=1e-4)
    assert (many[..., 0, 0] - many[..., 0, 3]).abs().min() > 1e-4


def test_a_condition_is_added_to_the_embedding_of_time() -> None:
    denoiser = noisy(Denoiser(CUSTOM))
    tokens, mask = latents([3, 5], 5)
    time, other = torch.tensor([10.0, 20.0]), torch.tensor([700.0, 30.0])
    condition = denoiser.t_embedder(other) - denoiser.t_embedder(time)
    torch.testing.assert_close(
        denoiser(tokens, time, mask, asked(condition)), denoiser(tokens, other, mask), atol=1e-5, rtol=1e-4
    )


def test_chemeleon2_layout_takes_a_prediction_from_half_of_another_token() -> None:
    raw = torch.arange(24.0).view(1, 3, 8)
    rows = raw.view(1, 6, 4)
    assert chemeleon2_output(raw).equal(torch.cat([rows[:, :3], rows[:, 3:]], dim=-1))
    assert chemeleon2_output(raw)[0, 1, :4].equal(raw[0, 0, 4:])


@pytest.mark.parametrize(
    ("size", "numbers"),
    [(DenoiserSize.S, 16_500_000), (DenoiserSize.B, 129_500_000), (DenoiserSize.L, 455_900_000)],
)
def test_named_sizes_have_the_published_numbers_of_parameters(size: DenoiserSize, numbers: int) -> None:
    """S and B: Chemeleon2's 16.5 and 129.5 million; L: DiT-L/2's 458 M less its patches and classes."""
    with torch.device("meta"):
        denoiser = Denoiser(DenoiserConfig(size=size))
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(numbers, rel=0.005)


def test_default_tensors_are_those_of_the_public_checkpoints() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in Denoiser(DenoiserConfig()).state_dict().items()}
    assert len(shapes) == 340 - 209 - 1  # an LDM's 340 tensors less the VAE's and latent_std
    assert shapes["blocks.11.attn.in_proj_weight"] == (2304, 768)
    assert shapes["blocks.0.adaLN_modulation.1.weight"] == (4608, 768)
    assert shapes["t_embedder.mlp.0.weight"] == (768, 256)
    assert shapes["final_layer.linear.weight"] == (16, 768)
    assert {k.split(".", 2)[2] for k in shapes if k.startswith("blocks.")} == {
        f"{layer}.{kind}"
        for layer in ("attn.out_proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        for kind in ("weight", "bias")
    } | {"attn.in_proj_weight", "attn.in_proj_bias"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": DenoiserSize.S, "depth": 3}, "depth must not be given with size=S"),
        ({"size": DenoiserSize.CUSTOM, "depth": 3, "hidden_size": 32}, "num_heads must be at least 1"),
        (
            {"size": DenoiserSize.CUSTOM, "depth": 3, "hidden_size": 30, "num_heads": 4},
            "multiple of 2 x num_heads",
        ),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"output_layout": OutputLayout.CHEMELEON2, "learn_variance": False}, "needs learn_variance"),
    ],
)
def test_impossible_settings_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DenoiserConfig(**options)


def test_under_autocast_the_stream_between_blocks_and_the_output_stay_float32() -> None:
    for index in TokenIndex:
        denoiser = noisy(Denoiser(replace(CUSTOM, index=index)))
        tokens, mask = latents([2, 5], 5)
        time = torch.tensor([1.0, 900.0])
        kinds = []
        denoiser.final_layer.register_forward_pre_hook(
            lambda _, args, kinds=kinds: kinds.append(args[0].dtype)
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = denoiser(tokens, time, mask)
        full = denoiser(tokens, time, mask)
        assert half.dtype == full.dtype == torch.float32
        assert kinds == [torch.float32, torch.float32]
        assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


def test_sinusoidal_index_is_that_of_the_vae() -> None:
    denoiser = noisy(Denoiser(CUSTOM))
    tokens, mask = latents([2, 5], 5)
    layout = denoiser.layout(mask)
    assert layout.token_index.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert TokenLayout.dense(mask).token_index.tolist() == [0, 1, 1, 1, 1, 0, 1, 2, 3, 4]
    none = Denoiser(replace(CUSTOM, index=TokenIndex.NONE)).eval()
    none.load_state_dict(denoiser.state_dict())
    seen = []
    none.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    denoiser.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for network in (none, denoiser):
        network(tokens, torch.tensor([1.0, 2.0]), mask)
    torch.testing.assert_close(
        seen[1] - seen[0], index_embedding(layout.token_index, 32), atol=1e-5, rtol=1e-4
    )
