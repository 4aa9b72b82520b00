"""Train a crystal VAE: `python src/train_vae.py experiment=mp_20/vae_dng [key=value ...]`.

`--cfg job` prints every setting; `docs/` and `configs/experiment/` say more.
"""

from latentite.config import run_stage

if __name__ == "__main__":
    run_stage("vae")
