"""What a predictor's parts are worth: test errors beside simpler models, and the time of predictions.

    python benchmarks/predictor.py --vae path/to/vae/last.ckpt --data mp_20_biternary --epochs 40
    python benchmarks/predictor.py --vae path/to/vae/last.ckpt --features /tmp/features --only composition ours

Rows of the table, all with the heads, loss and training of `configs/experiment/mp_20_biternary/predictor_*`:

- `baseline`: one number per element, nothing trained (formation energy);
- `composition`: shares of the elements alone, everything that the encoder says set to zero;
- `encoder`: what the encoder says alone; `random encoder`: the same of an encoder that was never trained;
- `ours`: both; `ours, random encoder`: both, of an encoder that was never trained.

Every row is trained once per value of `--dropout` and judged at the one with the lower validation error. Every crystal
is encoded once per encoder, `--features` keeps that between calls. One JSON line per row; the last one has the seconds
per 10,000 predictions of the network alone and of `latentite predict` (processor time beside that on the clock).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latentite import hub
from latentite.base.plain import to_plain
from latentite.checkpoint import Stage, read_checkpoint, write_portable
from latentite.config import compose, load
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.nn.vae import CrystalVAE
from latentite.objectives.predictor import predictor_terms
from latentite.predictor.rows import CachedInputs, encode_inputs
from latentite.predictor.settings import PredictorModuleConfig, TrainPredictorConfig
from latentite.predictor.start import build_predictor_module, plan_predictor
from latentite.training.datamodule import CrystalDataModule
from latentite.training.latent_cache import CachedBatch
from latentite.training.optim import build_optimizer, build_scheduler

TARGETS = {
    "formation_energy_per_atom": "mp_20_biternary/predictor_formation_energy",
    "band_gap": "mp_20_biternary/predictor_band_gap",
}
HEADS = ("attention", "proj", "ensemble", "fidelity_heads")
ROWS = ("baseline", "composition", "encoder", "random encoder", "ours", "ours, random encoder")


def recipe(target: str, args: argparse.Namespace, *more: str) -> TrainPredictorConfig:
    """The settings of a target's experiment."""
    overrides = [
        f"experiment={TARGETS[target]}",
        f"predictor_module.vae_ckpt_path={args.vae}",
        f"data.name={args.data}",
        f"predictor_module.ensemble={args.ensemble}",
        f"predictor_module.hidden=[{','.join(map(str, args.hidden))}]",
        *more,
    ]
    return load(TrainPredictorConfig, compose("train_predictor", overrides))


def build(
    config: TrainPredictorConfig, *, is_random: bool = False
) -> tuple[PropertyPredictor, CrystalDataModule]:
    """Network with baselines and statistics, and its data."""
    module = config.predictor_module
    data = CrystalDataModule(replace(config.data, properties=module.target_conditions))
    data.setup("fit")
    torch.manual_seed(config.seed)
    network = build_predictor_module(module, plan_predictor(module, data), data, seed=config.seed).network
    if is_random:
        network.vae = CrystalVAE(network.config.vae).requires_grad_(False)
    return network.eval(), data


def encoded(
    network: PropertyPredictor, data: CrystalDataModule, kept: Path | None
) -> dict[str, CachedInputs]:
    """Every split, encoded once; features are read from and written to `kept`."""
    old = torch.load(kept, weights_only=True) if kept is not None and kept.exists() else {}
    splits = {}
    for name, dataset in data.splits.items():
        if name not in old:
            splits[name] = encode_inputs(network, dataset.crystals)
            continue
        network_inputs = PredictorInput(
            features=old[name].float(),
            num_atoms=dataset.crystals.num_atoms,
            fidelity=network.fidelity_of(dataset.crystals),
            baseline=network.baseline(dataset.crystals, network.fidelity_of(dataset.crystals)),
        )
        labels = torch.stack([dataset.crystals.properties[n] for n in network.config.targets], dim=1)
        splits[name] = CachedInputs(
            crystals=dataset.crystals, inputs=network_inputs, labels=labels, is_per_atom=False
        )
    if kept is not None and not old:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: split.inputs.features for name, split in splits.items()}, kept)
    return splits


def masked(split: CachedInputs, row: str) -> CachedInputs:
    """What a row of the table may see: zeros elsewhere."""
    features = split.inputs.features.clone()
    if row == "composition":
        features[:, :-NUM_ELEMENT_CLASSES] = 0.0
    elif row.endswith("encoder") and "ours" not in row:
        features[:, -NUM_ELEMENT_CLASSES:] = 0.0
    return replace(split, inputs=replace(split.inputs, features=features))


