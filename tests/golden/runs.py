"""The runs behind the golden numbers: every stage of training, samples of models, one evaluation.

Everything is computed in float64 (`in_double`), where other processors and numbers of threads move results by about
1e-12 instead of 1e-5: so tolerances can be narrow, and what is rounded practically never lands on the other side.
The package is reached only through the three imports below, and through settings as a user types them: a move inside
of it changes nothing here.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pymatgen.core import Structure

from latentite import evaluate, generate, stages
from latentite.config import STAGES, compose, load
from latentite.training.datamodule import CrystalDataModule

HERE = Path(__file__).parent
CRYSTALS = HERE / "crystals"
"""Sixteen crystals to train on, five to validate and five to test on, of the embedded data set."""
EVALUATED = HERE / "evaluated.csv"
"""Known and new crystals, some twice, some distorted, one with atoms that overlap, and a row without a crystal."""
STEPS = 20
RELATIVE, ABSOLUTE = 1e-7, 1e-10
"""What numbers may differ by, on the way of a move or on another machine."""

# What a stage's default may become later is written here, so that a curve moves only when the computation does.
SHARED = (
    f"data.data_dir={CRYSTALS}",
    "data.name=golden",
    "data.batch_size=8",
    "data.eval_batch_size=8",
    "data.workers=1",
    "logger=csv",
    "trainer=cpu",
    "trainer.devices=1",
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=10",
    "trainer.check_val_every_n_epoch=10",
    "trainer.gradient_clip_val=1.0",
    "trainer.log_every_n_steps=1",
    "callbacks.progress_bar=false",
    "callbacks.checkpoint.export=false",
)
OVERRIDES: dict[str, tuple[str, ...]] = {
    "vae": (
        "vae_module=small",
        "vae_module.encoder.d_model=32",
        "vae_module.encoder.num_heads=2",
        "vae_module.encoder.dim_feedforward=64",
        "vae_module.encoder.num_layers=2",
        "vae_module.decoder.d_model=32",
        "vae_module.decoder.num_heads=2",
        "vae_module.decoder.dim_feedforward=64",
        "vae_module.decoder.num_layers=2",
        "vae_module.noise.ratio=0.3",
        "vae_module.optimizer.lr=3e-3",
        "vae_module.scheduler.name=cosine",
        "vae_module.scheduler.warmup_steps=5",
        "vae_module.ema.decay=0.9",
        "vae_module.match_limit=5",
    ),
    "ldm": (
        "data.target_condition=[density,composition]",
        "ldm_module=mini",
        "ldm_module.vae_ckpt_path=mp_20_biternary_vae",
        "ldm_module.denoiser.size=custom",
        "ldm_module.denoiser.depth=2",
        "ldm_module.denoiser.hidden_size=32",
        "ldm_module.denoiser.num_heads=2",
        "ldm_module.condition_module={}",
        "ldm_module.optimizer.lr=3e-3",
        "ldm_module.scheduler.name=cosine",
        "ldm_module.scheduler.warmup_steps=5",
        "ldm_module.ema.decay=0.9",
    ),
    "rl": (
        "data.batch_size=2",
        "reward=[density,validity,creativity]",
        "trainer.max_epochs=2",
        "trainer.max_steps=-1",
        "trainer.check_val_every_n_epoch=2",
        "trainer.limit_train_batches=5",
        "trainer.limit_val_batches=1",
        "rl_module.ldm_ckpt_path=mp_20_biternary_ldm",
        "rl_module.rl_configs.num_group_samples=4",
        "rl_module.rl_configs.num_minibatches=2",
        "rl_module.rl_configs.num_inner_epochs=1",
        "rl_module.rl_configs.num_train_steps=3",
        "rl_module.rl_configs.clip_ratio=1e-3",
        "rl_module.rl_configs.kl_weight=1.0",
        "rl_module.sampling.steps=6",
        "rl_module.optimizer.lr=1e-4",
        "rl_module.num_pictures=0",
    ),
    "predictor": (
        "predictor_module.vae_ckpt_path=mp_20_biternary_vae",
        "predictor_module.target_conditions=[density,electronegativity_difference]",
        "predictor_module.hidden=[32]",
        "predictor_module.ensemble=2",
        "predictor_module.scheduler.name=cosine",
        "predictor_module.scheduler.warmup_steps=5",
        "predictor_module.ema.decay=0.9",
    ),
    "gpt": (
        "data.target_condition=[density,space_group]",
        "gpt_module.size.d_model=32",
        "gpt_module.size.num_layers=2",
        "gpt_module.size.num_heads=2",
        "gpt_module.size.dim_feedforward=64",
        "gpt_module.condition_module={}",
        "gpt_module.equivalents=true",
        "gpt_module.smoothing=0.1",
        "gpt_module.optimizer.lr=3e-3",
        "gpt_module.scheduler.name=cosine",
        "gpt_module.scheduler.warmup_steps=5",
        "gpt_module.ema.decay=0.9",
    ),
}
"""Of each stage, as typed on the command line after those of `SHARED`."""

OF_DENOISING = ("rl_module.ldm_ckpt_path=", "rl_module.sampling.steps=", "rl_module.optimizer.lr=")
RL_GPT = (
    *(one for one in OVERRIDES["rl"] if not one.startswith(OF_DENOISING)),
    "rl_module.optimizer.lr=1e-3",
    "rl_module.rl_configs.kl_form=k3",
)
"""Of reinforcement learning that starts from the model of the run `gpt_curve`."""

SAMPLES: dict[str, dict[str, Any]] = {
    "unconditional": {"ckpt": "mp_20_biternary_ldm", "num_samples": 4},
    "reinforced": {"ckpt": "mp_20_biternary_ldm_rl", "num_samples": 4},
    "formation_energy": {
        "ckpt": "mp_20_biternary_ldm_formation_energy",
        "conditions": "formation_energy_per_atom=-2.0",
        "num_samples": 4,
    },
    "formula": {"ckpt": "mp_20_biternary_ldm_composition", "formula": "TiO2,NaCl", "num_samples": 2},
}
"""Options of each run of samples."""

GPT_SAMPLES: dict[str, dict[str, Any]] = {
    "unconditional": {"num_samples": 4},
    "cold": {"num_samples": 4, "temperature": 0.7, "top_p": 0.9, "conditions": "density=5", "guidance": 2.0},
    "formula": {"formula": "LiNbO3,NaCl", "num_samples": 2},
}
"""The same of the model of the run `gpt_curve`."""


@contextmanager
def in_double(cache_dir: Path) -> Iterator[None]:
    """Compute in float64 throughout, with an empty cache and the bundled checkpoints.

    Networks are made in the default type, whatever type their weights are stored in. The package says `float()` where
    mixed precision must not reach; here that is float64 too.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.dict(os.environ, {"LATENTITE_CACHE_DIR": str(cache_dir)}),
        ):
            os.environ.pop("LATENTITE_CKPT_DIR", None)
            yield
    finally:
        torch.set_default_dtype(before)


