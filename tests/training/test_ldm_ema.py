"""The proof that averaged weights are what is validated, saved for use, and sampled; raw weights only resume.

Regression: the systems before us validated with EMA weights and sampled with raw ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import read, tiny_datamodule, tiny_ldm_config
from torch import Tensor

from latentite.checkpoint import Weights
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs
from latentite.models import load_ldm
from latentite.stages import train_ldm
from latentite.training.fit import FitResult
from latentite.training.ldm import LDMTrainingModule, Shown

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def run(
    vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FitResult, LDMTrainingModule, list[State]]:
    """A run, its training module as training left it, and the denoisers that each validation saw."""
    modules: list[LDMTrainingModule] = []
    seen: list[State] = []

    def validation_step(self: LDMTrainingModule, *args: object) -> None:
        modules.append(self)
        seen.append({name: value.clone() for name, value in self.network.denoiser.state_dict().items()})
        original(self, *args)  # type: ignore[arg-type]  # passed on as they came

    config = tiny_ldm_config(tmp_path_factory.mktemp("ema"), vae_checkpoint, trainer__max_epochs=2)
    config.callbacks.checkpoint.export = True
    config.callbacks.checkpoint.save_top_k = 0  # what is exported is the last epoch
    config.ldm_module.optimizer.lr = 0.03  # so that average and weights are far apart
    original = LDMTrainingModule.validation_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LDMTrainingModule, "validation_step", validation_step)
        result = train_ldm(config, datamodule=tiny_datamodule())
    return result, modules[-1], seen


@pytest.fixture(scope="module")
def averaged(run: tuple[FitResult, LDMTrainingModule, list[State]]) -> State:
    """The averages in the last checkpoint; every one of them is far from its weight."""
    content = read(run[0].last_path)
    average: State = content["latentite"]["ema"]
    for name, value in average.items():
        raw = content["state_dict"][f"network.{name}"]
        assert not raw.allclose(value, atol=1e-3), f"{name} must tell average and weights apart"
    return {name.removeprefix("denoiser."): value for name, value in average.items()}


def test_validation_sees_the_average_and_training_goes_on_with_the_weights(run, averaged: State) -> None:
    _, module, seen = run
    for name, value in averaged.items():
        assert seen[-1][name].equal(value), name
    content = read(run[0].last_path)["state_dict"]
    for name, value in module.network.state_dict().items():
        assert content[f"network.{name}"].equal(value), name


@torch.no_grad()
def test_the_loss_that_is_reported_is_that_of_the_checkpoint_as_it_is_read(run) -> None:
    result, module, _ = run
    trained = {name: value.clone() for name, value in module.network.state_dict().items()}
    losses = {}
    for weights in (None, Weights.EMA, Weights.RAW):
        module.network.load_state_dict(load_ldm(result.last_path, weights)[0].state_dict())
        module.eval()
        batch = tiny_datamodule().splits["val"].crystals
        parts = [
            batch.select(index) for index in torch.arange(12)[batch.num_atoms.argsort(stable=True)].split(8)
        ]
        found = [module._validation_loss(part, i, Shown.ALL).total for i, part in enumerate(parts)]
        losses[weights] = float(torch.cat(found).mean())
    module.network.load_state_dict(trained)
    reported = result.metrics["val/loss"]
    assert losses[None] == losses[Weights.EMA] == pytest.approx(reported, rel=1e-5)
    assert losses[Weights.RAW] != pytest.approx(reported, rel=1e-3)


@pytest.mark.parametrize("file", ["last.ckpt", "model.safetensors"])
def test_what_is_loaded_and_exported_for_use_is_the_average(file: str, run, averaged: State) -> None:
    network, _, record = load_ldm(run[0].last_path.parent / file)
    assert record.weights is Weights.EMA
    for name, value in network.denoiser.state_dict().items():
        assert value.equal(averaged[name]), name


def test_what_is_sampled_comes_from_the_average(run, averaged: State) -> None:
    def sampled(weights: Weights | None, state: State | None = None) -> Tensor:
        network, settings, _ = load_ldm(run[0].last_path, weights)
        if state is not None:
            network.denoiser.load_state_dict(state)
        jobs = Jobs.plain(torch.tensor([3, 1, 6]))
        config = SamplingConfig(steps=4)
        return sample_jobs(network, settings.diffusion, jobs, seed=0, config=config).crystals.lattice

    assert sampled(None).equal(sampled(Weights.RAW, averaged))
    assert not sampled(None).allclose(sampled(Weights.RAW), atol=1e-3)
