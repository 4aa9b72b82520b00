"""Train a property predictor: `python src/train_predictor.py experiment=prototypes/predictor_density [key=value ...]`.

`--cfg job` prints every setting; `docs/` and `configs/experiment/` say more.
"""

from latentite.config import run_stage

if __name__ == "__main__":
    run_stage("predictor")