def _double(value: Any) -> Any:
    """Every floating-point tensor of nested dataclasses and dicts in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value) if item.init]
        return dataclasses.replace(value, **{name: _double(getattr(value, name)) for name in names})
    return value


def curve(stage: str, folder: Path, overrides: Sequence[str] | None = None) -> dict[str, list[float]]:
    """What a stage logs in its first steps, by name, and its last validation: `val/...`, one number each.

    Of reinforcement learning a step is a rollout with two steps of the optimizer, and `first rollout` has the rewards
    of its crystals.

    Args:
        stage: of training.
        folder: where it runs.
        overrides: in place of those of the stage.
    """
    entry = STAGES[stage]
    recorded = folder / "rewards.jsonl"
    with in_double(folder / "cache"):
        settings = compose(entry.config_name, [*SHARED, *(overrides or OVERRIDES[stage])]) | {
            "run_dir": str(folder / "run")
        }
        if stage == "rl":
            reward = {"_target_": f"{HERE / 'recorded_reward.py'}:RecordedReward", "path": str(recorded)}
            settings["rl_module"]["reward_fn"]["components"]["recorded"] = reward
        config = load(entry.settings(), settings)
        data = CrystalDataModule(config.data)
        data.splits.update(_double(data.splits))
        getattr(stages, entry.config_name)(config, datamodule=data)
    found: dict[str, list[float]] = {}
    with (folder / "run" / "metrics.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if (
                    value
                    and name not in ("epoch", "step")
                    and not re.search(r"^time/|/seconds_per_100$", name)
                ):
                    found.setdefault(name, []).append(float(value))
    if recorded.exists():
        found["first rollout"] = json.loads(recorded.read_text(encoding="utf-8").splitlines()[0])
    return found


def gpt_base(folder: Path) -> Path:
    """The model that the run `gpt_curve` ends in, trained anew."""
    curve("gpt", folder)
    return folder / "run" / "checkpoints" / "last.ckpt"


def reinforced_gpt(folder: Path) -> dict[str, list[float]]:
    """The curve of reinforcement learning of that model."""
    base = gpt_base(folder / "base")
    return curve("rl", folder / "rl", [*RL_GPT, f"rl_module.ldm_ckpt_path={base}"])


def samples(folder: Path, **options: Any) -> list[str]:
    """The crystals of a run of samples, in order, as `described`."""
    with in_double(folder / "cache"):
        generate(**options, seed=1, batch_size=8, device="cpu", out=folder / "run")
    paths = sorted((folder / "run" / "cifs").iterdir())
    return [described(path.read_text(encoding="utf-8")) for path in paths]


def described(cif: str) -> str:
    """A CIF in a line for people, with the hash of its text, in which all numbers are rounded to three decimals."""
    structure = Structure.from_str(cif, fmt="cif")
    cell = " ".join(f"{value:.2f}" for value in structure.lattice.parameters)
    first = " ".join(f"{value:.2f}" for value in structure.frac_coords[0])
    rounded = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.3f}", cif)
    sha256 = hashlib.sha256(rounded.encode()).hexdigest()
    return f"{structure.formula}; cell {cell}; {structure[0].specie} at {first}; sha256 {sha256[:16]}"


def summary(folder: Path) -> dict[str, Any]:
    """What `latentite evaluate` writes into `summary.json`, by dotted name, without words, versions and times."""
    with mock.patch.dict(os.environ, {"LATENTITE_CACHE_DIR": str(folder / "cache")}):
        evaluate(EVALUATED, reference=CRYSTALS, out=folder / "report", workers=1)
    found = json.loads((folder / "report" / "summary.json").read_text(encoding="utf-8"))
    for name in ("source", "versions", "seconds"):
        del found[name]
    del found["reference"]["name"]
    return {name: value for name, value in flat(found) if not name.endswith((".label", ".note"))}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, by dotted name; a list is a leaf."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _all_samples(folder: Path) -> dict[str, str]:
    return _numbered({name: samples(folder / name, **asked, steps=10) for name, asked in SAMPLES.items()})


def _all_gpt_samples(folder: Path) -> dict[str, str]:
    base = gpt_base(folder / "base")
    return _numbered(
        {name: samples(folder / name, ckpt=base, **asked) for name, asked in GPT_SAMPLES.items()}
    )


def _numbered(found: Mapping[str, list[str]]) -> dict[str, str]:
    return {f"{name} {place}": line for name, lines in found.items() for place, line in enumerate(lines)}


RUNS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    **{f"{stage}_curve": partial(curve, stage) for stage in OVERRIDES},
    "rl_gpt_curve": reinforced_gpt,
    "samples": _all_samples,
    "gpt_samples": _all_gpt_samples,
    "evaluation": summary,
}
"""From the name of a file of golden numbers to the run that makes them anew in an empty folder."""


def golden(name: str) -> Path:
    """The file of a run's golden numbers."""
    return HERE / "numbers" / f"{name}.json"


