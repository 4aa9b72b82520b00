"""The property predictor: pooling, heads, fidelities, and what its outputs mean."""

from __future__ import annotations

from dataclasses import astuple
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite.base.plain import from_plain
from latentite.crystal import FIDELITY, CrystalBatch
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.condition_values import Transform
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import (
    FidelityMode,
    HeadKind,
    Pooling,
    PredictorConfig,
    interval_miss,
    read_outputs,
)
from latentite.nn.vae import VAEConfig

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
VAE_VALUES = {"encoder": SIZE, "decoder": SIZE}
VAE = from_plain(VAEConfig, VAE_VALUES)


def predictor(**changes: object) -> PropertyPredictor:
    torch.manual_seed(0)
    config = from_plain(PredictorConfig, {"vae": VAE_VALUES, "targets": ["a", "b"], **changes})
    return PropertyPredictor(config).eval()


def at(batch: CrystalBatch, code: float) -> CrystalBatch:
    return batch.with_properties({FIDELITY: torch.full((len(batch),), float(code))})


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_prediction_does_not_depend_on_the_batch(crystals, pooling):
    network = predictor(pooling=pooling, ensemble=2)
    if network.attention is not None:
        torch.nn.init.normal_(network.attention[-1].weight)
    together = network(crystals)
    alone = torch.cat([network(crystals.select(torch.tensor([i]))) for i in range(len(crystals))])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


def test_attention_begins_as_the_mean(crystals):
    mean, attention = predictor(pooling="mean"), predictor(pooling="attention")
    attention.load_state_dict(mean.state_dict(), strict=False)
    torch.testing.assert_close(attention(crystals), mean(crystals))


def test_the_composition_is_pooled_as_shares_or_as_numbers_of_atoms(crystals):
    for pooling, total in (("mean", torch.ones(len(crystals))), ("sum", crystals.num_atoms.float())):
        network = predictor(pooling=pooling, composition=True)
        found = network.pooled(network.prepare(crystals))[:, -NUM_ELEMENT_CLASSES:]
        for row, (numbers, _, _) in zip(
            found * (crystals.num_atoms / total)[:, None], map(astuple, crystals.to_arrays()), strict=True
        ):
            counts = torch.bincount(torch.from_numpy(numbers), minlength=NUM_ELEMENT_CLASSES)
            torch.testing.assert_close(row, counts.float())


def test_heads_see_standardised_features(crystals):
    """Statistics in, the same prediction as from features standardised by hand in numpy."""
    network = predictor(standardise=True, composition=True)
    pooled = network.pooled(network.prepare(crystals)).detach()
    network.fit_feature_statistics(pooled)
    features = pooled.double().numpy()
    by_hand = features.copy()  # the elements stay shares
    encoded = features[:, :-NUM_ELEMENT_CLASSES]
    by_hand[:, :-NUM_ELEMENT_CLASSES] = (encoded - encoded.mean(axis=0)) / encoded.std(axis=0)
    by_hand[:, :-NUM_ELEMENT_CLASSES] *= 0.25 / encoded.shape[1] ** 0.5
    wanted = network.proj(torch.from_numpy(by_hand).float())
    torch.testing.assert_close(network(crystals), wanted, atol=1e-4, rtol=1e-4)
    plain = predictor(composition=True)
    plain.load_state_dict(network.state_dict(), strict=False)
    assert (plain(crystals) - wanted).abs().max() > 1e-4


def test_the_tensors_of_a_plain_predictor_are_chemeleon2s(crystals):
    names = {name for name in predictor().state_dict() if not name.startswith("vae.")}
    layers = {f"proj.{i}.{part}" for i in (0, 1, 4, 5, 8) for part in ("weight", "bias")}
    assert names == layers | {"mean", "std"}


@pytest.mark.parametrize("mode", [FidelityMode.RESIDUAL, FidelityMode.EMBEDDING])
@pytest.mark.parametrize("reference", ["x", "y"])
def test_a_fidelity_begins_at_the_references_values(crystals, mode, reference):
    network = predictor(fidelities=["x", "y", "z"], reference=reference, fidelity_mode=mode, ensemble=2)
    expected = network(crystals)
    for code in range(3):
        assert network(at(crystals, code)).equal(expected)


@pytest.mark.parametrize("mode", list(FidelityMode))
def test_each_crystal_is_predicted_at_its_own_fidelity(crystals, mode):
    network = predictor(fidelities=["x", "y", "z"], reference="y", fidelity_mode=mode)
    for parameter in network.fidelity_heads.parameters():
        torch.nn.init.normal_(parameter)
    codes = torch.arange(len(crystals)) % 3
    mixed = network(crystals.with_properties({FIDELITY: codes.float()}))
    apart = torch.stack([network(at(crystals, code)) for code in range(3)])
    torch.testing.assert_close(mixed, apart[codes, torch.arange(len(crystals))])
    assert not torch.allclose(apart[0], apart[1])
    assert not torch.allclose(apart[2], apart[1])
    missing = network(crystals.with_properties({FIDELITY: torch.full((len(crystals),), torch.nan)}))
    assert missing.equal(network(crystals))


