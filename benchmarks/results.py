"""Everything that `docs/results.md` and `docs/results_gpt.md` say, measured by a command that goes on where it stopped.

    python benchmarks/results.py --data ../shared/data/mp_20_biternary            # the bundled weights, all parts
    python benchmarks/results.py --parts vae samples --relax none                 # some parts, no relaxation
    python benchmarks/results.py --quick --page results.md                        # a dozen of everything
    python benchmarks/results.py --parts --page docs/results.md                   # only write the page again

Each part leaves its numbers as `OUT/PART.json`, with what it was told and the machine; a part that is there already
with the same checkpoint, data and sizes is not measured again, and one that was interrupted goes on. A part whose
checkpoint is missing is left out, and the page says so. The page and its pictures are made from these files alone.
On two CPU cores the relaxations of 1,000 structures take about an hour; everything else takes minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from results_gpt import GPT_PARTS, with_mix
from results_page import write_gpt_page, write_page
from results_parts import PARTS as LATENT_PARTS
from results_parts import QUICK, Setup, Sizes

from latentite import __version__, hub
from latentite.base.files import sha256_file, write_json
from latentite.energy.catalogue import parse_theory
from latentite.training.fit import git_commit

ROLES = {
    "vae": "mp_20_biternary_vae",
    "ldm": hub.DEFAULT_LDM,
    "conditional": "mp_20_biternary_ldm_formation_energy",
    "composition": "mp_20_biternary_ldm_composition",
    "rl": "mp_20_biternary_ldm_rl",
    "gpt": hub.DEFAULT_GPT,
    "gpt_rl": "mp_mix_gpt_rl",
    "gpt_biternary": "mp_20_biternary_gpt",
    "gpt_biternary_second": "mp_20_biternary_gpt_second",
    "predictor_formation_energy": "mp_20_biternary_predictor_formation_energy",
    "predictor_band_gap": "mp_20_biternary_predictor_band_gap",
}
"""The bundled checkpoint of each role."""
PARTS = {**LATENT_PARTS, **GPT_PARTS}


def machine() -> dict[str, Any]:
    """Hardware and software, for the page."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": str(torch.__version__),
        "latentite": __version__,
        "commit": git_commit(),
    }


def find_checkpoints(given: dict[str, str | None]) -> dict[str, Path]:
    """The file of each role; roles that were not given and are not bundled are left out.

    Raises:
        ValueError: for a given one that does not exist.
    """
    here = {entry.name for entry in hub.list_names() if entry.path is not None}
    named = {role: given.get(role) or (name if name in here else None) for role, name in ROLES.items()}
    return {role: hub.resolve(name) for role, name in named.items() if name is not None}


def hashes_of(path: Path) -> list[str]:
    """sha256 of a checkpoint and of those that it borrows tensors from."""
    card = path.with_suffix(".json")
    content = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    return [sha256_file(path), *(loan["sha256"] for loan in content.get("borrowed", {}).values())]


def inputs_of(part: str, setup: Setup) -> dict[str, Any]:
    """Everything that the numbers of a part depend on."""
    wanted = PARTS[part]
    roles = tuple(ROLES) if part == "weights" else wanted.needs
    setup = with_mix(setup) if wanted.on_mix else setup
    used = {role: setup.checkpoints[role] for role in roles if role in setup.checkpoints}
    tables = sorted(
        path for folder in (setup.data, *setup.hull) for path in folder.glob("*") if path.is_file()
    )
    return {
        "checkpoints": {role: hashes_of(path) for role, path in used.items()},
        "data": {f"{path.parent.name}/{path.name}": sha256_file(path) for path in tables},
        "sizes": {name: getattr(setup.sizes, name) for name in wanted.sizes},
        "relax": setup.relax,
        "hull_theory": str(setup.hull_theory),
        "seed": setup.seed,
    }


