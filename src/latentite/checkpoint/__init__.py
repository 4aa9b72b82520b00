"""Checkpoints of ours: their content, and reading them safely.

Two forms say the same. Training leaves Lightning `.ckpt` files, with optimizer and loops, to resume from;
`export_portable` makes of one a pair `NAME.safetensors` + `NAME.json` (the card), to publish. Either is read
by `read_checkpoint` into a `CheckpointRecord`, and nothing in the file is ever executed: `.ckpt` files are
read with `torch.load(weights_only=True)`, and whatever that refuses is refused here with a sentence.

A `.ckpt` has Lightning's own keys, the raw weights in `state_dict` under the prefix "network.", and

    "latentite": {"format": 1, "stage": "vae", "config": {...}, "data": {...}, "metrics": {...},
                  "ema": {parameter name without prefix: tensor} or None,
                  "default_weights": "raw" or "ema", where it is not the EMA if there is one,
                  "generator": name of the generator that it is, such as "latent_diffusion", where it is one}

What others use is named here; the files of this folder say the rest.
"""

from latentite.checkpoint.lightning_file import read_training_state
from latentite.checkpoint.portable import StoredFormat, read_portable, write_portable
from latentite.checkpoint.read import (
    export_portable,
    merge_adapters,
    network_of,
    read_checkpoint,
    require_fit,
)
from latentite.checkpoint.record import (
    CRYSTAL_GPT,
    FORMAT,
    LATENT_DIFFUSION,
    NETWORK_PREFIX,
    PAYLOAD_KEY,
    CheckpointError,
    CheckpointRecord,
    DataCard,
    FidelityCard,
    OrbitCard,
    SplitCard,
    Stage,
    Weights,
    build_payload,
    plain,
)

__all__ = [
    "CRYSTAL_GPT",
    "FORMAT",
    "LATENT_DIFFUSION",
    "NETWORK_PREFIX",
    "PAYLOAD_KEY",
    "CheckpointError",
    "CheckpointRecord",
    "DataCard",
    "FidelityCard",
    "OrbitCard",
    "SplitCard",
    "Stage",
    "StoredFormat",
    "Weights",
    "build_payload",
    "export_portable",
    "merge_adapters",
    "network_of",
    "plain",
    "read_checkpoint",
    "read_portable",
    "read_training_state",
    "require_fit",
    "write_portable",
]
