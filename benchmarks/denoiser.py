"""Speed of the denoiser, forward and backward, beside the machine's own matrix-product rate of the same run.

    python benchmarks/denoiser.py --size S B                 # fp32, two threads, batch 256
    python benchmarks/denoiser.py --device cuda --precision fp32 bf16 --compile --batch-size 1024

`train` is a step on random latents: noise, forward, backward, AdamW. `forward` is one network evaluation of
sampling. Model FLOPs count what must be done for the atoms and crystals that exist: 2 per weight and atom
(modulation: and crystal), attention among the atoms of each crystal, twice all that backward. Padding, norms,
modulation of rows, casts and the optimizer count as nothing, so they show as lost rate.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from vae import matrix_rate, mp_20_like, timed

from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.nn.denoiser import Denoiser, DenoiserConfig, DenoiserSize, TokenIndex
from latentite.nn.vae import LatentBatch


def forward_flops(denoiser: Denoiser, mask: torch.Tensor) -> float:
    """One evaluation."""
    config = denoiser.config
    depth, d, _ = config.shape
    num_atoms = mask.sum(dim=-1).double()
    atoms, pairs, crystals = float(num_atoms.sum()), float(num_atoms.square().sum()), len(mask)
    width = denoiser.blocks[0].mlp.fc1.out_features
    block = 2 * atoms * (4 * d * d + 2 * d * width) + 4 * pairs * d + 2 * crystals * 6 * d * d
    ends = atoms * (denoiser.x_embedder.weight.numel() + denoiser.final_layer.linear.weight.numel())
    ends += crystals * sum(p.numel() for p in denoiser.t_embedder.parameters()) + crystals * 2 * d * d
    return depth * block + 2 * ends


def batches(args: argparse.Namespace, device: torch.device) -> list[torch.Tensor]:
    """Masks of full batches with the numbers of atoms of MP-20."""
    num_atoms = mp_20_like(max(4000, 8 * args.batch_size)).num_atoms
    plan = BatchPlan(batch_size=args.batch_size, bucketed=args.bucketed)
    chosen = [num_atoms[batch] for batch in epoch_batches(num_atoms, plan)]
    masks = [
        LatentBatch.token_mask(chosen_one) for chosen_one in chosen if len(chosen_one) == args.batch_size
    ]
    return [mask.to(device) for mask in masks]


def measure(args: argparse.Namespace, size: DenoiserSize, dtype: torch.dtype) -> dict[str, float | str]:
    """One size and precision."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(size=size, index=TokenIndex(args.index))).to(device)
    if args.compile:
        for block in denoiser.blocks:
            block.compile(dynamic=True)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    masks = batches(args, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)

    def evaluate(mask: torch.Tensor) -> torch.Tensor:
        tokens = torch.randn(*mask.shape, denoiser.config.latent_dim, device=device) * mask.unsqueeze(-1)
        steps = torch.randint(0, 1000, (len(mask),), device=device)
        with autocast:
            output = denoiser(tokens, steps, mask)
        return (output[..., : tokens.shape[-1]] - tokens).square().mean()

    def train(mask: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        evaluate(mask).backward()
        optimizer.step()

    @torch.inference_mode()
    def forward(mask: torch.Tensor) -> None:
        evaluate(mask)

    result: dict[str, float | str] = {"size": size.value, "precision": str(dtype).removeprefix("torch.")}
    result["batch_size"] = args.batch_size
    for name, work, factor in (("train", train, 3), ("forward", forward, 1)):
        for i in range(args.warmup):
            work(masks[i % len(masks)])
        before = matrix_rate(dtype, device)
        flops, seconds = 0.0, 0.0
        for i in range(args.steps):
            mask = masks[(args.warmup + i) % len(masks)]
            flops += factor * forward_flops(denoiser, mask)
            seconds += timed(lambda mask=mask, work=work: work(mask), 1, device)
        rate = (before + matrix_rate(dtype, device)) / 2
        result[f"{name}_step_s"] = round(seconds / args.steps, 4)
        result[f"{name}_crystals_per_s"] = round(args.steps * args.batch_size / seconds, 1)
        result[f"{name}_gflops"] = round(flops / seconds / 1e9, 1)
        result[f"{name}_share_of_matrix_rate"] = round(flops / seconds / rate, 3)
        result["matrix_product_gflops"] = round(rate / 1e9, 1)
    return result


def main() -> None:
    """Print one JSON line per size and precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", nargs="+", default=["S"], choices=["mini", "S", "B", "L"])
    parser.add_argument("--index", default="sinusoidal", choices=[index.value for index in TokenIndex])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--bucketed", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    for size in args.size:
        for precision in args.precision:
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            line = measure(args, DenoiserSize(size), dtype)
            print(json.dumps(line | {"elapsed_s": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
