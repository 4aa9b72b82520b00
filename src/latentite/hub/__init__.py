"""Names of checkpoints and the files behind them: what is bundled, what is cached, what can be downloaded.

`resolve` is what `${hub:NAME}` in a configuration and NAME on the command line mean. It looks, in this order, for a
file at that path; for a bundled checkpoint (`ckpts/NAME.safetensors` or `.ckpt`); in the download cache; and on the
Hugging Face hub. Names are exact. A Chemeleon2 checkpoint, public or not, is converted once, without executing
anything in it, and its conversion is what is given. What others use is named here.
"""

from latentite.base.download import Patience
from latentite.hub.lookup import card, download, list_names, resolve, verify
from latentite.hub.names import (
    BUNDLED,
    DEFAULT_GPT,
    DEFAULT_LDM,
    PUBLIC,
    REPOSITORY,
    Entry,
    HubError,
    Origin,
    bundled_files,
)

__all__ = [
    "BUNDLED",
    "DEFAULT_GPT",
    "DEFAULT_LDM",
    "PUBLIC",
    "REPOSITORY",
    "Entry",
    "HubError",
    "Origin",
    "Patience",
    "bundled_files",
    "card",
    "download",
    "list_names",
    "resolve",
    "verify",
]
