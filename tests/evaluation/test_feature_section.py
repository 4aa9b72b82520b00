"""Features of two sets: what equal sets give, an independent computation, and crystals that have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import latentite
from latentite.checkpoint import Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation import feature_section, measure
from latentite.evaluation.feature_section import published_cutoffs, reference_sample
from latentite.evaluation.result import Evaluation
from latentite.metrics.fingerprints import magpie, radial
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig

Make = Callable[[int, int], list[CrystalArrays]]


def batch(crystals: list[CrystalArrays]) -> CrystalBatch:
    return CrystalBatch.from_arrays(crystals)


def features(result: Evaluation) -> dict:
    return next(dict(s.summary["features"]) for s in result.sections if "features" in s.summary)


def page(result: Evaluation) -> str:
    return next(s.page() for s in result.sections if "features" in s.summary)


def dense() -> CrystalArrays:
    """1 Å^3 in all: no search for neighbours is begun in it."""
    return CrystalArrays(np.array([3, 9]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3))


def test_a_set_against_itself_has_no_distance_and_covers_everything(planted: Make) -> None:
    crystals = planted(12, 0)
    result = latentite.evaluate(batch(crystals), reference=batch(crystals), workers=1)
    found = features(result)
    assert found["descriptors"]["frechet"]["all"] == pytest.approx(0.0, abs=1e-6)
    assert found["descriptors"]["diversity"]["all"] == pytest.approx(1.0, abs=1e-6)
    assert 1.0 < found["descriptors"]["vendi"]["all"] <= 12.0
    coverage = found["coverage"]["radial"]
    for name in ("recall", "precision", "recall_separate", "precision_separate"):
        assert (coverage[name]["numerator"], coverage[name]["denominator"]) == (12, 12)
    assert coverage["structure_recall_distance"] == pytest.approx(0.0, abs=1e-4)
    assert "halves of the reference (by hash, seed 0)" in coverage["cutoffs"]["source"]
    assert found["reference"] == {"num_structures": 12, "num_used": 12}
    assert found["latents"] is None
    assert "not comparable with CDVAE" in page(result)


def test_without_a_reference_there_are_no_features(planted: Make) -> None:
    result = latentite.evaluate(batch(planted(3, 0)), workers=1)
    assert not any("features" in section.summary for section in result.sections)


def test_the_distance_is_that_of_an_independent_computation_of_all_and_of_valid_ones(planted: Make) -> None:
    crystals = planted(20, 0)
    overlapping = CrystalArrays(
        crystals[0].atomic_numbers, np.array([[0.0, 0, 0], [0.03, 0, 0]]), crystals[0].lattice
    )
    generated, reference = [*crystals[:8], overlapping], crystals[8:]
    result = latentite.evaluate(batch(generated), reference=batch(reference), workers=1)
    assert result.table["structure_valid"] == [True] * 8 + [False]
    # Packed crystals are in float32; the section sees these.
    ours, theirs = (batch(side).to_arrays() for side in (generated, reference))
    rows = [np.hstack([radial(side), magpie(side)]) for side in (ours, theirs)]
    mean, deviation = rows[1].mean(0), rows[1].std(0)
    deviation[:100] = np.maximum(deviation[:100], 1e-4)  # atoms/Å^3
    deviation[deviation < 1e-9] = 1.0
    one, other = (np.clip((side - mean) / deviation, -5, 5) for side in rows)

    def distance(first: np.ndarray) -> float:
        # With X^T X and Y^T Y the covariances, tr((X^T X Y^T Y)^(1/2)) is the sum of X Y^T's singular values.
        shift = first.mean(0) - other.mean(0)
        x, y = ((side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (first, other))
        return float(shift @ shift + (x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc"))

    is_valid = [cell is True for cell in result.table["valid"]]
    assert 2 < sum(is_valid) < 9
    found = features(result)["descriptors"]["frechet"]
    assert found["all"] == pytest.approx(distance(one), rel=1e-3)
    assert found["valid"] == pytest.approx(distance(one[is_valid]), rel=1e-3)
    assert found["all"] != pytest.approx(found["valid"], rel=1e-2)


def test_a_crystal_without_fingerprint_is_a_failure_and_counts_as_not_covered(planted: Make) -> None:
    crystals = planted(6, 0)
    result = latentite.evaluate(batch([*crystals, dense()]), reference=batch(crystals), workers=1)
    assert ("6", "fingerprint") in [(f.id, f.step) for f in result.failures]
    assert len(result.crystals) == 7
    found = features(result)
    assert found["without_fingerprint"] == {"generated": 1, "reference": 0}
    precision = found["coverage"]["radial"]["precision"]
    assert (precision["numerator"], precision["denominator"]) == (6, 7)


def test_too_small_a_reference_gives_nulls_and_no_error(planted: Make) -> None:
    result = latentite.evaluate(batch(planted(3, 0)), reference=batch(planted(1, 0)), workers=1)
    found = features(result)
    assert found["descriptors"]["frechet"] == {"all": None, "valid": None}
    assert found["coverage"]["radial"] is None
    only_dense = latentite.evaluate(batch(planted(3, 0)), reference=batch([dense()]), workers=1)
    assert features(only_dense)["descriptors"] is None
    json.dumps(features(only_dense), allow_nan=False)
    assert page(only_dense)


def test_the_sample_of_a_reference_follows_from_seed_and_content() -> None:
    hashes = [f"{k % 40:064x}" for k in range(120)]  # each crystal three times
    places, half = reference_sample(hashes, seed=0, most=60)
    assert len(places) == 60
    assert places.tolist() == sorted(places.tolist())
    sides: dict[str, set[bool]] = {}
    for place, side in zip(places, half, strict=True):
        sides.setdefault(hashes[place], set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set(half.tolist())
    backwards, _ = reference_sample(hashes[::-1], seed=0, most=60)
    assert {hashes[p] for p in places} == {hashes[::-1][p] for p in backwards}
    other, _ = reference_sample(hashes, seed=1, most=60)
    assert {hashes[p] for p in other} != {hashes[p] for p in places}
    everything, _ = reference_sample(hashes, seed=0, most=500)
    assert everything.tolist() == list(range(120))


def test_a_large_reference_is_sampled_and_says_so(planted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        feature_section, "reference_sample", partial(feature_section.reference_sample, most=7)
    )
    result = latentite.evaluate(batch(planted(5, 0)), reference=batch(planted(12, 0)), workers=1)
    found = features(result)
    assert found["reference"] == {"num_structures": 12, "num_used": 7}
    assert found["coverage"]["radial"] is None or found["coverage"]["radial"]["recall"]["denominator"] == 7
    assert "7 of the reference's 12 crystals are used" in page(result)


def test_fingerprints_are_computed_once(
    planted: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path))
    crystals = planted(8, 2)
    first = latentite.evaluate(batch(crystals[4:]), reference=batch(crystals[:5]), workers=1)

    def never(_: object) -> None:
        raise AssertionError("all are known")

    monkeypatch.setattr(measure.fingerprints, "radial", never)
    again = latentite.evaluate(batch(crystals[4:]), reference=batch(crystals[:5]), workers=1)
    assert features(again) == features(first)


def test_crystal_nn_comes_with_the_published_cut_offs(planted: Make) -> None:
    crystals = planted(3, 0)
    result = latentite.evaluate(
        batch([*crystals, dense()]), reference=batch(crystals), fingerprints="crystalnn", workers=1
    )
    found = features(result)["coverage"]["crystalnn"]
    assert found["cutoffs"] == {"structure": 0.4, "composition": 10.0, "source": "CDVAE's for mp_20"}
    assert (found["recall"]["numerator"], found["recall"]["denominator"]) == (3, 3)
    assert (found["precision"]["numerator"], found["precision"]["denominator"]) == (3, 4)
    assert {"crystal_nn", "fingerprint"} <= {f.step for f in result.failures}
    assert "CDVAE&#x27;s for mp_20" in page(result)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("perov_5 (test)", "perov_5"), ("/data/carbon_24 (all)", "carbon_24"), ("mine.csv", "mp_20")],
)
def test_cut_offs_are_those_of_the_data_set(name: str, chosen: str) -> None:
    assert published_cutoffs(name)[0] == chosen


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """A tiny VAE's checkpoint, as training leaves it."""
    size = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32}
    torch.manual_seed(0)
    config = VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size), latent_dim=3)
    payload = build_payload(stage=Stage.VAE, config=config, data={}, metrics={})
    state = {f"network.{name}": value for name, value in CrystalVAE(config).state_dict().items()}
    torch.save({"state_dict": state, "latentite": payload}, tmp_path / "vae.ckpt")
    return tmp_path / "vae.ckpt"


