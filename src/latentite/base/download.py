"""One file from the web or the Hugging Face hub, whole and verified, or a clear failure within seconds.

Time-outs, tries, continuing after a break and checks are the same for both; the hub's headers say more:
`X-Repo-Commit`, and for large files `X-Linked-ETag` (their sha256) and `X-Linked-Size`. huggingface_hub's
own download waits 396 s for a hub that accepts and never answers, and cannot be told otherwise; so only its
address rules and its session (proxies, certificates) are used. No token is sent. `hub/` and
`data/sources.py` say which file and where to.
"""

from __future__ import annotations

import http.client
import logging
import os
import queue
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentite.base.files import impostor, sha256_file

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRANSIENT_STATUS = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_REASONS = {401: ", it asks for a login", 403: ", access is refused", 404: ", there is no such file"}


class DownloadError(ValueError):
    """A file cannot be had: offline, unreachable, refused, or not what it should be."""


class _TransientError(Exception):
    """A failure that the next try may not meet again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Waiting times for a server. The defaults give up within 50 s on one that never answers."""

    answer_s: float = 15.0
    """Seconds for one try until its headers are there: name look-up, connection and redirects together."""
    read_s: float = 10.0
    """Seconds without a single byte before a try is given up."""
    tries: int = 3
    """Tries in a row that bring nothing new."""
    pause_s: float = 1.0
    """Seconds before the second try; doubled before each further one."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1, got {self.tries}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """The server's description of the file that it sent."""

    size: int | None
    """Bytes, where known."""
    etag: str = ""
    """The entity tag: while it stays the same, so does the content. Empty where none is told."""
    commit: str = ""
    """The hub's revision."""
    sha256: str | None = None
    """The hub's hash of the content, where it tells one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """A server's answer, still open, the same whichever library asked."""

    status: int
    headers: tuple[dict[str, str], ...]
    """Of the redirects on the way and, last, of the answer itself; names in lower case."""
    chunks: Iterator[bytes]
    """The content; raises `_TransientError` when the connection breaks."""
    close: Callable[[], None]


_Ask = Callable[[str, dict[str, str], float], _Answer]  # address, headers, seconds without a byte


def is_offline() -> bool:
    """True if HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to use the hub."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def hub_address(repository: str, path: str) -> str:
    """Address of a file on the hub's main branch, at HF_ENDPOINT if that is set."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, path, endpoint=(os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None)


