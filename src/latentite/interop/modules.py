"""Chemeleon2's modules as its checkpoints pickle them: trees of torch's modules under that project's class names.

Its hyperparameters hold whole modules, so a file that the project can load must have them. Only names, sizes and
weights matter: the classes made here compute nothing, and in the file they are names.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.denoiser import FREQUENCIES, DenoiserConfig
from latentite.nn.transformer import TransformerSize
from latentite.nn.vae import VAEConfig

ENCODER = "src.vae_module.encoders.transformer.TransformerEncoder"
DECODER = "src.vae_module.decoders.transformer.TransformerDecoder"
DIT = "src.ldm_module.denoisers.dit"
VAE_MODULE = "src.vae_module.vae_module.VAEModule"
ATTRIBUTES = "lightning.fabric.utilities.data.AttributeDict"


def named_module(kind: str, attributes: Mapping[str, Any], **children: nn.Module) -> nn.Module:
    """A module that a pickle calls `kind`, with these attributes and children."""
    module_name, _, name = kind.rpartition(".")
    made = type(name, (nn.Module,), {"__module__": module_name, "_is_named_only": True})()
    assert isinstance(made, nn.Module)
    for key, child in children.items():
        made.add_module(key, child)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def save_named(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save` that writes the classes of `named_module` by name, though nobody could import them here."""
    picklers = SimpleNamespace(Pickler=_NamingPickler, __name__=__name__)
    with path.open("wb") as file:
        torch.save(content, file, pickle_module=picklers)


class _NamingPickler(pickle._Pickler):
    """The pickler written in Python, which lets a class be named without importing it."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and "_is_named_only" in vars(obj):
            named = f"{obj.__module__}\n{obj.__name__}\n".encode()
            self.write(pickle.GLOBAL + named)  # type: ignore[attr-defined]  # not in typeshed, as the next two
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]  # not in typeshed


def vae_modules(config: VAEConfig) -> dict[str, nn.Module]:
    """Encoder, decoder and the two linear layers between, in the order of the project's tensors."""
    width = config.encoder.d_model
    encoder = named_module(
        ENCODER,
        {"max_num_elements": NUM_ELEMENT_CLASSES, "d_model": width, "num_layers": config.encoder.num_layers},
        atom_type_embedder=nn.Embedding(NUM_ELEMENT_CLASSES, width),
        lattices_embedder=_embedder(9, width),
        frac_coords_embedder=_embedder(3, width),
        transformer=_transformer(config.encoder),
    )
    width = config.decoder.d_model
    decoder = named_module(
        DECODER,
        {
            "max_num_elements": NUM_ELEMENT_CLASSES,
            "d_model": width,
            "num_layers": config.decoder.num_layers,
            "atom_type_predict": True,
        },
        transformer=_transformer(config.decoder),
        atom_types_head=nn.Linear(width, NUM_ELEMENT_CLASSES),
        frac_coords_head=nn.Linear(width, 3, bias=False),
        lattice_head=nn.Linear(width, 6, bias=False),
    )
    return {
        "encoder": encoder,
        "decoder": decoder,
        "quant_conv": nn.Linear(config.encoder.d_model, 2 * config.latent_dim, bias=False),
        "post_quant_conv": nn.Linear(config.latent_dim, width, bias=False),
    }


def training_module(parts: Mapping[str, nn.Module], hyper: Mapping[str, Any], matcher: object) -> nn.Module:
    """A frozen VAE as a predictor carries it: Lightning's module around its parts, with what that needs to be alive.

    Args:
        parts: of `vae_modules`, with their weights.
        hyper: hyperparameters of the VAE.
        matcher: its structure matcher.
    """
    state = {
        "prepare_data_per_node": True,
        "allow_zero_length_dataloader_with_multiple_devices": False,
        "_log_hyperparams": False,
        "_dtype": torch.float32,
        "_device": torch.device("cpu"),
        **dict.fromkeys(("_trainer", "_example_input_array", "_strict_loading", "_current_fx_name")),
        **dict.fromkeys(("_metric_attributes", "_compiler_ctx", "_fabric", "_device_mesh")),
        "_automatic_optimization": True,
        "_param_requires_grad_state": {},
        "_fabric_optimizers": [],
        "_hparams_name": "kwargs",
        "_hparams": _attribute_dict(hyper),
        "_hparams_initial": _attribute_dict(hyper),
        "sm": matcher,
    }
    return named_module(VAE_MODULE, state, **parts).eval().requires_grad_(False)


def _attribute_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    module_name, _, name = ATTRIBUTES.rpartition(".")
    kind = type(name, (dict,), {"__module__": module_name, "_is_named_only": True})
    made = kind(values)
    assert isinstance(made, dict)
    return made


def denoiser_module(config: DenoiserConfig) -> nn.Module:
    """The DiT."""
    depth, hidden, num_heads = config.shape
    return named_module(
        f"{DIT}.DiT",
        {
            "learn_sigma": config.learn_variance,
            "latent_dim": config.latent_dim,
            "depth": depth,
            "hidden_size": hidden,
            "num_heads": num_heads,
        },
        x_embedder=nn.Linear(config.latent_dim, hidden),
        t_embedder=named_module(
            f"{DIT}.TimestepEmbedder",
            {"frequency_embedding_dim": FREQUENCIES},
            mlp=nn.Sequential(nn.Linear(FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)),
        ),
        blocks=nn.ModuleList(_block(hidden, num_heads, int(hidden * config.mlp_ratio)) for _ in range(depth)),
        final_layer=named_module(
            f"{DIT}.FinalLayer",
            {},
            norm_final=nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False),
            linear=nn.Linear(hidden, config.latent_dim * (2 if config.learn_variance else 1)),
            adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden)),
        ),
    )


def load_shared(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], prefix: str = "") -> list[str]:
    """Give modules the tensors of a state, which they then share; names of these tensors in the modules' order.

    Raises:
        RuntimeError: when names or shapes differ.
    """
    names = []
    for key, module in modules.items():
        start = f"{prefix}{key}."
        own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        module.load_state_dict(own, assign=True)
        names += [start + name for name in module.state_dict()]
    return names


def _embedder(num_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, width, bias=False), nn.SiLU(), nn.Linear(width, width))


def _transformer(size: TransformerSize) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        size.d_model,
        size.num_heads,
        size.dim_feedforward,
        dropout=0.0,
        activation=nn.GELU(approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    norm = nn.LayerNorm(size.d_model)
    return nn.TransformerEncoder(layer, size.num_layers, norm=norm, enable_nested_tensor=False)


def _block(hidden: int, num_heads: int, width: int) -> nn.Module:
    return named_module(
        f"{DIT}.DiTBlock",
        {},
        norm1=nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False),
        attn=nn.MultiheadAttention(hidden, num_heads, dropout=0, batch_first=True),
        norm2=nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False),
        mlp=named_module(
            f"{DIT}.Mlp",
            {},
            fc1=nn.Linear(hidden, width),
            act=nn.GELU(approximate="tanh"),
            drop1=nn.Dropout(0),
            norm=nn.Identity(),
            fc2=nn.Linear(width, hidden),
            drop2=nn.Dropout(0),
        ),
        adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden)),
    )
