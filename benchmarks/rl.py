"""Speed of reinforcement learning: rollout and update of one step, beside the matrix-product rate of the same run.

    python benchmarks/rl.py --size S --precision fp32 bf16    # two threads, 5 prompts x 64, 50 steps
    python benchmarks/rl.py --size S --timed-steps 4          # the same crystals, 4 of the 50 steps timed
    python benchmarks/rl.py --size mini --group 16 --steps 10

A step is what `rl/module.py` does without its rewards, on random weights: a rollout (DDIM, eta 1) and one inner
epoch of two minibatches with the reference's pass for KL. Model FLOPs are those of `denoiser.py`: a rollout is one
forward pass per step, an update four per trained decision (forward, twice that backward, reference). Everything else
counts as nothing, padding among it.

With `--timed-steps` the chain has so many steps instead: all of them cost the same, so the shares are those of the
whole, and `estimated_..._s` are the seconds times steps over timed steps. What is done once for each rollout (start
noise, joining and sorting the batches) then weighs more, not less.
"""

from __future__ import annotations

import argparse
import copy
import json

import torch
from denoiser import forward_flops
from ldm import random_network, second_stage_parser
from vae import matrix_rate, mp_20_like, timed

from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.latent.policy import LatentPolicy
from latentite.generators.latent.trajectories import LatentTrajectories, build_chain
from latentite.generators.policy import Prompts
from latentite.nn.denoiser import DenoiserSize
from latentite.objectives.ldm import DiffusionConfig
from latentite.rl.config import PolicyConfig
from latentite.rl.objective import choose_steps
from latentite.rl.update import Experience, Learner, minibatches


def measure(
    args: argparse.Namespace, size: DenoiserSize, dtype: torch.dtype, num_train_steps: int | None
) -> dict[str, object]:
    """One size, precision and number of trained steps."""
    device = torch.device(args.device)
    network = random_network(args.vae, size).to(device).eval()
    network.vae.requires_grad_(False)
    reference = copy.deepcopy(network).requires_grad_(False)
    timed_steps = args.timed_steps or args.steps
    sampling = SamplingConfig(steps=timed_steps, batch_size=args.batch_size)
    trained = None if num_train_steps is None else min(num_train_steps, timed_steps - 1)
    config = PolicyConfig(
        num_group_samples=args.group, num_train_steps=trained, update_tokens=args.update_tokens
    )
    chain = build_chain(DiffusionConfig(), sampling)
    policy = LatentPolicy(network=network, reference=reference, chain=chain, sampling=sampling).to(device)
    learner = Learner(policy=policy, config=config)
    optimizer = torch.optim.AdamW(network.denoiser.parameters(), lr=1e-5, fused=True)
    prompts = Prompts.of(mp_20_like(args.prompts).to(device), num_samples=args.group, run_seed=0)
    advantages = torch.randn(len(prompts), device=device)
    draws = torch.Generator().manual_seed(0)
    steps = choose_steps(chain.num_decisions, config, draws).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
    kept: list[LatentTrajectories] = []

    def roll() -> None:
        with autocast:
            kept[:] = [policy.rollout(prompts)]

    def update() -> None:
        parts = minibatches(torch.arange(len(prompts)), len(prompts), config.num_minibatches, draws)
        is_on_policy = torch.ones(len(prompts), dtype=torch.bool, device=device)
        experience = Experience(trajectories=kept[0], advantages=advantages, is_on_policy=is_on_policy)
        with autocast:
            learner.update(experience, steps, [part.to(device) for part in parts], optimizer, max_norm=1.0)

    before = matrix_rate(dtype, device)
    rollout_s, update_s = timed(roll, 1, device), timed(update, 1, device)
    rate = (before + matrix_rate(dtype, device)) / 2
    forward = forward_flops(network.denoiser, kept[0].mask)
    rollout_rate = timed_steps * forward / rollout_s
    update_rate = 4 * len(steps) * forward / update_s
    all_trained = num_train_steps or args.steps - 1
    return {
        "size": size.value,
        "precision": str(dtype).removeprefix("torch."),
        "crystals": len(prompts),
        "atoms": int(kept[0].mask.sum()),
        "steps": args.steps,
        "timed_steps": timed_steps,
        "timed_trained_steps": len(steps),
        "rollout_s": round(rollout_s, 2),
        "update_s": round(update_s, 2),
        "estimated_rollout_s": round(rollout_s * args.steps / timed_steps, 1),
        "estimated_update_s": round(update_s * all_trained / len(steps), 1),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "rollout_share_of_matrix_rate": round(rollout_rate / rate, 3),
        "update_share_of_matrix_rate": round(update_rate / rate, 3),
    }


def main() -> None:
    """Print one JSON line per size, precision and number of trained steps."""
    parser = second_stage_parser(__doc__, ["fp32", "bf16"])
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--timed-steps", type=int, help="of --steps, 2 or more; all where left out")
    parser.add_argument(
        "--train-steps", nargs="*", type=int, help="of --steps; all but the last where left out"
    )
    parser.add_argument("--update-tokens", type=int, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for size in args.size:
        for precision in args.precision:
            for trained in args.train_steps or [None]:
                line = measure(args, DenoiserSize(size), dtypes[precision], trained)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
