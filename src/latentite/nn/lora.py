"""LoRA: fine-tune a frozen network through small additions to its linear layers (Hu et al. 2022).

An own implementation, not the `peft` package, because public names must not change: an adapted layer keeps its
`weight` and `bias` under their names and gains `lora.down.weight` and `lora.up.weight`, so checkpoints of the base
fit before and after.

    names = add_lora(denoiser, LoraConfig())       # everything else is frozen from here on
    ...train...
    state = merged_state_dict(denoiser.state_dict(), LoraConfig())  # of an ordinary network with the same outputs
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from latentite.base.plain import check_counts
from latentite.nn.denoiser import DenoiserAttention

IN_PROJ = "in_proj"
"""Name, below an attention layer, of its fused projection."""
_ADAPTED_WEIGHT = {"lora": "weight", "in_proj_adapter": "in_proj_weight"}
"""Name of an adapter in its layer, and of the weight that it adds to."""
_ADAPTER_TENSOR = re.compile(rf"\.(?P<adapter>{'|'.join(_ADAPTED_WEIGHT)})\.(?P<factor>down|up)\.weight$")


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Size and place of the adapters. Defaults of Chemeleon2, except that modulation is adapted too."""

    rank: int = 16
    alpha: float = 32.0
    """The addition is multiplied by `alpha / rank`."""
    dropout: float = 0.1
    """On the input of the addition, in training."""
    targets: list[str] = field(
        default_factory=lambda: [
            "attn.in_proj",
            "attn.out_proj",
            "mlp.fc1",
            "mlp.fc2",
            "adaLN_modulation.1",
        ]
    )
    """Layers to adapt, by the end of their dotted name; `in_proj` is an attention's fused projection."""
    trainable: list[str] = field(default_factory=list)
    """Beginnings of the names of parameters that are trained in full, for example `final_layer`."""

    def __post_init__(self) -> None:
        check_counts(self, "rank")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.targets:
            raise ValueError("targets must name at least one layer, got none")

    @property
    def scale(self) -> float:
        """Factor of the addition."""
        return self.alpha / self.rank


class LoraBranch(nn.Module):
    """`alpha / rank * up(down(dropout(x)))` (Hu et al. 2022, section 4.1); `up` starts at zero."""

    def __init__(self, in_features: int, out_features: int, config: LoraConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        """The addition to the output of the layer, for any number of leading axes."""
        return self.config.scale * self.up(self.down(self.dropout(inputs)))

    @property
    def weight(self) -> Float[Tensor, "output input"]:
        """The addition to the weight of its layer, computed in double precision."""
        return _addition(self.up.weight, self.down.weight, self.config)


class LoraLinear(nn.Linear):
    """A linear layer with a branch beside it; it takes over the layer's own parameters."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora = LoraBranch(base.in_features, base.out_features, config)

    def forward(self, inputs: Float[Tensor, "*row input"]) -> Float[Tensor, "*row output"]:
        """The layer's own output and its branch's."""
        return F.linear(inputs, self.weight, self.bias) + self.lora(inputs)


def add_lora(network: nn.Module, config: LoraConfig) -> list[str]:
    """Adapt the target layers of a network in place and freeze everything but adapters and `config.trainable`.

    The output does not change until the adapters are trained.

    Returns:
        Names of the adapted layers.

    Raises:
        ValueError: when the network has adapters already, or a target or trainable name fits nothing.
    """
    if _branches(network):
        raise ValueError("the network must have no adapters yet, got one with adapters; merge them first")
    layers = _adaptable(network)
    chosen = [name for name in layers if _ends_with(name, config.targets)]
    for target in config.targets:
        if not any(_ends_with(name, [target]) for name in layers):
            raise ValueError(
                f"targets must be linear layers of the network, got {target}; try {', '.join(layers)}"
            )
    for beginning in config.trainable:
        if not any(name.startswith(beginning) for name, _ in network.named_parameters()):
            raise ValueError(f"trainable must be the beginning of parameter names, got {beginning}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(config.trainable)))
    for name in chosen:
        _adapt(network, name, config)
    return chosen


def _adaptable(network: nn.Module) -> list[str]:
    """Names of all layers that can be adapted."""
    names = []
    for name, module in network.named_modules():
        if isinstance(module, DenoiserAttention):
            names.append(f"{name}.{IN_PROJ}".removeprefix("."))
        elif isinstance(module, nn.Linear):
            names.append(name)
    return names


def _ends_with(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _adapt(network: nn.Module, name: str, config: LoraConfig) -> None:
    parent_name, _, child = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    if child == IN_PROJ and isinstance(parent, DenoiserAttention):
        weight = parent.in_proj_weight
        branch = LoraBranch(weight.shape[1], weight.shape[0], config)
        parent.in_proj_adapter = branch.to(weight).train(parent.training)
        return
    base = getattr(parent, child)
    adapted = LoraLinear(base, config)
    adapted.lora.to(base.weight)
    setattr(parent, child, adapted.train(base.training))


def _sum(weight: Tensor, addition: Tensor) -> Tensor:
    """The weight with a branch's addition, rounded once."""
    return (weight.detach().double() + addition.detach()).to(weight.dtype)


def merged_state_dict(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The tensors of an ordinary network with the same outputs: weights that include the adapters' additions.

    Args:
        state: of a network that was prepared by `add_lora`, under any prefix.
        config: with which it was prepared.
    """
    plain = {name: tensor for name, tensor in state.items() if not _ADAPTER_TENSOR.search(name)}
    for name in state.keys() - plain.keys():
        match = _ADAPTER_TENSOR.search(name)
        if match is not None and match["factor"] == "up":
            layer = name[: match.start()]
            weight = f"{layer}.{_ADAPTED_WEIGHT[match['adapter']]}"
            down = state[name.replace(".up.", ".down.")]
            plain[weight] = _sum(plain[weight], _addition(state[name], down, config))
    return plain


def _addition(up: Tensor, down: Tensor, config: LoraConfig) -> Tensor:
    """The addition of a branch to the weight of its layer, in double precision."""
    return config.scale * (up.double() @ down.double())


def _branches(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, LoraBranch)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainableSummary:
    """Numbers of trained and frozen parameters of a network."""

    trainable: dict[str, int]
    """For each part of the network (first name) how many numbers are trained."""
    frozen: dict[str, int]
    """And how many are not."""

    @property
    def num_trainable(self) -> int:
        """Numbers that are trained, of all parts."""
        return sum(self.trainable.values())

    @property
    def num_frozen(self) -> int:
        """Numbers that are not, of all parts."""
        return sum(self.frozen.values())

    def __str__(self) -> str:
        total = self.num_trainable + self.num_frozen
        share = 100.0 * self.num_trainable / total if total else 0.0
        lines = [f"{self.num_trainable:,} of {total:,} parameters are trained ({share:.2f} %)"]
        for part in dict.fromkeys([*self.trainable, *self.frozen]):
            trained, frozen = self.trainable.get(part, 0), self.frozen.get(part, 0)
            lines.append(f"  {part}: {trained:,} trained, {frozen:,} frozen")
        return "\n".join(lines)


def trainable_summary(network: nn.Module) -> TrainableSummary:
    """Counts trained and frozen parameters by part of the network, adapters as a part of their own."""
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    adapters = tuple(f"{name}." for name in _branches(network))
    for name, parameter in network.named_parameters():
        part = "adapters" if adapters and name.startswith(adapters) else name.split(".")[0]
        kind = counts[parameter.requires_grad]
        kind[part] = kind.get(part, 0) + parameter.numel()
    return TrainableSummary(trainable=counts[True], frozen=counts[False])
