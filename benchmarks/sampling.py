"""Sampling speed, decoding and conversion to structures included, and the share of time outside the denoiser.

    python benchmarks/sampling.py --size S B --steps 10 20 50          # fp32, two threads, batch 256
    python benchmarks/sampling.py --device cuda --precision fp32 bf16 --batch-size 1024

Random weights: the work is that of a trained model. Sizes are drawn as in MP-20. The sampler is DDIM, one evaluation
a step. Padding is the share of token slots of the batches that hold no atom.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from ldm import random_network, second_stage_parser
from vae import mp_20_like

from latentite.diffusion.samplers import SamplerKind
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import SamplingConfig, SamplingPrecision, sample_jobs, size_batches
from latentite.nn.denoiser import DenoiserSize
from latentite.objectives.ldm import DiffusionConfig
from latentite.sampling.window import geometry_refusals


class Stopwatch:
    """Seconds inside a module, by hooks around its forward pass."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self.seconds, self._start, self._device = 0.0, 0.0, device
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._start = self.now()

    def _end(self, *_: object) -> None:
        self.seconds += self.now() - self._start

    def now(self) -> float:
        """The time, when the device has done its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _padding(num_atoms: torch.Tensor, batches: list[torch.Tensor]) -> float:
    """Share of token slots that hold no atom when each batch is padded to its largest crystal."""
    slots = sum(int(num_atoms[batch].max()) * len(batch) for batch in batches)
    return 1.0 - int(num_atoms.sum()) / slots


def measure(
    args: argparse.Namespace, size: DenoiserSize, steps: int, precision: SamplingPrecision
) -> dict[str, object]:
    """One size, number of steps and precision."""
    device = torch.device(args.device)
    network = random_network(args.vae, size).to(device).eval()
    if args.compile:
        for block in network.denoiser.blocks:
            block.compile(dynamic=True)
    watch = Stopwatch(network.denoiser, device)
    num_atoms = mp_20_like(args.num_samples).num_atoms
    config = SamplingConfig(
        sampler=SamplerKind.DDIM, steps=steps, batch_size=args.batch_size, precision=precision
    )
    warm = SamplingConfig(sampler=SamplerKind.DDIM, steps=1, batch_size=args.batch_size, precision=precision)
    sample_jobs(network, DiffusionConfig(), Jobs.plain(num_atoms), seed=0, config=warm)
    watch.seconds, start = 0.0, watch.now()
    found = sample_jobs(network, DiffusionConfig(), Jobs.plain(num_atoms), seed=0, config=config)
    geometry_refusals(found.crystals)
    found.crystals.to_structures()
    seconds = watch.now() - start
    return {
        "size": size.value,
        "vae": args.vae,
        "precision": precision.value,
        "steps": steps,
        "structures_per_s": round(args.num_samples / seconds, 2),
        "seconds": round(seconds, 2),
        "share_outside_denoiser": round(1 - watch.seconds / seconds, 4),
        "padding": round(_padding(num_atoms, size_batches(num_atoms, args.batch_size)), 4),
    }


def main() -> None:
    """Print one JSON line per size, precision and number of steps."""
    parser = second_stage_parser(__doc__, [p.value for p in SamplingPrecision])
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50])
    parser.add_argument("--num-samples", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in args.size:
        for precision in args.precision:
            for steps in args.steps:
                line = measure(args, DenoiserSize(size), steps, SamplingPrecision(precision))
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
