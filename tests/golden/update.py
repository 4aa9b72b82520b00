"""Write the resolved form of every experiment to `tests/golden/configs/`: `python tests/golden/update.py`.

`tests/test_config_golden.py` compares them, so that a changed default shows in review. Run this after a
change that is meant, and look at the diff.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from latentite.config import STAGES, compose, config_dir

GOLDEN = Path(__file__).parent / "configs"
STAGE_OF_PREFIX = {"vae": "vae", "ldm": "ldm", "rl": "rl", "predictor": "predictor"}
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


def main() -> None:
    """Write all, remove those of experiments that are gone."""
    wanted = {GOLDEN / f"{name}.yaml": resolved(name) for name in experiments()}
    for path in set(GOLDEN.rglob("*.yaml")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
