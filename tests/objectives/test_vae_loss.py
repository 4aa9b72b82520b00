"""The VAE's loss: the torus, the honest terms, the counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CoordinateHead, CrystalVAE, DecodedCrystals, DecoderConfig, Posterior, VAEConfig
from latentite.objectives.terms import LossTerms, Term
from latentite.objectives.vae import (
    CoordinateLoss,
    LossWeights,
    alignment_loss,
    coordinate_loss,
    reconstruction_terms,
    vae_loss,
)

SMALL = {"d_model": 32, "num_heads": 4, "dim_feedforward": 64, "num_layers": 1}


def perfect(batch: CrystalBatch, head: CoordinateHead) -> DecodedCrystals:
    """The decoder output that rebuilds a batch exactly."""
    lengths, angles = lat.parameters_from_lattice(batch.lattice)
    angle = 2 * torch.pi * batch.frac_coords
    circle = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return DecodedCrystals(
        num_atoms=batch.num_atoms,
        element_logits=100.0 * torch.nn.functional.one_hot(batch.atomic_numbers, 100).float(),
        coordinates=circle if head is CoordinateHead.CIRCLE else batch.frac_coords,
        coordinate_head=head,
        scaled_lengths=lat.scaled_lengths(lengths, batch.num_atoms),
        angles_radians=torch.deg2rad(angles),
    )


@pytest.mark.parametrize("head", CoordinateHead)
def test_a_perfect_decoder_has_no_loss_and_gives_the_crystals_back(
    crystals: CrystalBatch, head: CoordinateHead
) -> None:
    decoded = perfect(crystals, head)
    values = LossTerms(terms=reconstruction_terms(decoded, crystals, LossWeights())).values()
    assert set(values) == {"atom_types", "lengths", "angles", "frac_coords"}
    assert max(value.item() for value in values.values()) < 1e-9
    rebuilt = decoded.to_crystals()
    assert rebuilt.atomic_numbers.equal(crystals.atomic_numbers)
    torch.testing.assert_close(rebuilt.lengths, crystals.lengths, atol=1e-4, rtol=1e-4)
    assert lat.wrapped_difference(rebuilt.frac_coords, crystals.frac_coords).abs().max() < 1e-5


@given(st.floats(0.0, 0.999), st.floats(-0.49, 0.49))
def test_coordinate_losses_live_on_the_torus(target: float, error: float) -> None:
    """Regression: plain MSE punishes an atom at 0.999 for being rebuilt at 0.001."""
    batch = CrystalBatch(
        atomic_numbers=torch.tensor([1]),
        frac_coords=torch.full((1, 3), target),
        lattice=torch.eye(3).unsqueeze(0),
        num_atoms=torch.tensor([1]),
    )
    moved = replace(batch, frac_coords=(batch.frac_coords + error) % 1.0)
    linear = coordinate_loss(perfect(moved, CoordinateHead.LINEAR), batch.frac_coords, CoordinateLoss.WRAPPED)
    torch.testing.assert_close(linear, torch.full((1, 3), error**2), atol=1e-5, rtol=1e-3)
    circle = coordinate_loss(perfect(moved, CoordinateHead.CIRCLE), batch.frac_coords, CoordinateLoss.WRAPPED)
    chord = (2 * torch.sin(torch.tensor(torch.pi * error))) ** 2
    torch.testing.assert_close(circle, chord.expand(1, 3), atol=1e-4, rtol=1e-3)


def test_plain_coordinate_loss_has_the_known_seam() -> None:
    decoded = replace(
        perfect(
            CrystalBatch(
                atomic_numbers=torch.tensor([1]),
                frac_coords=torch.full((1, 3), 0.999),
                lattice=torch.eye(3).unsqueeze(0),
                num_atoms=torch.tensor([1]),
            ),
            CoordinateHead.LINEAR,
        )
    )
    target = torch.full((1, 3), 0.001)
    torch.testing.assert_close(
        coordinate_loss(decoded, target, CoordinateLoss.PLAIN), torch.full((1, 3), 0.998**2)
    )
    assert coordinate_loss(decoded, target, CoordinateLoss.WRAPPED).max() < 5e-6


def test_the_total_is_the_weighted_sum_and_every_term_reaches_the_network(crystals: CrystalBatch) -> None:
    torch.manual_seed(0)
    vae = CrystalVAE(VAEConfig(encoder=EncoderConfig(**SMALL), decoder=DecoderConfig(**SMALL)))
    weights = LossWeights(kl=0.01)
    terms = vae_loss(vae, crystals, weights, generator=torch.Generator().manual_seed(0))
    values = terms.values()
    expected = sum(getattr(weights, name) * value for name, value in values.items())
    torch.testing.assert_close(terms.total(), expected)
    terms.total().backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert without == []


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_latent_noise_is_relative_to_the_spread_of_the_latents(
    crystals: CrystalBatch, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder sees mean + 0.25 spread x noise, whatever the scale of the latents."""
    torch.manual_seed(0)
    vae = CrystalVAE(VAEConfig(encoder=EncoderConfig(**SMALL), decoder=DecoderConfig(**SMALL)))
    mean = scale * torch.randn(crystals.total_atoms, 8) * torch.linspace(1.0, 3.0, 8)
    seen: list[torch.Tensor] = []
    decode = vae.decode
    monkeypatch.setattr(
        vae, "encode", lambda batch: Posterior(mean=mean, logvar=torch.full_like(mean, -30.0))
    )
    monkeypatch.setattr(vae, "decode", lambda latent, *rest: seen.append(latent) or decode(latent, *rest))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        vae_loss(vae, crystals, LossWeights(), latent_noise=0.25, generator=generator)
    vae_loss(vae, crystals, LossWeights(), generator=generator)
    errors = torch.stack(seen[:-1]) - mean
    torch.testing.assert_close(errors.flatten(0, 1).std(0), 0.25 * mean.std(0), rtol=0.1, atol=0)
    assert (seen[-1] - mean).abs().max() < 1e-4 * scale


