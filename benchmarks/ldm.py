"""Speed of diffusion training with the VAE's encoding in it, beside the matrix-product rate of the same run.

    python benchmarks/ldm.py --size S B                      # fp32, two threads, batch 256
    python benchmarks/ldm.py --size mini --vae small --batch-size 128 --precision fp32 bf16

A step is what `training/ldm.py` does without a latent cache: augment, encode (no gradients), draw from the
posterior, noise, denoiser forward and backward, AdamW. Model FLOPs are those of `denoiser.py` (three times
forward) plus one forward pass of the encoder; everything else counts as nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
from denoiser import forward_flops
from vae import matrix_rate, mp_20_like

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig, BatchPlan, augment, epoch_batches, seeded_generator
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize
from latentite.nn.encoders import EncoderConfig
from latentite.nn.ldm import LatentDiffusion, LDMConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig
from latentite.objectives.ldm import DiffusionConfig, diffusion_loss, loss_terms

VAE_SIZES = {"default": {}, "small": {"d_model": 256, "dim_feedforward": 1024, "num_layers": 4}}


def encode_flops(vae: CrystalVAE, batch: CrystalBatch) -> float:
    """One forward pass of the encoder."""
    part, atoms = vae.config.encoder, batch.total_atoms
    pairs, d = float(batch.num_atoms.square().sum()), part.d_model
    layers = part.num_layers * (2 * atoms * (4 * d * d + 2 * d * part.dim_feedforward) + 4 * pairs * d)
    return layers + 2 * atoms * (vae.quant_conv.weight.numel() + d * d)


def random_network(vae: str, size: DenoiserSize) -> LatentDiffusion:
    """A network with random weights, the same at every call; `vae` is of `VAE_SIZES`."""
    torch.manual_seed(0)
    trunk = VAE_SIZES[vae]
    config = VAEConfig(encoder=EncoderConfig(**trunk), decoder=DecoderConfig(**trunk))
    return LatentDiffusion(LDMConfig(vae=config, denoiser=DenoiserConfig(size=size)))


def measure(args: argparse.Namespace, size: DenoiserSize, dtype: torch.dtype) -> dict[str, float | str]:
    """One size and precision."""
    device = torch.device(args.device)
    network = random_network(args.vae, size).to(device)
    if args.compile:
        for block in network.denoiser.blocks:
            block.compile(dynamic=True)
    optimizer = torch.optim.AdamW(network.denoiser.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    split = mp_20_like(max(10_000, 4 * args.batch_size)).to(device)
    plan = BatchPlan(batch_size=args.batch_size, bucketed=True)
    batches = [b.to(device) for b in epoch_batches(split.num_atoms.cpu(), plan) if len(b) == args.batch_size]
    config = DiffusionConfig()
    schedule = config.build_schedule()
    assert schedule is not None
    schedule = schedule.to(device)

    def step(i: int) -> float:
        generator = seeded_generator(0, i, device=device)
        batch = augment(split.select(batches[i % len(batches)]), AugmentationConfig(), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            latents = network.encode(batch, generator)
            mask = latents.mask
            loss = diffusion_loss(
                lambda tokens, at: network.denoiser(tokens, at, mask),
                latents,
                config,
                schedule=schedule,
                generator=generator,
            )
        optimizer.zero_grad(set_to_none=True)
        loss_terms(loss).total().backward()
        torch.nn.utils.clip_grad_norm_(network.denoiser.parameters(), 1.0)
        optimizer.step()
        return 3 * forward_flops(network.denoiser, mask) + encode_flops(network.vae, batch)

    for i in range(args.warmup):
        step(i)
    rates, seconds, flops = [matrix_rate(dtype, device)], 0.0, 0.0
    for i in range(args.steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        flops += step(args.warmup + i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
        rates.append(matrix_rate(dtype, device))  # between steps, so that both see the same machine
    rate = sorted(rates)[len(rates) // 2]
    return {
        "size": size.value,
        "vae": args.vae,
        "precision": str(dtype).removeprefix("torch."),
        "batch_size": args.batch_size,
        "step_s": round(seconds / args.steps, 4),
        "crystals_per_s": round(args.steps * args.batch_size / seconds, 1),
        "achieved_gflops": round(flops / seconds / 1e9, 1),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(flops / seconds / rate, 3),
    }


def second_stage_parser(description: str | None, precisions: Sequence[str]) -> argparse.ArgumentParser:
    """Options of every benchmark of the second stage."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", nargs="+", default=["S", "B"], choices=["mini", "S", "B", "L"])
    parser.add_argument("--vae", default="default", choices=sorted(VAE_SIZES))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=precisions)
    parser.add_argument("--compile", action="store_true")
    return parser


def main() -> None:
    """Print one JSON line per size and precision."""
    parser = second_stage_parser(__doc__, ["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in args.size:
        for precision in args.precision:
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            print(json.dumps(measure(args, DenoiserSize(size), dtype)), flush=True)


if __name__ == "__main__":
    main()
