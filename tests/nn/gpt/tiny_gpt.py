"""Untrained crystal GPTs, small enough for tests."""

from __future__ import annotations

import torch

from latentite.nn.condition_values import ConditionConfig
from latentite.nn.conditions import ConditionModuleConfig
from latentite.nn.gpt.network import GPTConfig, GPTMode, GPTNetwork
from latentite.nn.gpt.sample import num_uniforms
from latentite.nn.gpt.size import GPTLimits, GPTSize

LIMITS = GPTLimits(max_atoms=20, max_orbits=20, max_elements=4)


def tiny_gpt(
    *conditions: ConditionConfig, limits: GPTLimits = LIMITS, mode: GPTMode = GPTMode.SYMMETRY, seed: int = 0
) -> GPTNetwork:
    """A network with volumes of 15 Å^3 per atom and letters that are not all alike."""
    torch.manual_seed(seed)
    size = GPTSize(d_model=32, num_layers=2, num_heads=2, dim_feedforward=64, dropout=0.0, num_mixtures=3)
    module = ConditionModuleConfig(conditions=list(conditions), hidden_size=32) if conditions else None
    network = GPTNetwork(GPTConfig(size=size, limits=limits, mode=mode, condition_module=module))
    with torch.no_grad():
        network.gpt.element_volume.fill_(2.7)
        network.gpt.cell_std.fill_(0.15)
        network.gpt.cell_mean.copy_(torch.tensor([0.0, -0.05, 0.1, 0.1, 0.0, 0.05]))
        for name, weights in network.gpt.named_parameters():
            if "head" in name and weights.ndim == 2:
                weights.mul_(3.0)
    return network.eval()


def uniforms(network: GPTNetwork, num: int, seed: int = 0) -> torch.Tensor:
    """Random numbers of some crystals."""
    generator = torch.Generator().manual_seed(seed)
    count = num_uniforms(network.config.limits.max_orbits)
    return torch.rand(num, count, generator=generator, dtype=torch.float64)
