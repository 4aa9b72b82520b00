"""Speed of VAE training, beside the machine's own matrix-product rate measured in the same run.

    python benchmarks/vae.py                          # default size, fp32 and bf16, two threads
    python benchmarks/vae.py --device cuda --compile --batch-size 2048

Model FLOPs count what the network must do for the atoms that exist: 2 per weight and atom forward, twice that
backward, plus attention among the atoms of each crystal. Padding, casts, norms, the optimizer and data feeding
count as nothing, so they show as lost rate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig, BatchPlan, augment, epoch_batches, seeded_generator
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig
from latentite.objectives.vae import LossWeights, vae_loss

# Share of MP-20 crystals with 1..20 atoms.
MP_20 = [22, 211, 198, 1527, 471, 846, 211, 781, 343, 973, 133, 967, 216, 652, 144, 670, 97, 532, 106, 900]


def mp_20_like(count: int) -> CrystalBatch:
    """Random crystals with the numbers of atoms of MP-20 (their content does not change the work)."""
    generator = torch.Generator().manual_seed(0)
    num_atoms = (
        torch.multinomial(torch.tensor(MP_20).float(), count, replacement=True, generator=generator) + 1
    )
    total = int(num_atoms.sum())
    edge = (15.0 * num_atoms) ** (1 / 3)
    return CrystalBatch(
        atomic_numbers=torch.randint(1, 90, (total,), generator=generator),
        frac_coords=torch.rand(total, 3, generator=generator),
        lattice=edge[:, None, None] * torch.eye(3),
        num_atoms=num_atoms,
    )


def model_flops(network: CrystalVAE, batch: CrystalBatch) -> float:
    """Forward and backward of one step."""
    config, atoms = network.config, batch.total_atoms
    pairs = float(batch.num_atoms.square().sum())
    total = 0.0
    for part in (config.encoder, config.decoder):
        d, feedforward = part.d_model, part.dim_feedforward
        total += part.num_layers * (2 * atoms * (4 * d * d + 2 * d * feedforward) + 4 * pairs * d)
    heads = network.quant_conv.weight.numel() + network.post_quant_conv.weight.numel()
    heads += network.decoder.frac_coords_head.weight.numel() + network.decoder.atom_types_head.weight.numel()
    total += 2 * atoms * (heads + config.encoder.d_model**2)
    return 3 * total


def timed(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        run()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a 2560 x 512 x 2048 product (on a GPU of a 8192-cubed one)."""
    m, k, n = (8192, 8192, 8192) if device.type == "cuda" else (2560, 512, 2048)
    a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
    timed(lambda: a @ b, 3, device)
    return 2 * m * k * n / timed(lambda: a @ b, 21, device)


def measure(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, float | str]:
    """One precision: rates before and after, step time, share of the step that feeds data."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    size = {"d_model": args.d_model, "num_layers": args.layers, "dim_feedforward": 4 * args.d_model}
    network = CrystalVAE(VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size))).to(device)
    if args.compile:
        network.encoder.transformer.compile(dynamic=True)
        network.decoder.transformer.compile(dynamic=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    split = mp_20_like(max(10_000, 4 * args.batch_size)).to(device)
    plan = BatchPlan(batch_size=args.batch_size, bucketed=args.bucketed)
    batches = [b.to(device) for b in epoch_batches(split.num_atoms.cpu(), plan) if len(b) == args.batch_size]
    feeding, flops, atoms = 0.0, 0.0, 0

    def step(i: int) -> None:
        nonlocal feeding, flops, atoms
        start = time.perf_counter()
        generator = seeded_generator(0, i, device=device)
        batch = augment(split.select(batches[i % len(batches)]), AugmentationConfig(), generator)
        _synchronise(device)
        feeding += time.perf_counter() - start
        flops, atoms = flops + model_flops(network, batch), atoms + batch.total_atoms
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = vae_loss(network, batch, LossWeights(), generator=generator).total()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()

    for i in range(args.warmup):
        step(i)
    feeding, flops, atoms = 0.0, 0.0, 0
    rates, seconds = [matrix_rate(dtype, device)], 0.0
    for i in range(args.steps):
        start = time.perf_counter()
        step(args.warmup + i)
        _synchronise(device)
        seconds += time.perf_counter() - start
        rates.append(matrix_rate(dtype, device))  # between steps, so that both see the same machine
    rate = sorted(rates)[len(rates) // 2]
    per_second = args.steps * args.batch_size / seconds
    return {
        "precision": str(dtype).removeprefix("torch."),
        "step_s": round(seconds / args.steps, 4),
        "crystals_per_s": round(per_second, 1),
        "atoms_per_s": round(atoms / seconds, 1),
        "achieved_gflops": round(flops / seconds / 1e9, 1),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(flops / seconds / rate, 3),
        "share_feeding": round(feeding / seconds, 4),
        "hours_5000_epochs_mp_20": round(5000 * 27_136 / per_second / 3600, 2),
    }


def main() -> None:
    """Print one JSON line per precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8, help="of the encoder and of the decoder")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--bucketed", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for precision in args.precision:
        print(json.dumps(measure(args, torch.float32 if precision == "fp32" else torch.bfloat16)), flush=True)


if __name__ == "__main__":
    main()
