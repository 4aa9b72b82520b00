"""Train a crystal GPT: `python src/train_gpt.py experiment=mp_20/gpt [key=value ...]`.

`--cfg job` prints every setting; `docs/` and `configs/experiment/` say more.
"""

from latentite.config import run_stage

if __name__ == "__main__":
    run_stage("gpt")
