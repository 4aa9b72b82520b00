"""The predictor's objective: masks, weights over what is present, and nothing of a missing label anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite.base.plain import from_plain
from latentite.crystal import FIDELITY
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import HeadKind, PredictorConfig
from latentite.objectives.predictor import (
    PredictorLoss,
    PredictorLossConfig,
    labels_of,
    pinball,
    predictor_terms,
)

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
VAE_VALUES = {"encoder": SIZE, "decoder": SIZE}


def network_of(**changes: object) -> PropertyPredictor:
    torch.manual_seed(0)
    settings = {
        "targets": ["a", "b", "c"],
        "classes": {"c": ["n", "y"]},
        "transforms": {"b": "log"},
        "fidelities": ["low", "high"],
        "ensemble": 2,
    }
    config = from_plain(PredictorConfig, {"vae": VAE_VALUES, **settings, **changes})
    return PropertyPredictor(config).eval()


def labelled(crystals):
    """Random labels, a third of them missing, and a fidelity each."""
    generator = np.random.default_rng(0)
    count = len(crystals)
    labels = {
        "a": generator.normal(size=count),
        "b": generator.uniform(0.1, 9.0, count),
        "c": generator.integers(0, 2, count).astype(float),
    }
    properties = {
        name: torch.tensor(np.where(generator.random(count) < 0.33, np.nan, values), dtype=torch.float32)
        for name, values in labels.items()
    }
    fidelity = torch.tensor(generator.integers(0, 2, count), dtype=torch.float32)
    return crystals.with_properties({**properties, FIDELITY: fidelity})


@pytest.mark.parametrize("head", list(HeadKind))
@pytest.mark.parametrize("filler", [1e9, -1e9, float("inf"), 0.0])
def test_a_masked_label_changes_no_bit_of_loss_or_gradient(crystals, head, filler):
    network = network_of(head=head)
    batch = labelled(crystals)
    labels = labels_of(network.config, batch.properties)
    present = ~labels.isnan()
    assert 0 < int(present.sum()) < present.numel()

    def losses_and_gradients(values, mask):
        network.zero_grad()
        inputs = network.prepare(batch)
        terms = predictor_terms(
            network, inputs, network.outputs(inputs), values, PredictorLossConfig(), present=mask
        )
        total = terms.total()
        total.backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        return total, terms.values(), gradients

    total, values, gradients = losses_and_gradients(labels, None)
    filled = torch.where(present, labels, filler)
    other_total, other_values, other_gradients = losses_and_gradients(filled, present)
    assert total.isfinite()
    assert total.equal(other_total)
    assert all(values[name].equal(other_values[name]) for name in values)
    assert gradients.keys() == other_gradients.keys()
    assert all(gradients[name].isfinite().all() for name in gradients)
    assert all(gradients[name].equal(other_gradients[name]) for name in gradients)


def test_a_target_without_any_label_gives_no_gradient_and_no_nan(crystals):
    network = network_of()
    empty = {name: torch.full((len(crystals),), torch.nan) for name in "abc"}
    inputs = network.prepare(crystals)
    labels = labels_of(network.config, empty)
    terms = predictor_terms(network, inputs, network.outputs(inputs), labels, PredictorLossConfig())
    terms.total().backward()
    assert terms.total().item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_the_total_is_the_weighted_mean_over_what_is_present(crystals):
    """Against a loop over labels: one mean per (target, fidelity), weights shared out among those with a label."""
    network = network_of(targets=["a"], classes={}, transforms={}, ensemble=1)
    generator = np.random.default_rng(1)
    values, codes = generator.normal(size=16), generator.integers(0, 2, 16)
    values[generator.random(16) < 0.3] = np.nan
    options = PredictorLossConfig(
        kind=PredictorLoss.MAE, target_weights={"a": 2.0}, fidelity_weights={"low": 3.0, "high": 0.5}
    )
    properties = {
        "a": torch.tensor(values, dtype=torch.float32),
        FIDELITY: torch.tensor(codes, dtype=torch.float32),
    }
    batch = crystals.with_properties(properties)
    predicted = network(batch)[:, 0].tolist()
    means = []
    for code in (0, 1):
        errors = [
            abs(p - y) for p, y, c in zip(predicted, values, codes, strict=True) if c == code and y == y
        ]
        means.append(sum(errors) / len(errors))
    expected = (2 * 3.0 * means[0] + 2 * 0.5 * means[1]) / (2 * 3.0 + 2 * 0.5)
    assert predictor_loss(network, batch, options).total().item() == pytest.approx(expected, rel=1e-5)
    only_low = batch.select(torch.tensor(np.flatnonzero(codes == 0)))
    total = predictor_loss(network, only_low, options).total().item()
    assert total == pytest.approx(means[0], rel=1e-5)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0.05, 0.95))
def test_the_pinball_loss_is_least_at_the_quantile(values, level):
    labels = torch.tensor(sorted(values), dtype=torch.float64)
    levels = torch.tensor([level], dtype=torch.float64)

    def loss(guess):
        return pinball(
            torch.full((1, len(labels), 1), float(guess), dtype=torch.float64), labels, levels
        ).mean()

    best = min(loss(guess) for guess in labels)
    grid = torch.linspace(-4, 4, 81, dtype=torch.float64)
    assert best <= min(loss(guess) for guess in grid) + 1e-9


def test_the_pinball_loss_of_the_median_is_the_absolute_error():
    guess = torch.tensor([[[1.0], [4.0]]])
    assert pinball(guess, torch.tensor([3.0, 3.5]), torch.tensor([0.5])).tolist() == [[2.0, 0.5]]


def test_a_missing_property_is_named(crystals):
    with pytest.raises(ValueError, match="target a must be a label of the crystals, which have: none"):
        predictor_loss(network_of(), crystals, PredictorLossConfig())