def fit_heads(
    network: PropertyPredictor,
    train: CachedInputs,
    config: PredictorModuleConfig,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train the heads of a network whose encoder does not change, from their first weights."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    fresh = PropertyPredictor(network.config).state_dict()
    network.load_state_dict({n: v for n, v in fresh.items() if n.startswith(HEADS)}, strict=False)
    steps = epochs * -(-len(train.labels) // batch_size)
    heads = [p for name, p in network.named_parameters() if not name.startswith("vae.")]
    optimizer = build_optimizer(heads, config.optimizer)
    scheduler = build_scheduler(optimizer, config.scheduler, steps)
    network.train()
    for _ in range(epochs):
        for index in torch.randperm(len(train.labels), generator=generator).split(batch_size):
            batch = CachedBatch(crystals=index, atoms=index[:0], num_atoms=train.num_atoms[index])
            inputs, labels = train.batch(batch)
            loss = predictor_terms(network, inputs, network.outputs(inputs), labels, config.loss).total()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(heads, 1.0)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    network.eval()


@torch.no_grad()
def mae(network: PropertyPredictor, split: CachedInputs) -> float:
    """Mean absolute error, in the unit of the label."""
    found = network.predictions(split.inputs).values[network.config.targets[0]]
    return float((found - split.labels[:, 0]).abs().nanmean())


def table(target: str, args: argparse.Namespace) -> None:
    """Every row of one target."""
    for is_random in (False, True):
        rows = [row for row in args.only if ("random" in row) is is_random]
        if not rows:
            continue
        config = recipe(target, args)
        network, data = build(config, is_random=is_random)
        kept = args.features and args.features / ("random.pt" if is_random else "trained.pt")
        splits = encoded(network, data, kept)
        for row in rows:
            start = time.process_time()
            if row == "baseline":
                results = {"test_mae": float(baseline_error(splits["test"]))}
            else:
                seen = {name: masked(split, row) for name, split in splits.items()}
                results = best_of(network, seen, config, args)
            seconds = round(time.process_time() - start, 1)
            rounded = {name: round(value, 4) for name, value in results.items()}
            print(json.dumps({"target": target, "row": row, **rounded, "cpu_s": seconds}), flush=True)


def baseline_error(split: CachedInputs) -> Tensor:
    """Of the baseline per element; of 0 where the target has none."""
    return (split.inputs.baseline - split.labels).abs().nanmean()


def best_of(
    network: PropertyPredictor,
    splits: dict[str, CachedInputs],
    config: TrainPredictorConfig,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Errors at the dropout with the lowest validation error."""
    results: dict[str, float] = {}
    for dropout in args.dropout:
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        network.fit_feature_statistics(splits["train"].inputs.features)
        fit_heads(
            network,
            splits["train"],
            config.predictor_module,
            epochs=args.epochs,
            batch_size=config.data.batch_size,
            seed=args.seed,
        )
        val = mae(network, splits["val"])
        if not results or val < results["val_mae"]:
            results = {"val_mae": val, "test_mae": mae(network, splits["test"]), "dropout": dropout}
    return results


def speed(target: str, args: argparse.Namespace) -> None:
    """Seconds per 10,000 predictions: of `latentite predict`, reading included, and of the network alone."""
    config = recipe(target, args)
    network, data = build(config)
    record = read_checkpoint(hub.resolve(args.vae), stage=Stage.VAE)
    record = replace(
        record,
        stage=Stage.PREDICTOR,
        config=to_plain(network.config),
        state=network.state_dict(),
        data=data.data_card(),
    )
    sample = data.splits["test"].crystals
    order = sample.num_atoms.argsort(stable=True)
    clock, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for index in order.split(256):
            network.predictions(network.prepare(sample.select(index)))
    share = 10_000 / len(sample)
    line = {
        "network_s": (time.perf_counter() - clock) * share,
        "network_cpu_s": (time.process_time() - cpu) * share,
    }
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_portable(record, Path(folder) / "predictor")
        command = [sys.executable, "-m", "latentite", "predict", str(path), args.data, "--split", "train"]
        clock, cpu = time.perf_counter(), children_seconds()
        subprocess.run([*command, "--out", f"{folder}/table.csv"], check=True, stdout=subprocess.DEVNULL)
        share = 10_000 / len(data.splits["train"])
        line["predict_s"] = (time.perf_counter() - clock) * share
        line["predict_cpu_s"] = (children_seconds() - cpu) * share
    print(json.dumps({"row": "10,000 predictions"} | {k: round(v, 1) for k, v in line.items()}), flush=True)


def children_seconds() -> float:
    """Processor time of the commands run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", required=True)
    parser.add_argument("--data", default="mp_20_biternary", help="a named data set [%(default)s]")
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1])
    parser.add_argument("--features", type=Path, help="folder that keeps encoded crystals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-speed", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for target in args.target:
        table(target, args)
    if not args.no_speed:
        speed(args.target[0], args)


if __name__ == "__main__":
    main()