@given(st.floats(-30, 30), st.sampled_from(list(Transform)))
def test_the_inverse_of_a_transform_undoes_it(value, transform):
    number = torch.tensor(abs(value) + 0.1 if transform is Transform.LOG else value, dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform(number)), number)


def test_normalised_labels_are_what_predictions_undo(crystals):
    network = predictor(transforms={"a": Transform.LOG, "b": Transform.ASINH})
    labels = torch.rand(len(crystals), 2) * 50 + 0.1
    baseline = torch.zeros_like(labels)
    network.fit_statistics(labels, baseline)
    normalised = network.normalised(labels, baseline)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(2))
    found = read_outputs(
        network.config,
        normalised[None],
        mean=network.mean.expand(len(labels), 2),
        std=network.std,
        spread_scale=None,
    )
    torch.testing.assert_close(torch.stack(list(found.values.values()), 1), labels)


def test_statistics_leave_missing_labels_out_and_ask_the_reference_first(crystals):
    network = predictor(targets=["a", "b", "c"], classes={"c": ["n", "y"]})
    labels = torch.tensor([[1.0, 6.0, 1.0], [3.0, 8.0, 0.0], [torch.nan, 90.0, 1.0], [100.0, torch.nan, 0.0]])
    network.fit_statistics(labels, torch.zeros(4, 3), torch.tensor([True, True, False, False]))
    assert network.mean.tolist() == [2.0, 7.0, 0.0]
    assert network.std.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="target a must have labels"):
        network.fit_statistics(torch.full((4, 3), torch.nan), torch.zeros(4, 3))


def test_quantile_heads_give_the_median_and_calibrated_intervals_of_a_normal_distribution():
    config = PredictorConfig(vae=VAE, targets=["a"], head=HeadKind.QUANTILE)
    levels = torch.tensor([NormalDist(2.0, 0.5).inv_cdf(q) for q in config.quantiles])
    found = read_outputs(
        config, levels.expand(1, 3, -1), mean=torch.zeros(3, 1), std=torch.ones(1), spread_scale=None
    )
    assert found.values["a"].tolist() == [2.0] * 3
    torch.testing.assert_close(found.spreads["a"], torch.full((3,), 0.5))
    labels = torch.normal(2.0, 0.5, (20000,), generator=torch.Generator().manual_seed(0))
    inside = (interval_miss(config, levels.expand(1, 20000, -1), labels, 1.0) <= 0).double().mean(1)
    torch.testing.assert_close(inside, torch.tensor([0.9, 0.68, 0.4]).double(), atol=0.01, rtol=0)


def test_the_spread_of_an_ensemble_is_in_the_unit_of_the_labels():
    config = PredictorConfig(vae=VAE, targets=["a"], ensemble=2)
    outputs = torch.tensor([[[1.0]], [[3.0]]])  # mean 2, standard deviation sqrt(2)
    found = read_outputs(
        config,
        outputs,
        mean=torch.tensor([[10.0]]),
        std=torch.tensor([5.0]),
        spread_scale=torch.tensor([3.0]),
    )
    assert found.values["a"].item() == 20.0
    assert found.spreads["a"].item() == pytest.approx(2**0.5 * 3 * 5)


def test_classes_have_probabilities(crystals):
    network = predictor(targets=["a", "c"], classes={"c": ["no", "maybe", "yes"]}, ensemble=2)
    found = network.predictions(network.prepare(crystals))
    chances = found.probabilities["c"]
    torch.testing.assert_close(chances.sum(1), torch.ones(len(crystals)))
    assert found.values["c"].long().equal(chances.argmax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": []}, "at least one property"),
        ({"ensemble": 0}, "ensemble must be at least 1"),
        ({"quantiles": [0.1, 0.5, 0.8]}, "symmetric"),
        ({"transforms": {"z": Transform.LOG}}, "transforms.z must be one of targets"),
        ({"transforms": {"a": Transform.LOG}, "extents": {"a": "per_atom"}}, "extents.a must be none"),
        ({"reference": "x"}, "reference must be one of fidelities"),
        ({"hidden": [0]}, "hidden must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        from_plain(PredictorConfig, {"vae": VAE_VALUES, "targets": ["a"], **changes})


def test_gradients_reach_the_encoder_only_where_it_is_trained(crystals):
    network = predictor()
    network(crystals).sum().backward()
    assert all(p.grad is None for p in network.vae.parameters())
    network.vae.encoder.requires_grad_(True)
    network(crystals).sum().backward()
    assert all(p.grad is not None for p in network.vae.encoder.parameters())
