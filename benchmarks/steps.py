"""How many steps, with which solver: quality of samples against the number of network evaluations.

    python benchmarks/steps.py last.ckpt --num-samples 300 --run heun:50 euler:20 euler:50 heun:10 heun:25
    python benchmarks/steps.py last.ckpt --run ddim:50 dpm_solver:10 dpm_solver:20 ddpm:100 --eta 0

Every run starts from the same noise, so a deterministic solver should end at the crystals of the first run, which is
the reference: `same` counts those with its formula that `StructureMatcher` (0.3/0.5/10) matches to it. `usable`
counts first attempts that pass the geometry check of sampling, `smact` those of them with a SMACT-valid composition
(icsd24). One JSON line per run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import astuple

import torch

from latentite.crystal import CrystalBatch
from latentite.formulas import reduced_composition
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs, size_batches
from latentite.generators.sizes import plan_jobs, training_sizes
from latentite.match.reduced import LOOSE
from latentite.metrics.composition import SmactRule, is_smact_valid
from latentite.metrics.errors import reconstruction_table
from latentite.models import load_ldm
from latentite.sampling.window import geometry_refusals


def main() -> None:
    """Sample every run and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt")
    parser.add_argument("--run", nargs="+", required=True, help="solver:steps; the first is the reference")
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network, settings, record = load_ldm(args.ckpt)
    sizes = training_sizes(record.data)
    assert sizes is not None
    jobs: Jobs = plan_jobs(range(args.num_samples), seed=args.seed, sizes=sizes)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    network.denoiser.register_forward_hook(count)
    reference: CrystalBatch | None = None
    for run in args.run:
        solver, _, steps = run.partition(":")
        config = SamplingConfig(sampler=solver, steps=int(steps), eta=args.eta)  # type: ignore[arg-type]
        calls, start = 0, time.perf_counter()
        crystals = sample_jobs(network, settings.diffusion, jobs, seed=args.seed, config=config).crystals
        seconds = time.perf_counter() - start
        batches = len(size_batches(jobs.num_atoms, config.batch_size))
        reference = reference or crystals
        table = reconstruction_table(reference, crystals, matchers=(LOOSE,))
        usable = [refusal is None for refusal in geometry_refusals(crystals)]
        formulas = [
            reduced_composition(numbers.tolist()) for numbers, _, _ in map(astuple, crystals.to_arrays())
        ]
        valid = [is_smact_valid(formula, SmactRule.ICSD24) for formula in formulas]
        line = {
            "run": run,
            "evaluations": round(calls / batches),
            "usable": sum(usable),
            "smact": sum(v and ok for v, ok in zip(valid, usable, strict=True)),
            "same_formula": int((table["composition_correct"] > 0.5).sum()),
            "same": int(torch.from_numpy(table["rmsd_loose"]).isfinite().sum()),
            "elements": round(sum(len(f) for f in formulas) / len(formulas), 2),
            "of": args.num_samples,
            "structures_per_s": round(args.num_samples / seconds, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