def run_part(part: str, setup: Setup, out: Path) -> str:
    """Measure a part unless its numbers are there; says in words what was done."""
    needs, package = PARTS[part].needs, PARTS[part].package
    if package is not None and importlib.util.find_spec(package) is None:
        return f"left out: it takes the package {package}, which is not installed"
    if needs and not any(role in setup.checkpoints for role in needs):
        options = " or ".join(f"--{role.replace('_', '-')}" for role in needs)
        return f"left out: there is no checkpoint for it; give {options}, or have it in ckpts/"
    inputs = json.loads(json.dumps(inputs_of(part, setup)))
    path = out / f"{part}.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["inputs"] == inputs:
        return "there already"
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = out / "work" / f"{part}-{digest}"
    is_resumed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = PARTS[part].measure(setup, folder)
    seconds = time.perf_counter() - start
    write_json(
        path,
        {
            "part": part,
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "resumed": is_resumed,
            "machine": machine(),
            "inputs": inputs,
            "found": found,
        },
    )
    return f"measured in {seconds / 60:.1f} minutes"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("../shared/data/mp_20_biternary"),
        help="folder with its three splits",
    )
    add(
        "--mix",
        type=Path,
        help="folder of mp_mix, which the shipped crystal GPT has learned from [beside --data]",
    )
    add("--hull", type=Path, action="append", help="tables to compete with [--data, and mpts_52 beside it]")
    add("--hull-theory", default="PBE(+U), corrected", help="of their formation energies [%(default)s]")
    add(
        "--out",
        type=Path,
        default=Path("outputs/results"),
        help="numbers and work of the parts [%(default)s]",
    )
    add(
        "--page",
        type=Path,
        default=Path("docs/results.md"),
        help="the crystal GPT's stands beside it, as its pictures in images/",
    )
    add("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="[all of them]")
    add("--quick", action="store_true", help="a dozen of everything, to see that it works")
    for name in (
        "samples",
        "rl",
        "filtered",
        "conditional",
        "judged",
        "crystals",
        "formulas",
        "per-formula",
        "relax-steps",
    ):
        add(f"--num-{name}", type=int, metavar="N", help=f"[{getattr(Sizes(), name.replace('-', '_'))}]")
    for role, name in ROLES.items():
        add(f"--{role.replace('_', '-')}", metavar="CKPT", help=f"[{name}, if it is there]")
    add("--relax", default="chgnet", metavar="POTENTIAL", help="or none [%(default)s]")
    add("--workers", type=int, default=1, help="processes; they do not change the numbers [%(default)s]")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def setup_of(args: argparse.Namespace) -> Setup:
    """What the command line says.

    Raises:
        FileNotFoundError: when there is no data.
        ValueError: for a checkpoint that does not exist.
    """
    if not args.data.is_dir():
        raise FileNotFoundError(
            f"--data must be a folder with train, val and test tables, but {args.data} is none"
        )
    beside = args.data.parent / "mpts_52"
    mix = args.mix or args.data.parent / "mp_mix"
    hull = args.hull or [args.data, *([beside] if beside.is_dir() else [])]
    sizes = asdict(QUICK if args.quick else Sizes())
    given = {name: getattr(args, f"num_{name}") for name in sizes}
    return Setup(
        checkpoints=find_checkpoints({role: getattr(args, role) for role in ROLES}),
        data=args.data,
        hull=tuple(hull),
        hull_theory=parse_theory(args.hull_theory),
        relax=args.relax,
        sizes=Sizes(**{name: value if given[name] is None else given[name] for name, value in sizes.items()}),
        workers=args.workers,
        seed=args.seed,
        mix=mix if mix.is_dir() else None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the page."""
    args = parse(argv)
    try:
        setup = setup_of(args)
        for part in args.parts:
            print(f"{part}: {run_part(part, setup, args.out)}", flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for pages, page, write in (
        (LATENT_PARTS, args.page, write_page),
        (GPT_PARTS, args.page.with_name(f"{args.page.stem}_gpt.md"), write_gpt_page),
    ):
        if not args.parts or any(part in pages for part in args.parts):
            write(args.out, page)
            print(f"page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
