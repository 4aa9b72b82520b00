"""A public checkpoint into the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from latentite.base.download import DownloadError, Patience, fetch, hub_address, is_offline
from latentite.base.files import replacing
from latentite.hub.cached import cached_file, problem_of, write_record
from latentite.hub.names import PUBLIC, REPOSITORY, HubError, bundled_files, unknown_name

logger = logging.getLogger(__name__)


def download(
    name: str,
    *,
    force: bool = False,
    patience: Patience | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The file of a public checkpoint in the cache, fetched if it is not there whole.

    Args:
        name: one of `PUBLIC`.
        force: fetch it even if it is there.
        patience: time-outs and tries; None for the defaults.
        on_progress: called with bytes so far and bytes in total (None while unknown).

    Raises:
        ValueError: not a public name.
        HubError: it cannot be fetched; the message says which file to put where instead.
    """
    if name not in PUBLIC:
        if name in bundled_files():
            raise ValueError(f"{name} is bundled: it is at {bundled_files()[name]} already")
        raise unknown_name(name, PUBLIC)
    file = cached_file(name)
    problem = None
    if not force and file.is_file():
        problem = problem_of(file, is_thorough=False)
        if problem is None:
            return file
        logger.warning("%s; it is downloaded again", problem)
    url = hub_address(REPOSITORY, PUBLIC[name])
    by_hand = f"fetch {url} on a machine with network and put it at {file}"
    if is_offline():
        why = problem or f"{name} is not on this machine"
        raise HubError(f"{why} and HF_HUB_OFFLINE is set; unset it, or {by_hand}")
    with replacing(file) as part:
        try:
            remote = fetch(url, part, patience=patience or Patience(), is_hub=True, on_progress=on_progress)
        except DownloadError as error:
            raise HubError(f"{name}: {error}; check the network, or {by_hand}") from error
        # Before the file: if it ends here, the record speaks of a file that is missing or has another hash.
        write_record(file, part, commit=remote.commit, etag=remote.etag, url=url)
    return file
