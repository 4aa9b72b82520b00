"""`PropertyPredictor`: properties of a crystal from what a VAE's encoder says of its atoms.

Latent means and, by choice, encoder features of all atoms are pooled into one vector per crystal, which a trunk and
its heads turn into normalised outputs. At a fidelity f, a numeric target is

    y_f = b_f(composition) + m + s (g(h) + d_f(h))

with b_f an element baseline, m and s the mean and spread of the training labels less their baselines, g the
reference's head and d_f that of the fidelity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.crystal import FIDELITY, CrystalBatch
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.baselines import ElementBaselines, Extent
from latentite.nn.condition_values import label_statistics
from latentite.nn.predictor_config import FidelityMode, Pooling, Predictions, PredictorConfig, read_outputs
from latentite.nn.segment import segment_mean, segment_softmax, segment_sum
from latentite.nn.vae import CrystalVAE


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
        """The part of a member of the ensemble that is a fidelity's own; without parameters for the reference."""
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


SMALLEST_STD = 1e-4
"""Features that vary less are not stretched."""
ENCODED_WEIGHT = 0.25
"""Norm of what the encoder says beside the shares of elements, in `standardise`; more hides these (docs/log.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorInput:
    """Inputs of the heads for a batch, after the encoder."""

    features: Float[Tensor, "row feature"]
    """One row per crystal, or per atom where the pooling is learned."""
    num_atoms: Int[Tensor, " crystal"]
    fidelity: Int[Tensor, " crystal"]
    baseline: Float[Tensor, "crystal target"]
    """In the unit of the labels; 0 without baselines."""


class PropertyPredictor(nn.Module):
    """VAE, pooling, and heads for all targets. Tensor names are those of Chemeleon2's predictors."""

    mean: Tensor
    std: Tensor
    spread_scale: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = CrystalVAE(config.vae).requires_grad_(False)
        self.attention = _scorer(config.num_features) if config.pooling is Pooling.ATTENTION else None
        self.proj = _head(config)
        self.ensemble = nn.ModuleList(_head(config) for _ in range(config.ensemble - 1))
        self.fidelity_heads = FidelityHeads(config) if config.num_fidelities > 1 else None
        self.baselines = build_baselines(config) if config.has_baselines else None
        num_targets = len(config.targets)
        self.register_buffer("mean", torch.zeros(num_targets))
        self.register_buffer("std", torch.ones(num_targets))
        if config.ensemble > 1:
            # Members agree more with each other than with the truth: their spread is stretched to fit validation.
            self.register_buffer("spread_scale", torch.ones(num_targets))
        if config.standardise:
            self.register_buffer("feature_mean", torch.zeros(config.num_features))
            self.register_buffer("feature_std", torch.ones(config.num_features))

    def atom_features(
        self, encoded: Float[Tensor, "atom channel"], atomic_numbers: Int[Tensor, " atom"]
    ) -> Float[Tensor, "atom feature"]:
        """Latent means and, if the config says so, what the encoder said and which element an atom is."""
        parts = [self.vae.posterior(encoded).mean]
        if self.config.use_encoder_features:
            parts.append(encoded)
        if self.config.composition:
            elements = torch.arange(NUM_ELEMENT_CLASSES, device=encoded.device)
            parts.append((atomic_numbers.unsqueeze(-1) == elements).to(encoded.dtype))
        return torch.cat(parts, dim=-1)

    def prepare(self, batch: CrystalBatch) -> PredictorInput:
        """All that does not depend on the heads.

        Raises:
            ValueError: naming an element without a baseline.
        """
        features = self.atom_features(self.vae.features(batch), batch.atomic_numbers)
        if self.config.pooling is not Pooling.ATTENTION:
            pool = segment_mean if self.config.pooling is Pooling.MEAN else segment_sum
            features = pool(features, batch.crystal_index, len(batch))
        fidelity = self.fidelity_of(batch)
        return PredictorInput(
            features=features,
            num_atoms=batch.num_atoms,
            fidelity=fidelity,
            baseline=self.baseline(batch, fidelity).to(features.dtype),
        )

    def fidelity_of(self, batch: CrystalBatch) -> Int[Tensor, " crystal"]:
        """Position of each crystal's fidelity: as labelled, else the reference."""
        reference = self.config.reference_index
        codes = batch.properties.get(FIDELITY)
        if codes is None or self.config.num_fidelities == 1:
            return torch.full((len(batch),), reference, device=batch.device)
        return torch.where(codes.isnan(), float(reference), codes).long()

    def baseline(
        self, batch: CrystalBatch, fidelity: Int[Tensor, " crystal"]
    ) -> Float[Tensor, "crystal target"]:
        """Baseline of every target from composition alone, in the unit of the labels."""
        if self.baselines is None:
            return batch.frac_coords.new_zeros(len(batch), len(self.config.targets))
        return self.baselines(batch, fidelity)

    def pooled(self, inputs: PredictorInput) -> Float[Tensor, "crystal feature"]:
        """One vector per crystal."""
        if self.attention is None:
            return inputs.features
        count = len(inputs.num_atoms)
        index = torch.arange(count, device=inputs.features.device).repeat_interleave(inputs.num_atoms)
        weights = segment_softmax(self.attention(inputs.features), index, count)
        return segment_sum(weights * inputs.features, index, count)

    def outputs(self, inputs: PredictorInput) -> Float[Tensor, "member crystal output"]:
        """Raw outputs of every member of the ensemble; `read_outputs` says what they mean."""
        return self.head_outputs(self.pooled(inputs), inputs.fidelity)

    def head_outputs(
        self, features: Float[Tensor, "crystal feature"], fidelity: Int[Tensor, " crystal"]
    ) -> Float[Tensor, "member crystal output"]:
        """Outputs of every member of the ensemble for one vector per crystal."""
        if self.config.standardise:
            features = (features - self.feature_mean) / self.feature_std
        if self.fidelity_heads is not None:
            features = self.fidelity_heads.at_input(features, fidelity)
        outputs = []
        for member, head in enumerate((self.proj, *self.ensemble)):
            assert isinstance(head, nn.Sequential)
            hidden = head[:-1](features)
            output = head[-1](hidden)
            if self.fidelity_heads is not None:
                output = self.fidelity_heads.at_output(member, hidden, output, fidelity)
            outputs.append(output)
        return torch.stack(outputs)

    def forward(self, batch: CrystalBatch) -> Float[Tensor, "crystal output"]:
        """Mean outputs of the ensemble. A numeric target is less its mean and baseline, in units of its `std`."""
        return self.outputs(self.prepare(batch)).mean(dim=0)

    def predictions(self, inputs: PredictorInput) -> Predictions:
        """Values, uncertainties and probabilities of all targets."""
        return read_outputs(
            self.config,
            self.outputs(inputs).float(),
            mean=self.mean + inputs.baseline,
            std=self.std,
            spread_scale=self.spread_scale if self.config.ensemble > 1 else None,
        )

    def predict(self, batch: CrystalBatch) -> dict[str, Float[Tensor, " crystal"]]:
        """Every target by name, in the unit of its labels; of a categorical one the code of the likeliest class."""
        return self.predictions(self.prepare(batch)).values

    def normalised(
        self, labels: Float[Tensor, "crystal target"], baseline: Float[Tensor, "crystal target"]
    ) -> Float[Tensor, "crystal target"]:
        """Labels as the outputs are: numbers transformed, less baseline and mean, over `std`; codes as they are."""
        transformed = [
            self.config.transform(n)(y) for n, y in zip(self.config.targets, labels.T, strict=True)
        ]
        return (torch.stack(transformed, dim=1) - baseline - self.mean) / self.std

    @torch.no_grad()
    def fit_feature_statistics(self, pooled: Float[Tensor, "crystal feature"]) -> None:
        """Store mean and standard deviation of pooled features, for `standardise`."""
        std, mean = torch.std_mean(pooled.double(), dim=0, correction=0)
        std = torch.where(std > SMALLEST_STD, std, 1.0)
        if self.config.composition:
            std *= math.sqrt(self.config.num_features - NUM_ELEMENT_CLASSES) / ENCODED_WEIGHT
            # Shares are of one scale already, and a rare element would be stretched most.
            mean[-NUM_ELEMENT_CLASSES:], std[-NUM_ELEMENT_CLASSES:] = 0.0, 1.0
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    @torch.no_grad()
    def fit_statistics(
        self,
        labels: Float[Tensor, "crystal target"],
        baseline: Float[Tensor, "crystal target"],
        chosen: Bool[Tensor, " crystal"] | None = None,
    ) -> None:
        """Store mean and standard deviation of the training split's labels, missing ones (NaN) left out.

        Args:
            labels: in the order of the targets.
            baseline: of the same crystals.
            chosen: crystals of the reference fidelity, which are asked first; None for all.

        Raises:
            ValueError: for a target without labels, with labels outside its transform's range, or without spread.
        """
        for column, name in enumerate(self.config.targets):
            known = ~labels[:, column].isnan()
            if not bool(known.any()):
                raise ValueError(f"target {name} must have labels in the training split, got none")
            if name in self.config.classes:
                continue
            if chosen is not None and bool((known & chosen).any()):
                known = known & chosen
            mean, std = label_statistics(
                labels[known, column],
                self.config.transform(name),
                what=f"target {name}",
                baseline=baseline[known, column],
            )
            self.mean[column], self.std[column] = mean, std


def build_baselines(config: PredictorConfig) -> ElementBaselines:
    """The empty table of baselines."""
    return ElementBaselines(
        fidelities=config.fidelities or ["labels"],
        targets=config.targets,
        extents=[
            config.extent(name) if name not in config.classes else Extent.NONE for name in config.targets
        ],
    )


def _head(config: PredictorConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = config.num_features
    for hidden in config.hidden_widths:
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Dropout(config.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, config.total_outputs))


def _scorer(width: int) -> nn.Sequential:
    """A score per atom (Ilse et al. 2018, eq. 8), 0 at the start: the pooling begins as a mean."""
    last = nn.Linear(max(1, width // 2), 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(width, max(1, width // 2)), nn.Tanh(), last)
