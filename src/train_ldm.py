"""Train a latent diffusion model: `python src/train_ldm.py experiment=mp_20/ldm_null [key=value ...]`.

`--cfg job` prints every setting; `docs/` and `configs/experiment/` say more.
"""

from latentite.config import run_stage

if __name__ == "__main__":
    run_stage("ldm")
