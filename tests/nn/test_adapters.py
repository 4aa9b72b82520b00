"""LoRA: nothing changes at the start, only adapters are trained, merging changes nothing, names stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentite.nn.denoiser import Denoiser, DenoiserConfig, DenoiserSize
from latentite.nn.lora import (
    LoraBranch,
    LoraConfig,
    add_lora,
    merged_state_dict,
    trainable_summary,
)
from latentite.nn.vae import LatentBatch

CONFIG = LoraConfig(rank=4, alpha=8.0)
NUM_LAYERS = 2 * 5 + 1
"""Five in each of two blocks, and the last layer's modulation."""


def adapters_of(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapters alone."""
    branches = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, LoraBranch))
    return {name: value for name, value in network.state_dict().items() if name.startswith(branches)}


def randomised(network: nn.Module, std: float, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return network


def small_denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(size=DenoiserSize.CUSTOM, depth=2, hidden_size=32, num_heads=4, latent_dim=5)
    denoiser = Denoiser(config)
    randomised(denoiser, 0.1)
    return denoiser.eval()


def output(denoiser: nn.Module) -> Tensor:
    mask = LatentBatch.token_mask(torch.tensor([2, 5]))
    tokens = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(2))
    return denoiser(tokens, torch.tensor([3.0, 500.0]), mask)


def merged(network: nn.Module, plain: nn.Module, config: LoraConfig = CONFIG) -> nn.Module:
    """A network without adapters, with the weights of an adapted one and the additions of its adapters."""
    plain.load_state_dict(merged_state_dict(network.state_dict(), config))
    return plain.eval()


def train_a_little(denoiser: nn.Module) -> None:
    """Gradient descent by hand: the first optimizer of a process imports torch's compiler, which takes seconds."""
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    denoiser.train()
    torch.manual_seed(3)
    for _ in range(5):
        gradients = torch.autograd.grad(output(denoiser).square().mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.5 * gradient
    denoiser.eval()


def test_adapted_output_is_that_of_the_base_until_trained() -> None:
    denoiser = small_denoiser()
    before = output(denoiser)
    assert len(add_lora(denoiser, CONFIG)) == NUM_LAYERS
    assert output(denoiser).equal(before)
    denoiser.train()
    assert output(denoiser).equal(before)
    train_a_little(denoiser)
    assert (output(denoiser) - before).abs().max() > 1e-3


def test_only_adapters_are_trained_and_every_one_of_them() -> None:
    denoiser = small_denoiser()
    base = {name: value.clone() for name, value in denoiser.state_dict().items()}
    add_lora(denoiser, CONFIG)
    train_a_little(denoiser)
    state, adapters = denoiser.state_dict(), adapters_of(denoiser)
    assert set(state) == set(base) | set(adapters)
    assert all(state[name].equal(value) for name, value in base.items())
    assert len(adapters) == 2 * NUM_LAYERS
    assert all(value.abs().max() > 0 for name, value in adapters.items() if name.endswith("up.weight"))


def test_merging_changes_no_output_and_leaves_the_adapted_network_alone() -> None:
    denoiser = small_denoiser()
    add_lora(denoiser, CONFIG)
    train_a_little(denoiser)
    before, state = output(denoiser), {k: v.clone() for k, v in denoiser.state_dict().items()}
    plain = merged(denoiser, small_denoiser())
    torch.testing.assert_close(output(plain), before, atol=1e-6, rtol=1e-6)
    assert all(denoiser.state_dict()[name].equal(value) for name, value in state.items())


def test_an_adapted_layer_is_the_formula_of_the_paper() -> None:
    linear = nn.Linear(6, 3)
    network = nn.Sequential(linear)
    config = LoraConfig(rank=2, alpha=3.0, targets=["0"])
    add_lora(network, config)
    randomised(network, 0.5)
    x = torch.randn(4, 6)
    weight = linear.weight + 3.0 / 2 * network[0].lora.up.weight @ network[0].lora.down.weight
    torch.testing.assert_close(network.eval()(x), x @ weight.T + linear.bias)
    torch.testing.assert_close(
        merged(network, nn.Sequential(nn.Linear(6, 3)), config)(x), x @ weight.T + linear.bias
    )


def test_adapters_travel_alone_and_stack_after_merging() -> None:
    """Regression: MatterGen's adapters cannot be stacked."""
    denoiser, other = small_denoiser(), small_denoiser()
    add_lora(denoiser, CONFIG)
    train_a_little(denoiser)
    add_lora(other, CONFIG)
    other.load_state_dict(adapters_of(denoiser), strict=False)
    assert output(other).equal(output(denoiser))
    with pytest.raises(ValueError, match="no adapters yet"):
        add_lora(denoiser, CONFIG)
    second = merged(denoiser, small_denoiser())
    add_lora(second, CONFIG)
    train_a_little(second)
    torch.testing.assert_close(output(merged(second, small_denoiser())), output(second), atol=1e-6, rtol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    denoiser = small_denoiser()
    add_lora(denoiser, replace(CONFIG, dropout=0.5))
    train_a_little(denoiser)
    assert output(denoiser).equal(output(denoiser))
    denoiser.train()
    assert not output(denoiser).equal(output(denoiser))


def test_the_summary_counts_what_is_trained() -> None:
    model = nn.ModuleDict({"denoiser": small_denoiser(), "condition_module": nn.Linear(3, 4)})
    total = sum(p.numel() for p in model.parameters())
    assert trainable_summary(model).num_trainable == total
    add_lora(model, replace(CONFIG, trainable=["condition_module"]))
    summary = trainable_summary(model)
    widths = 2 * [(32, 96), (32, 32), (32, 128), (128, 32), (32, 192)] + [(32, 64)]
    assert summary.trainable == {"condition_module": 16, "adapters": sum(4 * (a + b) for a, b in widths)}
    assert summary.frozen == {"denoiser": total - 16}
    assert "condition_module: 16 trained, 0 frozen" in str(summary)
    assert f"{summary.num_trainable:,} of {summary.num_trainable + total - 16:,} parameters" in str(summary)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be positive, got 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"targets": []}, "targets must name at least one layer"),
    ],
)
def test_impossible_settings_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoraConfig(**options)


def test_names_that_fit_nothing_are_refused_before_anything_changes() -> None:
    denoiser = small_denoiser()
    with pytest.raises(ValueError, match="got to_q; try x_embedder"):
        add_lora(denoiser, replace(CONFIG, targets=["mlp.fc1", "to_q"]))
    with pytest.raises(ValueError, match="trainable must be the beginning of parameter names, got vae"):
        add_lora(denoiser, replace(CONFIG, trainable=["vae"]))
    assert trainable_summary(denoiser).num_frozen == 0
    assert adapters_of(denoiser) == {}
