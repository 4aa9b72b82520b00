"""Tiny random latent diffusion models: fast, and with outputs that depend on everything that goes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from latentite.generators import asks
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.latent.generator import LatentGenerator, card_of
from latentite.generators.latent.start import Start
from latentite.generators.sizes import NumAtoms
from latentite.nn.condition_values import ConditionConfig, ConditionKind
from latentite.nn.conditions import ConditionModuleConfig
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize, OutputLayout, TokenIndex
from latentite.nn.encoders import EncoderConfig
from latentite.nn.ldm import LatentDiffusion, LDMConfig
from latentite.nn.vae import DecoderConfig, VAEConfig
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind

DDPM = DiffusionConfig(num_steps=20)
FLOW = DiffusionConfig(kind=DiffusionKind.FLOW)
TRAIN_SIZES = NumAtoms.from_histogram([0, 3, 5, 2, 8, 4, 6, 1, 7, 0, 2, 0, 4])
HIDDEN = 16

ALL_CONDITIONS = (
    ConditionConfig(name="band_gap"),
    ConditionConfig(name="composition", kind=ConditionKind.COMPOSITION),
    ConditionConfig(name="chemical_system", kind=ConditionKind.CHEMICAL_SYSTEM),
    ConditionConfig(name="spacegroup", kind=ConditionKind.SPACE_GROUP),
)
NUM_ATOMS = ConditionConfig(name="num_atoms", kind=ConditionKind.NUM_ATOMS)


def tiny_network(
    diffusion: DiffusionConfig = DDPM,
    conditions: tuple[ConditionConfig, ...] = (),
    *,
    atom_type_predict: bool = True,
    index: TokenIndex = TokenIndex.SINUSOIDAL,
    layout: OutputLayout = OutputLayout.PLAIN,
    seed: int = 0,
) -> LatentDiffusion:
    """A network in evaluation mode."""
    torch.manual_seed(seed)
    size = {"d_model": HIDDEN, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
    config = LDMConfig(
        vae=VAEConfig(
            encoder=EncoderConfig(**size),
            decoder=DecoderConfig(**size),
            latent_dim=4,
            atom_type_predict=atom_type_predict,
        ),
        denoiser=DenoiserConfig(
            size=DenoiserSize.CUSTOM,
            depth=1,
            hidden_size=HIDDEN,
            num_heads=2,
            latent_dim=4,
            learn_variance=diffusion.learn_variance,
            index=index,
            output_layout=layout,
        ),
        condition_module=ConditionModuleConfig(conditions=list(conditions), hidden_size=HIDDEN)
        if conditions
        else None,
    )
    network = LatentDiffusion(config)
    for parameter in network.denoiser.parameters():  # at first the last layer and the gates are zero
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    network.latent_mean.copy_(0.3 * torch.randn(4))
    network.latent_std.copy_(0.5 + torch.rand(4))
    module = network.condition_module
    for name in () if module is None else module.names:
        if module is not None and module.encoder(name).is_number:
            module.encoder(name).set_statistics(2.0, 1.5)
    return network.eval()


def build_asks(
    network: LatentDiffusion,
    *,
    train_sizes: NumAtoms | None,
    guidance: float | dict[str, float] = 2.0,
    start: Start | None = None,
    **requested: Any,
) -> tuple[Ask, ...]:
    """What a generator with this network makes of what is requested."""
    generator = LatentGenerator(
        card=card_of(network, train_sizes),
        network=network,
        diffusion=DDPM,
        sampling=SamplingConfig(guidance=guidance),
        start=start,
        settings={},
    )
    return asks.build_asks(generator, **requested)


def some_jobs(count: int = 24) -> Jobs:
    """First attempts at crystals of 1 to 12 atoms."""
    return Jobs.plain(torch.arange(count) * 5 % 12 + 1)


@contextmanager
def counted_passes(network: LatentDiffusion) -> Iterator[list[int]]:
    """The number of crystals in each pass of the denoiser."""
    rows: list[int] = []
    handle = network.denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()