def test_latents_do_not_see_how_a_crystal_is_written(planted: Make, vae: Path) -> None:
    everything = planted(8, 8)
    ours, theirs = everything[8:], everything[:8]  # the same crystals with other origins and orders of atoms
    result = latentite.evaluate(batch(ours), reference=batch(theirs), vae=vae, workers=1)
    found = features(result)["latents"]
    assert found["frechet"]["all"] == pytest.approx(0.0, abs=1e-5)
    assert found["diversity"]["all"] == pytest.approx(1.0, abs=1e-5)
    assert len(found["sha256"]) == 64
    assert found["vae"] == str(vae)
    assert found["sha256"][:12] in page(result)


def test_a_crystal_without_canonical_form_has_no_latents_and_the_others_do(
    planted: Make, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crystals = planted(4, 0)
    canonicalize_many = measure.canonicalize_many

    def refuses(arrays: list[CrystalArrays]) -> list[CrystalArrays]:
        if any(crystals[2].lattice[0, 1] == lattice[0, 1] for _, _, lattice in map(astuple, arrays)):
            raise ValueError("crystal 2 has none")
        return canonicalize_many(arrays)

    monkeypatch.setattr(measure, "canonicalize_many", refuses)
    hashes = [f"{k:064x}" for k in range(4)]
    rows = measure.latent_rows(
        crystals,
        hashes,
        space=measure.open_latent_space(vae),
        stage=lambda text, total: lambda count: None,
        name="latents",
    )
    assert np.isnan(rows).all(-1).tolist() == [False, False, True, False]
    assert not np.isnan(np.delete(rows, 2, axis=0)).any()


def test_features_of_nothing_are_refused_in_one_sentence(planted: Make, vae: Path) -> None:
    crystals = batch(planted(2, 0))
    with pytest.raises(ValueError, match="--vae must be given together with --reference"):
        latentite.evaluate(crystals, vae=vae)
    with pytest.raises(ValueError, match="--fingerprints crystalnn must be given together with --reference"):
        latentite.evaluate(crystals, fingerprints="crystalnn")
    with pytest.raises(ValueError, match="--fingerprints must be one of radial, crystalnn, got 'soap'"):
        latentite.evaluate(crystals, reference=crystals, fingerprints="soap")
