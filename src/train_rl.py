"""Train a policy: `python src/train_rl.py experiment=prototypes/rl_density [key=value ...]`.

`--cfg job` prints every setting; `docs/` and `configs/experiment/` say more.
"""

from latentite.config import run_stage

if __name__ == "__main__":
    run_stage("rl")
