"""`benchmarks/search.py`: the committed recipes are such that training takes them, and wrong ones are refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from latentite.config import compose, load
from latentite.training.stage_settings import TrainLDMConfig, TrainVAEConfig

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search

    return search


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration(search: ModuleType, path: Path) -> None:
    given = search.read_search(path)
    for recipe in given["recipes"].values():
        ldm = load(TrainLDMConfig, compose("train_ldm", [*given["ldm"], *recipe.get("ldm", [])]))
        assert ldm.trainer.check_val_every_n_epoch == ldm.trainer.max_epochs, (
            "the last epoch must be measured"
        )
        if "vae" in given:
            vae = load(TrainVAEConfig, compose("train_vae", [*given["vae"], *recipe.get("vae", [])]))
            assert vae.trainer.check_val_every_n_epoch == vae.trainer.max_epochs
            assert vae.vae_module.latent_dim == ldm.ldm_module.denoiser.latent_dim


def test_wrong_recipes_are_named(search: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipes.yaml"
    path.write_text("ldm: []", encoding="utf-8")
    with pytest.raises(ValueError, match="must have ldm, recipes and perhaps vae"):
        search.read_search(path)
    path.write_text("{ldm: [], recipes: {a: {ldn: []}}}", encoding="utf-8")
    with pytest.raises(ValueError, match="'a' may have vae, ldm and sample"):
        search.read_search(path)
    path.write_text("{ldm: [], recipes: {a: {vae: []}}}", encoding="utf-8")
    with pytest.raises(ValueError, match="'a' changes the vae, but there is none at the top"):
        search.read_search(path)