def fetch(
    url: str,
    part: Path,
    *,
    patience: Patience,
    is_hub: bool = False,
    sha256: str | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> RemoteFile:
    """Downloads `url` into `part`, continuing after interruptions, and checks size and, where told, sha256.

    Args:
        url: an http or https address; from `hub_address` for the hub.
        part: a file of the caller's own, under a name that nobody takes for the finished file.
        patience: time-outs and tries.
        is_hub: ask with huggingface_hub's session, and insist on the hub's headers.
        sha256: what the content must be, where the caller knows it.
        on_progress: called with the bytes so far and the total (None while unknown).

    Raises:
        DownloadError: after the last try, or at once when another try could not help.
    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"an address must begin with http:// or https://, got {url}")
    ask, describe = (_hub_asker(), _describe_hub) if is_hub else (_ask_web, _describe_web)
    transfer = _Transfer(
        url=url,
        part=part,
        patience=patience,
        on_progress=on_progress,
        ask=ask,
        describe=describe,
        sha256=sha256,
    )
    return transfer.run()


# ------------------------------------------------------------------------------------------ the transfer


@dataclass(kw_only=True, slots=True)
class _Transfer:
    """One file on its way: what is there already, and what the server last said about it."""

    url: str
    part: Path
    patience: Patience
    on_progress: Callable[[int, int | None], None] | None
    ask: _Ask
    describe: Callable[[_Answer], RemoteFile]
    sha256: str | None
    remote: RemoteFile | None = None

    @property
    def num_bytes(self) -> int:
        """The part of the file that is here already."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> RemoteFile:
        """Tries until it is done, or until `patience.tries` tries in a row have brought nothing new."""
        furthest = failures = 0
        while True:
            try:
                return self._try_once()
            except _TransientError as error:
                reached = self.num_bytes
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= self.patience.tries:
                    raise DownloadError(
                        f"{self.url} could not be downloaded ({failures} tries): {error}"
                    ) from error
                pause = self.patience.pause_s * 2 ** (failures - 1)
                logger.warning("Download of %s: %s; trying again in %.3g s", self.url, error, pause)
                time.sleep(pause)

    def _try_once(self) -> RemoteFile:
        # Without an entity tag nobody knows whether the rest would be that of the same file.
        start = self.num_bytes if self.remote and self.remote.etag else 0
        # Uncompressed, so that sizes and ranges mean the file's own bytes.
        headers = {"user-agent": "latentite", "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        answer = _in_time(lambda: self.ask(self.url, headers, self.patience.read_s), self.patience.answer_s)
        try:
            _check_status(answer.status, self.url)
            remote = self.describe(answer)
            is_continued = start > 0 and answer.status == 206
            if is_continued and remote != self.remote:
                self.part.unlink()
                raise _TransientError("the file changed on the server meanwhile")
            self.remote = remote
            self._receive(answer, remote.size, start if is_continued else 0)
        finally:
            answer.close()
        self._check(remote)
        return remote

    def _receive(self, answer: _Answer, total: int | None, start: int) -> None:
        done = start
        with self.part.open("ab" if start else "wb") as file:
            try:
                for chunk in answer.chunks:
                    file.write(chunk)
                    done += len(chunk)
                    if self.on_progress is not None:
                        self.on_progress(done, total)
            except _TransientError as error:
                raise _TransientError(f"the connection broke after {done:,} bytes ({error})") from error

    def _check(self, remote: RemoteFile) -> None:
        if remote.size is not None and self.num_bytes < remote.size:
            raise _TransientError(f"only {self.num_bytes:,} of {remote.size:,} bytes came")
        if (other := impostor(self.part)) is not None:
            raise DownloadError(f"{self.url} gave {other}")
        digest = sha256_file(self.part) if remote.sha256 or self.sha256 else None
        if remote.sha256 is not None and digest != remote.sha256:
            self.part.unlink()
            raise _TransientError(f"what came has sha256 {digest}, the hub says {remote.sha256}")
        if remote.size is not None and self.num_bytes > remote.size:
            self.part.unlink()
            raise _TransientError(f"more than {remote.size:,} bytes came")
        if self.sha256 is not None and digest != self.sha256:
            self.part.unlink()
            if remote.size is None:  # perhaps not whole
                raise _TransientError(f"what came has sha256 {digest}, it must be {self.sha256}")
            raise DownloadError(f"{self.url} must have sha256 {self.sha256}, but what came has {digest}")


def _in_time(ask: Callable[[], _Answer], seconds: float) -> _Answer:
    """The answer, within `seconds` for certain.

    The libraries' time-outs begin anew for every address of the host and do not cover the name look-up; so
    the request runs in a thread of its own, and is abandoned there when time is up.
    """
    answers: queue.SimpleQueue[_Answer | Exception] = queue.SimpleQueue()
    is_abandoned = threading.Event()

    def work() -> None:
        try:
            answer = ask()
        except Exception as error:  # noqa: BLE001  # not handled here, but handed to the thread that waits
            answers.put(error)
            return
        answers.put(answer)
        if is_abandoned.is_set():
            answer.close()

    threading.Thread(target=work, daemon=True, name="latentite-download").start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        is_abandoned.set()
        raise _TransientError(f"no answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check_status(status: int, url: str) -> None:
    if status in _TRANSIENT_STATUS:
        raise _TransientError(f"the server answered HTTP {status}")
    if status not in (200, 206):
        raise DownloadError(f"{url} could not be downloaded: HTTP {status}{_REASONS.get(status, '')}")


def _announced_size(answer: _Answer) -> int | None:
    """Bytes of the whole file, from the headers of the answer itself."""
    headers = answer.headers[-1]
    if answer.status == 206:
        return _number(headers.get("content-range", "").rpartition("/")[2])
    return _number(headers.get("content-length"))


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# ------------------------------------------------------------------------------------ an ordinary server


def _ask_web(url: str, headers: dict[str, str], read_s: float) -> _Answer:
    request = urllib.request.Request(url, headers=headers)
    response: Any
    try:
        response = urllib.request.urlopen(request, timeout=read_s)
    except urllib.error.HTTPError as refusal:
        response = refusal  # an answer all the same
    except urllib.error.URLError as error:
        raise _TransientError(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _TransientError(_named(error)) from error

    def chunks() -> Iterator[bytes]:
        try:
            while chunk := response.read1(_CHUNK):
                yield chunk
        except (http.client.HTTPException, OSError) as error:
            raise _TransientError(_named(error)) from error

    return _Answer(
        status=response.status, headers=(_lower(response.headers),), chunks=chunks(), close=response.close
    )


def _describe_web(answer: _Answer) -> RemoteFile:
    etag = answer.headers[-1].get("etag", "")
    is_weak = etag.startswith("W/")  # it promises the same meaning, not the same bytes
    return RemoteFile(size=_announced_size(answer), etag="" if is_weak else etag.strip('"'))


# ----------------------------------------------------------------------------------- the Hugging Face hub


def _hub_asker() -> _Ask:
    from huggingface_hub import get_session

    session = get_session()
    broken = _request_error(session)

    def chunks_of(response: Any) -> Iterator[bytes]:
        try:
            yield from response.iter_bytes()  # a chunk size would hold back what came before a break
        except broken as error:
            raise _TransientError(_named(error)) from error

    def ask(url: str, headers: dict[str, str], read_s: float) -> _Answer:
        try:
            request = session.build_request("GET", url, headers=headers, timeout=read_s)
            response = session.send(request, stream=True)
        except broken as error:
            raise _TransientError(_named(error)) from error
        except ConnectionError as error:  # huggingface_hub read HF_HUB_OFFLINE when it was imported
            raise DownloadError(f"{url} could not be downloaded: {error}") from error
        chain = tuple(_lower(each.headers) for each in (*response.history, response))
        return _Answer(
            status=response.status_code, headers=chain, chunks=chunks_of(response), close=response.close
        )

    return ask


def _request_error(session: Any) -> type[Exception]:
    """The error class of the HTTP library behind a session: httpx for huggingface_hub 1, httpx2 for 2."""
    library = sys.modules[type(session).__module__.partition(".")[0]]
    error: type[Exception] = library.RequestError
    return error


def _describe_hub(answer: _Answer) -> RemoteFile:
    """Reads the hub's headers; redirects to storage carry them, so the first answer that has one counts."""

    def first(*names: str) -> str | None:
        return next((each[name] for each in answer.headers for name in names if name in each), None)

    commit, etag = first("x-repo-commit"), first("x-linked-etag", "etag")
    if commit is None or etag is None:
        raise DownloadError(
            "the answer is not from a Hugging Face hub (no commit or no ETag in it); "
            "check HF_ENDPOINT, the proxy and the network's login page"
        )
    etag = etag.removeprefix("W/").strip('"')
    linked = first("x-linked-size")
    return RemoteFile(
        size=_announced_size(answer) if linked is None else _number(linked),
        etag=etag,
        commit=commit,
        sha256=etag if _SHA256.fullmatch(etag) else None,  # the entity tag of files in large-file storage
    )