def text_of(numbers: Mapping[str, Any]) -> str:
    """Golden numbers as JSON, one name a line, so that a change shows in review."""
    lines = [f"  {json.dumps(name)}: {json.dumps(_short(numbers[name]))}" for name in sorted(numbers)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(value: Any) -> Any:
    """Floats with twelve digits, and null for NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.12g}")
    return [_short(item) for item in value] if isinstance(value, list) else value


def differences(name: str, folder: Path) -> list[str]:
    """What differs from a run's golden numbers, earliest steps first: name, step and both values."""
    wanted = json.loads(golden(name).read_text(encoding="utf-8"))
    found = json.loads(text_of(RUNS[name](folder)))
    lines = [f"{key} is new, with {found[key]}" for key in sorted(found.keys() - wanted.keys())]
    lines += [f"{key} is missing, was {wanted[key]}" for key in sorted(wanted.keys() - found.keys())]
    moved = [
        (step, line)
        for key in sorted(wanted.keys() & found.keys())
        for step, line in _moved(key, wanted[key], found[key])
    ]
    lines += [line for _, line in sorted(moved, key=lambda one: one[0])]
    return [f"{name}: {line}" for line in lines]


def _moved(name: str, wanted: Any, found: Any, step: int = 0) -> Iterator[tuple[int, str]]:
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found) > 1:
        for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _moved(f"{name}, step {place}", one, other, place)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found) == 1:
        yield from _moved(name, wanted[0], found[0], STEPS)  # of the end of the run
    elif isinstance(wanted, float) and isinstance(found, (float, int)):
        if not math.isclose(wanted, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield step, f"{name}: golden {wanted:.12g}, now {found:.12g} (difference {found - wanted:.2g})"
    elif wanted != found:
        yield step, f"{name}:\n    golden {wanted}\n    now    {found}"
