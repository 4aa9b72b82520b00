"""Speed of the crystal GPT: encoding, training, and sampling with decoding, beside the machine's matrix-product rate.

    python benchmarks/gpt.py                                     # untrained, default size, on the embedded data set
    python benchmarks/gpt.py --ckpt path/to/model.safetensors    # a trained one samples crystals of usual sizes
    python benchmarks/gpt.py --data mp_20_biternary --threads 1

A training step is what `training/gpt.py` does without conditions: forward, backward, clipping, AdamW. Its model FLOPs
are those of the trunk's matrices (six per parameter and token); heads, distances and everything else count as nothing.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from vae import matrix_rate

from latentite.data.build import read_source
from latentite.models import load_gpt
from latentite.nn.gpt.choices import DrawSettings
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.network import limits_of
from latentite.nn.gpt.sample import Sampler, num_uniforms
from latentite.nn.gpt.size import GPTSize
from latentite.symmetry.dataset import EncodedDataset, encode_dataset


def measure_training(args: argparse.Namespace, encoded: EncodedDataset) -> dict[str, float]:
    """Steps of the default recipe."""
    torch.manual_seed(0)
    model = CrystalGPT(GPTSize(), limits_of(encoded.orbits)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    order = encoded.orbits.num_orbits.argsort()
    batches = [batch for batch in order.split(args.batch_size) if len(batch) == args.batch_size]
    trunk = sum(parameter.numel() for parameter in model.trunk.parameters())
    seconds = flops = 0.0
    rates = [matrix_rate(torch.float32, torch.device("cpu"))]
    for step in range(args.warmup + args.steps):
        # Batches of all sizes in turn.
        index = batches[step * 7919 % len(batches)]
        batch, reductions = encoded.orbits.select(index), encoded.reductions[index]
        start = time.perf_counter()
        loss = -model.log_prob(PaddedOrbits.of(batch), place_crystals(batch, reductions), None).total.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if step >= args.warmup:
            seconds += time.perf_counter() - start
            tokens = len(batch) * (3 + 2 * int(batch.num_orbits.max()))
            flops += 6.0 * trunk * tokens
            rates.append(matrix_rate(torch.float32, torch.device("cpu")))
    rate = sorted(rates)[len(rates) // 2]
    return {
        "training_crystals_per_s": round(args.steps * args.batch_size / seconds, 1),
        "achieved_gflops": round(flops / seconds / 1e9, 1),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(flops / seconds / rate, 3),
    }


def measure_sampling(args: argparse.Namespace, encoded: EncodedDataset) -> dict[str, float]:
    """Crystals drawn and decoded to atoms."""
    if args.ckpt is None:
        torch.manual_seed(0)
        model = CrystalGPT(GPTSize(), limits_of(encoded.orbits)).eval()
        condition = None
    else:
        network, _, _ = load_gpt(args.ckpt)
        model = network.gpt
        told = network.conditioning({}, num_crystals=args.draw_batch)
        condition = None if told is None else told.vector
    sampler = Sampler(model, DrawSettings())
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(args.draw_batch, num_uniforms(model.limits.max_orbits), generator=generator)
    sampler.draw(numbers, condition=condition)
    start = time.perf_counter()
    drawn = sampler.draw(numbers, condition=condition)
    crystals = drawn.orbits.to_crystals()
    seconds = time.perf_counter() - start
    return {
        "sampled_crystals_per_s": round(args.draw_batch / seconds, 1),
        "atoms_per_crystal": round(float(crystals.num_atoms.float().mean()), 2),
    }


def main() -> None:
    """Print one line of JSON for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="prototypes", help="named data set or file [%(default)s]")
    parser.add_argument("--ckpt", help="trained model that is sampled; untrained otherwise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--draw-batch", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset, _ = read_source(args.data, split="train", max_atoms=52)
    start = time.process_time()
    encoded = encode_dataset(dataset, workers=1, use_cache=False)
    seconds = time.process_time() - start
    print(
        json.dumps({"encoded": len(encoded), "encoded_crystals_per_cpu_s": round(len(encoded) / seconds, 1)})
    )
    print(json.dumps(measure_training(args, encoded)))
    print(json.dumps(measure_sampling(args, encoded)))


if __name__ == "__main__":
    main()
