"""The VAE's networks: padding, batch-mates, order, equivariance and the public layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.nn.encoders import EncoderConfig, EncoderFeatures, EncoderKind, all_pairs
from latentite.nn.transformer import Gelu, PackedLayout, Transformer, TransformerSize
from latentite.nn.vae import CoordinateHead, CrystalVAE, DecoderConfig, LatentBatch, Posterior, VAEConfig


@pytest.mark.parametrize("num_tokens", [None, 5, 9])
def test_packed_latents_survive_padding(num_tokens: int | None) -> None:
    num_atoms = torch.tensor([2, 5, 1])
    latent = torch.randn(8, 4)
    batch = LatentBatch.from_packed(latent, num_atoms, num_tokens)
    assert batch.tokens.shape == (3, num_tokens or 5, 4)
    assert batch.packed.equal(latent)
    assert batch.num_atoms.equal(num_atoms)
    assert batch.tokens[~batch.mask].abs().sum() == 0


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least the largest crystal \(5 atoms\), got 4"):
        LatentBatch.token_mask(torch.tensor([2, 5]), 4)


SMALL = {"d_model": 32, "num_heads": 4, "dim_feedforward": 64, "num_layers": 2}
VARIANTS = [
    (kind, features, head) for kind in EncoderKind for features in EncoderFeatures for head in CoordinateHead
]


def small_vae(
    kind: EncoderKind = EncoderKind.TRANSFORMER,
    features: EncoderFeatures = EncoderFeatures.FOURIER,
    head: CoordinateHead = CoordinateHead.CIRCLE,
    *,
    index_embedding: bool = False,
    atom_type_predict: bool = True,
) -> CrystalVAE:
    torch.manual_seed(0)
    return CrystalVAE(
        VAEConfig(
            encoder=EncoderConfig(kind=kind, features=features, index_embedding=index_embedding, **SMALL),
            decoder=DecoderConfig(coordinate_head=head, index_embedding=index_embedding, **SMALL),
            atom_type_predict=atom_type_predict,
        )
    ).eval()


def permuted(batch: CrystalBatch, order: torch.Tensor) -> CrystalBatch:
    return replace(batch, atomic_numbers=batch.atomic_numbers[order], frac_coords=batch.frac_coords[order])


@pytest.mark.parametrize(("kind", "features", "head"), VARIANTS)
def test_a_crystal_does_not_see_its_batch_mates(
    crystals: CrystalBatch, kind: EncoderKind, features: EncoderFeatures, head: CoordinateHead
) -> None:
    vae = small_vae(kind, features, head, index_embedding=True)
    together = vae.reconstruct(crystals)
    mean = vae.encode(crystals).mean
    for i in (0, 7, 15):
        alone = crystals.select(torch.tensor([i]))
        atoms = crystals.crystal_index == i
        torch.testing.assert_close(vae.encode(alone).mean, mean[atoms], atol=1e-5, rtol=1e-4)
        decoded = vae.reconstruct(alone)
        torch.testing.assert_close(decoded.coordinates, together.coordinates[atoms], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            decoded.scaled_lengths[0], together.scaled_lengths[i], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", EncoderKind)
def test_without_index_embedding_the_order_of_atoms_does_not_matter(
    crystals: CrystalBatch, kind: EncoderKind
) -> None:
    vae = small_vae(kind)
    one = crystals.select(torch.tensor([int(crystals.num_atoms.argmax())]))
    order = torch.randperm(one.total_atoms, generator=torch.Generator().manual_seed(0))
    plain, shuffled = vae.reconstruct(one), vae.reconstruct(permuted(one, order))
    torch.testing.assert_close(shuffled.element_logits, plain.element_logits[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shuffled.coordinates, plain.coordinates[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shuffled.angles_radians, plain.angles_radians, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", EncoderKind)
def test_fourier_features_ignore_rotation_and_whole_cells(crystals: CrystalBatch, kind: EncoderKind) -> None:
    vae = small_vae(kind)
    rotation = lat.random_rotations(len(crystals), generator=torch.Generator().manual_seed(3))
    moved = replace(crystals, lattice=crystals.lattice @ rotation, frac_coords=crystals.frac_coords + 2.0)
    torch.testing.assert_close(vae.encode(moved).mean, vae.encode(crystals).mean, atol=1e-4, rtol=1e-3)


def test_packed_attention_equals_torch_with_a_padding_mask(crystals: CrystalBatch) -> None:
    """The reference is `torch.nn.TransformerEncoder`, whose tensor names ours share."""
    torch.manual_seed(0)
    size = TransformerSize(**SMALL, gelu=Gelu.EXACT)
    ours = Transformer(size)
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(32), enable_nested_tensor=False)
    theirs.load_state_dict(ours.state_dict())
    layout = PackedLayout.of(crystals.num_atoms)
    tokens = torch.randn(crystals.total_atoms, 32)
    assert layout.attention_mask is not None
    expected = theirs(layout.pad(tokens), src_key_padding_mask=~layout.attention_mask[:, 0, 0])
    torch.testing.assert_close(ours(tokens, layout), layout.pack(expected), atol=1e-5, rtol=1e-4)


def test_a_layout_pads_and_packs_back(crystals: CrystalBatch) -> None:
    values = torch.randn(crystals.total_atoms, 5)
    layout = PackedLayout.of(crystals.num_atoms)
    assert layout.pack(layout.pad(values)).equal(values)
    even = PackedLayout.of(torch.tensor([4, 4]))
    assert even.slot is None
    assert even.attention_mask is None


def test_all_pairs_are_all_ordered_pairs_within_each_crystal() -> None:
    receiver, sender = all_pairs(torch.tensor([2, 1, 3]))
    blocks = [range(2), range(2, 3), range(3, 6)]
    expected = [(i, j) for block in blocks for i in block for j in block]
    assert list(zip(receiver.tolist(), sender.tolist(), strict=True)) == expected


def test_default_size_has_the_tensors_of_the_public_checkpoints() -> None:
    with torch.device("meta"):
        vae = CrystalVAE(VAEConfig())
    state = vae.state_dict()
    assert len(state) == 209  # FACTS: 209 tensors, 51.1 million numbers
    assert sum(tensor.numel() for tensor in state.values()) == 51_091_044
    assert state["encoder.lattices_embedder.0.weight"].shape == (512, 9)
    assert state["decoder.transformer.layers.7.self_attn.in_proj_weight"].shape == (1536, 512)


def test_csp_variant_is_told_the_elements_and_says_so_when_not(crystals: CrystalBatch) -> None:
    vae = small_vae(atom_type_predict=False)
    decoded = vae.reconstruct(crystals)
    assert decoded.element_logits is None
    rebuilt = decoded.to_crystals(crystals.atomic_numbers)
    assert rebuilt.atomic_numbers.equal(crystals.atomic_numbers)
    with pytest.raises(ValueError, match="give atomic_numbers"):
        decoded.to_crystals()
    with pytest.raises(ValueError, match="give atomic_numbers"):
        vae.decode(vae.encode(crystals).mean, crystals.num_atoms)


def test_circle_head_reads_the_angle_that_it_says() -> None:
    vae = small_vae()
    frac = torch.tensor([[0.1, 0.6, 0.999]])
    angle = 2 * torch.pi * frac
    batch = CrystalBatch(
        atomic_numbers=torch.tensor([3]),
        frac_coords=frac,
        lattice=4 * torch.eye(3).unsqueeze(0),
        num_atoms=torch.tensor([1]),
    )
    decoded = replace(vae.reconstruct(batch), coordinates=0.3 * torch.cat([angle.cos(), angle.sin()], dim=-1))
    torch.testing.assert_close(lat.wrap(decoded.frac_coords), frac, atol=1e-5, rtol=0.0)


def test_kl_equals_torch_distributions() -> None:
    torch.manual_seed(0)
    posterior = Posterior(mean=torch.randn(10, 8), logvar=torch.randn(10, 8))
    normal = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 30, "num_heads": 4}, "d_model must be even and divisible by num_heads=4, got 30"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**sizes)
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        VAEConfig(latent_dim=0)
