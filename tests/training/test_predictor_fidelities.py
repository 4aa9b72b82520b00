"""Two levels of theory from files to a predictor, through configuration alone."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import assert_same, read

from latentite.config import compose, load
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.models import load_predictor
from latentite.predictor.settings import TrainPredictorConfig
from latentite.stages import train_predictor
from latentite.training.fit import FitResult

ELEMENTS = np.array([8, 12, 26])
SHIFT = {8: 1.0, 12: -2.0, 26: 0.5}
"""What the second fidelity adds per atom of each element."""


def write_folder(folder: Path, *, count: int, shift: bool, seed: int = 0, offset: float = 0.0) -> Path:
    """Energies that are a sum over elements, in three splits; the materials of both fidelities are the same.

    `offset` is added to all energies.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for _ in range(60):
        numbers = generator.choice(ELEMENTS, size=int(generator.integers(1, 6)))
        lattice = 4.0 * np.eye(3) + 0.2 * generator.normal(size=(3, 3))
        arrays.append(CrystalArrays(numbers, generator.random((len(numbers), 3)), lattice))
    crystals = CrystalBatch.from_arrays(arrays)
    energies = [
        np.mean([-0.1 * z + (SHIFT[int(z)] if shift else 0.0) for z in numbers])
        for numbers, _, _ in map(astuple, arrays)
    ]
    crystals = crystals.with_properties({"energy": torch.tensor(energies, dtype=torch.float32) + offset})
    ranges = {"train": range(count), "val": range(40, 50), "test": range(50, 60)}
    for split, chosen in ranges.items():
        part = crystals.select(torch.tensor(list(chosen)))
        ids = tuple(f"m-{i}" for i in chosen)
        data = CrystalDataset(crystals=part, ids=ids, content_hash=f"{split}{shift}{count}{offset}")
        write_dataset(folder / f"{split}.safetensors", data)
    return folder


def train(
    tmp_path: Path, name: str, vae: Path, *more: str, fidelities: tuple[str, ...] = ("PBE", "HSE")
) -> FitResult:
    overrides = [
        "experiment=prototypes/predictor_density",
        f"predictor_module.vae_ckpt_path={vae}",
        "predictor_module.target_conditions=[energy]",
        "predictor_module.targets.energy.extent=per_atom",
        "predictor_module.hidden=[8]",
        *(f"data.fidelities.{name}.path={tmp_path / name.lower()}" for name in fidelities),
        "data.reference_fidelity=PBE",
        "data.batch_size=8",
        "trainer.max_epochs=4",
        "trainer.check_val_every_n_epoch=2",
        "predictor_module.scheduler.total_steps=60",
        "callbacks.progress_bar=false",
        *more,
    ]
    values = compose("train_predictor", overrides)
    return train_predictor(load(TrainPredictorConfig, values | {"run_dir": str(tmp_path / name)}))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pbe", count=40, shift=False)
    write_folder(tmp_path / "hse", count=12, shift=True)
    return tmp_path


def test_every_fidelity_has_its_metrics_and_its_baseline(folders: Path, vae_checkpoint: Path) -> None:
    """The labels are sums over elements: the baselines are these numbers, and predict nearly all."""
    result = train(folders, "run", vae_checkpoint, "data.fidelities.HSE.weight=2")
    for split in ("val", "test"):
        for fidelity in ("PBE", "HSE"):
            assert result.metrics[f"{split}/{fidelity}/energy_mae"] < 0.2
    network, _, record = load_predictor(result.last_path)
    assert network.config.fidelities == ["PBE", "HSE"]
    assert record.data.reference_fidelity == "PBE"
    table = network.baselines.values
    for z in ELEMENTS:
        assert float(table[1, 0, z] - table[0, 0, z]) == pytest.approx(SHIFT[int(z)], abs=0.05)


def test_an_added_fidelity_is_what_it_adds_to_the_bases_own_baseline(
    folders: Path, vae_checkpoint: Path
) -> None:
    """Other reference labels than the base had gave the new fidelity a baseline that its heads do not know."""
    base = train(folders, "base", vae_checkpoint, "trainer.max_epochs=1", fidelities=("PBE",))
    write_folder(folders / "pbe", count=40, shift=False, offset=3.0)
    write_folder(folders / "hse", count=12, shift=True, offset=3.0)
    more = ["trainer.max_epochs=1", "predictor_module.vae_ckpt_path=null"]
    result = train(
        folders, "more", vae_checkpoint, *more, f"predictor_module.predictor_ckpt_path={base.last_path}"
    )
    old, new = (load_predictor(path)[0].baselines.values[:, 0] for path in (base.last_path, result.last_path))
    assert (len(old), len(new)) == (1, 2)
    assert new[0].nan_to_num(-1e9).equal(old[0].nan_to_num(-1e9))
    for z in ELEMENTS:
        assert float(new[1, z] - old[0, z]) == pytest.approx(SHIFT[int(z)], abs=0.05)


def test_a_run_with_weights_resumes_exactly(folders: Path, vae_checkpoint: Path) -> None:
    weighted = "data.fidelities.HSE.weight=3"
    whole = train(folders, "whole", vae_checkpoint, weighted)
    half = train(folders, "half", vae_checkpoint, weighted, "trainer.max_epochs=2")
    rest = train(folders, "rest", vae_checkpoint, weighted, f"ckpt_path={half.last_path}")
    one, other = read(whole.last_path), read(rest.last_path)
    for content in (one, other):  # elements without a baseline are NaN, which equals nothing
        content["state_dict"] = {
            name: value.nan_to_num(-1e9) for name, value in content["state_dict"].items()
        }
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(one[key], other[key], key)


@pytest.mark.parametrize(
    ("weights", "first", "whole"),
    [
        # 40 + 12 rows an epoch, of which weights of 3 and 0.5 ask for 6/7 and 1/7: 44.57 and 7.43.
        ({"PBE": 3, "HSE": 0.5}, (45, 7), (180, 28)),
        ({}, (40, 12), (160, 48)),
    ],
)
def test_the_log_has_the_rows_that_were_drawn(
    folders: Path, vae_checkpoint: Path, caplog: pytest.LogCaptureFixture, weights, first, whole
) -> None:
    caplog.set_level("INFO", logger="latentite.predictor.module")
    train(
        folders, "run", vae_checkpoint, *(f"data.fidelities.{name}.weight={w}" for name, w in weights.items())
    )
    lines = [line for line in caplog.messages if line.startswith("rows drawn")]
    assert lines == [
        f"rows drawn (asked for): PBE {pbe} ({pbe}), HSE {hse} ({hse})" for pbe, hse in (first, whole)
    ]


def test_an_element_without_a_baseline_is_named_before_training(folders: Path, vae_checkpoint: Path) -> None:
    crystals = CrystalBatch.from_arrays([CrystalArrays(np.array([47]), np.zeros((1, 3)), 4.0 * np.eye(3))])
    crystals = crystals.with_properties({"energy": torch.ones(1)})
    data = CrystalDataset(crystals=crystals, ids=("m-45",), content_hash="silver")
    write_dataset(folders / "pbe" / "val.safetensors", data)
    with pytest.raises(ValueError, match="val: Ag must have a baseline of energy at fidelity PBE"):
        train(folders, "run", vae_checkpoint)