def test_counts_of_all_processes_make_the_loss_independent_of_the_deal(crystals: CrystalBatch) -> None:
    """Two halves with global counts add up to the whole, though their numbers of atoms differ."""
    decoded = {}
    for name, index in {"all": range(16), "left": range(5), "right": range(5, 16)}.items():
        part = crystals.select(torch.tensor(list(index)))
        noisy = perfect(replace(part, frac_coords=lat.wrap(part.frac_coords + 0.05)), CoordinateHead.LINEAR)
        noisy = replace(noisy, scaled_lengths=noisy.scaled_lengths * 1.1)
        decoded[name] = LossTerms(terms=reconstruction_terms(noisy, part, LossWeights()))
    counts = {name: term.count for name, term in decoded["all"].terms.items()}
    both = decoded["left"].total(counts) + decoded["right"].total(counts)
    torch.testing.assert_close(both, decoded["all"].total())


def test_alignment_ignores_atoms_without_features() -> None:
    torch.manual_seed(0)
    projected = torch.randn(4, 6, requires_grad=True)
    features = torch.randn(4, 6)
    features[2] = torch.nan
    loss = alignment_loss(projected, features)
    cosine = (projected[0] @ features[0]) / (projected[0].norm() * features[0].norm())
    torch.testing.assert_close(loss[0], 1 - cosine)
    assert loss[2] == 0
    loss.sum().backward()
    assert projected.grad is not None
    assert projected.grad[2].abs().max() == 0
    assert projected.grad.isfinite().all()


def test_impossible_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"loss_weights\.kl must be a finite number of 0 or more, got -1"):
        LossWeights(kl=-1.0)


def test_a_term_of_weight_zero_touches_no_gradient() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = torch.tensor([3.0], requires_grad=True)
    LossTerms(terms={"a": Term.mean_of(x, 1.0), "b": Term.mean_of(y * torch.nan, 0.0)}).total().backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0
    assert y.grad is None
