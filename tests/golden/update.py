"""Write what tests compare with: `python tests/golden/update.py` for settings, with names or `numbers` for numbers.

    python tests/golden/update.py                     # the resolved form of every experiment, in `configs/`
    python tests/golden/update.py numbers             # all golden numbers, in `numbers/`
    python tests/golden/update.py ldm_curve samples   # some of them

`tests/test_config_golden.py` compares the first, so that a changed default shows in review, and
`tests/test_golden_numbers.py` the second. Run it after a change that is meant, and look at the diff; CONTRIBUTING.md
says when golden numbers may be renewed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from latentite.config import STAGES, compose, config_dir

GOLDEN = Path(__file__).parent / "configs"
STAGE_OF_PREFIX = {"vae": "vae", "ldm": "ldm", "rl": "rl", "predictor": "predictor", "gpt": "gpt"}
"""An experiment's file name starts with its stage: `mp_20/vae_dng`."""


def experiments() -> list[str]:
    """Names of all experiments, as typed after `experiment=`."""
    folder = config_dir() / "experiment"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def stage(experiment: str) -> str:
    """The stage that an experiment belongs to."""
    return STAGE_OF_PREFIX[experiment.split("/")[-1].split("_")[0]]


def config_name(experiment: str) -> str:
    """The primary config that an experiment belongs to."""
    return STAGES[stage(experiment)].config_name


def resolved(experiment: str) -> str:
    """The experiment's settings as YAML text, sections and keys in a fixed order."""
    return yaml.safe_dump(compose(config_name(experiment), [f"experiment={experiment}"]), sort_keys=True)


def update_configs() -> None:
    """Write all, remove those of experiments that are gone."""
    wanted = {GOLDEN / f"{name}.yaml": resolved(name) for name in experiments()}
    for path in set(GOLDEN.rglob("*.yaml")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def update_numbers(names: Sequence[str]) -> None:
    """Write those of the named runs, or of all."""
    from runs import RUNS, golden, text_of

    if unknown := set(names) - set(RUNS):
        raise SystemExit(f"there are numbers, {', '.join(RUNS)}; got {', '.join(sorted(unknown))}")
    for name in names or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            text = text_of(RUNS[name](Path(folder)))
        golden(name).parent.mkdir(exist_ok=True)
        golden(name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Settings where nothing is named, else numbers."""
    if not arguments:
        update_configs()
    else:
        update_numbers([] if list(arguments) == ["numbers"] else arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
