"""What Chemeleon2 computes from its checkpoints, and what ours computes from the same files, on a CPU in fp32.

The reference files were made once by that system; see the README beside them. Differences are relative to the
largest number of a reference: `1e-5` everywhere. `pytest -s` prints the table of `docs/chemeleon2.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentite import hub
from latentite.base.plain import from_plain
from latentite.checkpoint import network_of, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.diffusion.guidance import guided, unconditional
from latentite.diffusion.loss import ddpm_loss
from latentite.diffusion.samplers import SamplerKind, sample
from latentite.diffusion.schedule import Schedule, to_x0
from latentite.diffusion.steps import learned_log_variance, posterior_mean
from latentite.generators.latent.chain import SamplingConfig, sampler_settings, sampling_schedule
from latentite.models import load_ldm, load_vae
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.nn.vae import CrystalVAE, LatentBatch
from latentite.objectives.ldm import Compatibility

TOLERANCE = 1e-5
Check = Callable[[str, Tensor, Tensor], None]


@pytest.fixture
def check(cache: Path) -> Iterator[Check]:
    """Compare and remember; prints what was compared."""
    rows: list[tuple[str, float]] = []

    def compare(name: str, found: Tensor, reference: Tensor) -> None:
        assert found.shape == reference.shape, name
        difference = (found.double() - reference.double()).abs().max() / reference.double().abs().max()
        rows.append((name, float(difference)))
        assert float(difference) < TOLERANCE, name

    with torch.no_grad():
        yield compare
    for name, difference in rows:
        print(f"| {name} | {difference:.1e} |")


@pytest.fixture
def batch(references: Path) -> CrystalBatch:
    given = load_file(references / "ref_in.safetensors")
    return CrystalBatch(
        atomic_numbers=given["in.atom_types"],
        frac_coords=given["in.frac_coords"],
        lattice=given["in.lattices"],
        num_atoms=given["in.num_atoms"],
        properties={"band_gap": given["in.band_gap"]},
    )


def reference_of(references: Path, name: str, prefix: str) -> dict[str, Tensor]:
    tensors = load_file(references / f"ref_{name}.safetensors")
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items()}


def test_the_vae_encodes_and_decodes_the_same(references: Path, batch: CrystalBatch, check: Check) -> None:
    vae = load_vae(references / "tiny_vae.ckpt").network
    assert isinstance(vae, CrystalVAE)
    expected = reference_of(references, "vae", "vae")
    features = vae.features(batch)
    posterior = vae.posterior(features)
    check("vae: encoder features", features, expected["enc.x"])
    check("vae: posterior mean", posterior.mean, expected["enc.mean"])
    check("vae: posterior logvar", posterior.logvar, expected["enc.logvar"])
    check("vae: KL", posterior.kl().sum(dim=-1), expected["enc.kl"])
    decoded = vae.decode(expected["dec.in_z"], batch.num_atoms)
    assert decoded.element_logits is not None
    check("vae: element logits", decoded.element_logits, expected["dec.atom_type_logits"])
    check("vae: fractional coordinates", decoded.frac_coords, expected["dec.frac_coords"])
    check("vae: scaled lengths", decoded.scaled_lengths, expected["dec.lengths"])
    check("vae: angles", decoded.angles_radians, expected["dec.angles"])
    crystals = decoded.to_crystals()
    check("vae: lattice of the decoded crystals", crystals.lattice, expected["rec.lattices"])
    assert crystals.atomic_numbers.equal(expected["rec.atom_types"])
    latent = posterior.mean + (0.5 * posterior.logvar).exp() * expected["loss.in_eps"]
    noisy = vae.decode(latent, batch.num_atoms)
    assert noisy.element_logits is not None
    cross_entropy = torch.nn.functional.cross_entropy(noisy.element_logits, batch.atomic_numbers)
    check("vae: loss of the elements", cross_entropy, expected["loss.loss_atom_types"])


@pytest.mark.parametrize(("file", "name"), [("tiny_ldm_uncond", "ldm"), ("tiny_ldm_cond_band_gap", "cldm")])
class TestLatentDiffusion:
    """Both latent diffusion models against all that was recorded of them."""

    @pytest.fixture
    def model(
        self, references: Path, batch: CrystalBatch, file: str, name: str, cache: Path
    ) -> SimpleNamespace:
        network, settings, record = load_ldm(references / f"{file}.ckpt")
        assert settings.diffusion.compatibility is Compatibility.CHEMELEON2
        assert record.weights == "raw"
        expected = reference_of(references, name, name)
        condition = absent = None
        if network.condition_module is not None:
            with torch.no_grad():
                condition = network.condition_module(network.condition_module.values(batch))
                absent = network.condition_module.absent(len(batch))
        return SimpleNamespace(
            network=network,
            diffusion=settings.diffusion,
            expected=expected,
            mask=expected["dit.in_mask"],
            condition=condition,
            absent=absent,
        )

    def test_denoiser_and_posterior(self, model: SimpleNamespace, check: Check, name: str) -> None:
        expected, mask = model.expected, model.mask
        if model.condition is not None:
            both = torch.cat([model.condition.vector, model.absent.vector])
            check(f"{name}: condition embeddings", both, expected["cond.emb_cond_then_null"])
        state, steps = expected["dit.in_x"], expected["dit.in_t"]
        output = model.network.denoiser(state, steps, mask, model.condition)
        check(
            f"{name}: denoiser, padded to 20",
            torch.cat(output.chunk(2, dim=-1), dim=1),
            expected["dit.out_B_2N_L"],
        )
        schedule = model.diffusion.build_schedule()
        level = schedule.at(steps)
        prediction, channels = output.chunk(2, dim=-1)
        x0 = to_x0(prediction, state, level, model.diffusion.target)
        real = mask.unsqueeze(-1)
        check(f"{name}: predicted x0", x0 * real, expected["pmv.pred_xstart"] * real)
        check(f"{name}: posterior mean", posterior_mean(x0, state, level) * real, expected["pmv.mean"] * real)
        log_variance = learned_log_variance(channels, level)
        check(f"{name}: log-variance", log_variance * real, expected["pmv.log_variance"] * real)
        check(f"{name}: latent std", model.network.latent_std[0], expected["latent_std"])

    def test_training_loss(self, model: SimpleNamespace, check: Check, name: str) -> None:
        expected, mask = model.expected, model.mask
        found = ddpm_loss(
            lambda tokens, time: model.network.denoiser(tokens, time, mask, model.condition),
            expected["dit.in_x"],
            mask,
            schedule=model.diffusion.build_schedule(),
            steps=expected["dit.in_t"],
            noise=expected["dit.in_noise"],
            has_density_scale=False,
        )
        check(f"{name}: training loss, MSE", found.terms["mse"], expected["train_loss.mse"])
        check(f"{name}: training loss, VLB", found.terms["vlb"], expected["train_loss.vb"])

    def test_guidance(self, model: SimpleNamespace, check: Check, name: str) -> None:
        if model.condition is None:
            pytest.skip("the model has no conditions")
        output = self.denoise(model)(model.expected["dit.in_x"], model.expected["dit.in_t"])
        both_channels = torch.cat(output.chunk(2, dim=-1), dim=1)
        check(
            f"{name}: guided output, scale 2", both_channels, model.expected["cfg.out_scale2"][: len(output)]
        )

    @pytest.mark.parametrize("walk", ["ddim10_eta0", "ddim10_eta1", "ddpm10"])
    def test_trajectory(self, model: SimpleNamespace, check: Check, name: str, walk: str) -> None:
        count, mask = len(model.mask), model.mask
        recorded = {
            key.removeprefix(f"{walk}."): value for key, value in model.expected.items() if walk in key
        }
        states, means, stds = (recorded[key][:, :count] for key in ("zs", "means", "stds"))
        config = SamplingConfig(
            sampler=SamplerKind.DDPM if walk == "ddpm10" else SamplerKind.DDIM,
            steps=10,
            eta=0.0 if walk == "ddim10_eta0" else 1.0,
        )
        kind, schedule = sampling_schedule(model.diffusion, config)
        assert isinstance(schedule, Schedule)
        found = sample(
            kind,
            self.denoise(model),
            states[0],
            mask,
            schedule=schedule,
            # the noise that the recorded walk had drawn
            noise=lambda step: torch.where(
                stds[step] > 0, (states[step + 1] - means[step]) / stds[step], 0.0
            ),
            settings=sampler_settings(model.diffusion, config),
            record=True,
        )
        assert found.states is not None
        assert found.means is not None
        check(f"{name} {walk}: 11 states", found.states, states)
        check(f"{name} {walk}: means", found.means, means * mask.unsqueeze(-1))
        decoded = model.network.decode(LatentBatch(tokens=found.latents, mask=mask))
        check(f"{name} {walk}: element logits", decoded.element_logits, recorded["atom_type_logits"])
        check(f"{name} {walk}: lengths", decoded.lengths, recorded["lengths"])
        check(f"{name} {walk}: angles", decoded.angles, recorded["angles"])
        check(f"{name} {walk}: fractional coordinates", decoded.frac_coords, recorded["frac_coords"])
        crystals = decoded.to_crystals()
        check(f"{name} {walk}: lattice", crystals.lattice, recorded["lattices"])
        # Chemeleon2 calls class 0, which stands for no element, hydrogen; ours takes the likeliest element
        is_element = recorded["atom_type_logits"].argmax(dim=-1) > 0
        assert is_element.float().mean() > 0.9
        assert crystals.atomic_numbers[is_element].equal(recorded["atom_types"][is_element])

    @staticmethod
    def denoise(model: SimpleNamespace) -> Callable[[Tensor, Tensor], Tensor]:
        if model.condition is None:
            return unconditional(model.network.denoiser, model.mask)
        return guided(
            model.network.denoiser,
            model.mask,
            absent=model.absent,
            conditions=[model.condition],
            scales=[2.0],
        )


@pytest.mark.parametrize(
    ("sampler", "steps", "name"), [("ddim", 10, "ddim10"), ("ddim", 50, "ddim50"), ("ddpm", 10, "ddpm10")]
)
def test_the_levels_that_are_walked(
    references: Path, check: Check, sampler: str, steps: int, name: str
) -> None:
    expected = reference_of(references, "diff", f"diff.{name}")
    _, settings, _ = load_ldm(references / "tiny_ldm_uncond.ckpt")
    _, schedule = sampling_schedule(
        settings.diffusion, SamplingConfig(sampler=SamplerKind(sampler), steps=steps)
    )
    assert isinstance(schedule, Schedule)
    assert schedule.timesteps.equal(expected["timestep_map"])
    check(f"{name}: alpha-bar", schedule.alphas_cumprod, expected["alphas_cumprod"])


def test_the_predictor_predicts_the_same(references: Path, batch: CrystalBatch, check: Check) -> None:
    record = read_checkpoint(hub.resolve(references / "tiny_predictor_band_gap.ckpt"), stage="predictor")
    settings = from_plain(PredictorConfig, record.config)
    network = network_of(record.state, lambda: PropertyPredictor(settings), record.path).eval()
    expected = reference_of(references, "pred", "pred")
    check("predictor: normalised", network(batch), expected["forward_normalised"])
    check("predictor: band gap, eV", network.predict(batch)["band_gap"], expected["predict_band_gap"])
