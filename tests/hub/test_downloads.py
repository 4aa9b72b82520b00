"""Downloads from a hub on the loopback device, with everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from loopback_hub import CONTENT, NAME, QUICK, Handler, LoopbackHub, files_in_cache

from latentite import hub
from latentite.hub import HubError, Patience


def test_a_public_name_is_downloaded_once_and_recorded(loopback: LoopbackHub, tmp_path: Path) -> None:
    path = hub.resolve(NAME, patience=QUICK)
    assert path.read_bytes() == CONTENT
    assert files_in_cache(tmp_path) == [f"{NAME}.ckpt", f"{NAME}.ckpt.json"]
    record = json.loads((path.parent / f"{NAME}.ckpt.json").read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest() == record["etag"]
    assert record["commit"] == "c" * 40
    num_requests = len(loopback.requests)
    assert hub.resolve(NAME, patience=QUICK) == path
    assert len(loopback.requests) == num_requests
    assert hub.verify(NAME) == record["sha256"]


def test_every_request_is_for_the_file(loopback: LoopbackHub) -> None:
    """No tokens, no telemetry: the address and the storage behind it are all that is asked for."""
    hub.download(NAME, patience=QUICK)
    resolve_path = f"/{hub.REPOSITORY}/resolve/main/{hub.PUBLIC[NAME]}"
    assert [path for path, _ in loopback.requests] == [resolve_path, "/storage"]


@pytest.mark.parametrize(
    "misdeeds", [["500"], ["503", "429"], ["silence"], ["damage"], ["silence", "damage"]]
)
def test_a_passing_failure_is_overcome(loopback: LoopbackHub, tmp_path: Path, misdeeds: list[str]) -> None:
    loopback.misdeeds = list(misdeeds)
    assert hub.download(NAME, patience=QUICK).read_bytes() == CONTENT
    assert loopback.misdeeds == []


@pytest.mark.parametrize("misdeed", ["break early", "stall"])
@pytest.mark.parametrize("is_large_file", [True, False])
def test_an_interrupted_download_continues_where_it_broke(
    loopback: LoopbackHub, misdeed: str, is_large_file: bool
) -> None:
    loopback.misdeeds = [misdeed] * 3  # more than `tries`, but each brings something new
    loopback.is_large_file = is_large_file
    # Long enough for a busy machine: only the stalls are to be given up, never an honest answer.
    patience = Patience(answer_s=30.0, read_s=1.0 if misdeed == "stall" else 30.0, tries=2, pause_s=0.01)
    assert hub.download(NAME, patience=patience).read_bytes() == CONTENT
    ranges = [asked for path, asked in loopback.requests if (path == "/storage") == is_large_file]
    assert ranges == [None] + [f"bytes={n}00000-" for n in (1, 2, 3)]


def test_a_server_without_ranges_starts_again(loopback: LoopbackHub) -> None:
    loopback.misdeeds = ["break early", "no ranges"]
    assert hub.download(NAME, patience=QUICK).read_bytes() == CONTENT


def test_a_download_that_always_breaks_at_the_same_place_ends(loopback: LoopbackHub, tmp_path: Path) -> None:
    loopback.is_large_file = False
    loopback.content = CONTENT[:50]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "send_content", _send_half_without_ranges)
        with pytest.raises(HubError, match="3 tries"):
            hub.download(NAME, patience=QUICK)
    assert files_in_cache(tmp_path) == []


def _send_half_without_ranges(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_hub_headers()
    handler.send_header("Content-Length", "50")
    handler.end_headers()
    handler.wfile.write(handler.hub.content[:25])


@pytest.mark.parametrize(
    ("misdeed", "message"),
    [
        ("silence", r"3 tries.*ReadTimeout|3 tries.*no answer within 0\.8 s"),
        ("500", "3 tries.*HTTP 500"),
        ("damage", "3 tries.*what came has sha256 .*, the hub says"),
    ],
)
def test_a_lasting_failure_is_clear_and_leaves_nothing(
    loopback: LoopbackHub, tmp_path: Path, misdeed: str, message: str
) -> None:
    loopback.misdeeds = [misdeed] * 9
    start = time.monotonic()
    with pytest.raises(HubError, match=message) as caught:
        hub.resolve(NAME, patience=QUICK)
    assert time.monotonic() - start < 30
    assert f"put it at {tmp_path / 'cache' / 'hub' / (NAME + '.ckpt')}" in str(caught.value)
    assert hub.PUBLIC[NAME] in str(caught.value)
    assert files_in_cache(tmp_path) == []


@pytest.mark.parametrize(
    ("misdeed", "message"),
    [
        ("404", "HTTP 404, there is no such file"),
        ("401", "HTTP 401"),
        ("login page", "not from a Hugging Face hub"),
    ],
)
def test_a_refusal_is_not_retried(loopback: LoopbackHub, misdeed: str, message: str) -> None:
    loopback.is_large_file = False
    loopback.misdeeds = [misdeed] * 9
    with pytest.raises(HubError, match=message):
        hub.download(NAME, patience=QUICK)
    assert len(loopback.requests) == 1


def test_a_hub_that_accepts_and_never_answers_is_given_up(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system accepts, and the connection stays silent; read_s alone would wait for a minute."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(HubError, match=r"no answer within 0\.3 s"):
            hub.download(NAME, patience=Patience(answer_s=0.3, read_s=60, tries=2, pause_s=0.01))
        assert time.monotonic() - start < 20  # not the minute of read_s


def test_nobody_listening_is_said(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="ConnectError"):
        hub.download(NAME, patience=QUICK)


def test_the_default_patience_gives_up_a_try_within_fifteen_seconds() -> None:
    assert Patience().answer_s <= 15
    assert Patience().read_s <= 15


def test_offline_fails_at_once_and_says_which_file_to_put_where(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
        hub.resolve(NAME)
    assert time.monotonic() - start < 10  # one try that waits takes 15 s
    place = tmp_path / "cache" / "hub" / f"{NAME}.ckpt"
    assert f"{hub.REPOSITORY}/resolve/main/{hub.PUBLIC[NAME]}" in str(caught.value)
    assert str(place) in str(caught.value)
    assert loopback.requests == []
    # and doing what the sentence says helps
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert hub.resolve(NAME) == place
    assert hub.verify(NAME) == hashlib.sha256(CONTENT).hexdigest()


def test_a_corrupted_cached_file_is_detected_and_fetched_again(loopback: LoopbackHub) -> None:
    path = hub.download(NAME, patience=QUICK)
    stat = path.stat()
    path.write_bytes(CONTENT[:-1] + b"!")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nothing but the content betrays it
    with pytest.raises(
        HubError, match=r"is damaged: sha256 must be .*; run `latentite hub download mp_20_vae"
    ):
        hub.verify(NAME)
    os.utime(path)
    assert hub.resolve(NAME, patience=QUICK).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(HubError, match="its size must be 512000 bytes, got 1000"):
        hub.verify(NAME)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(HubError, match="Git-LFS pointer"):
        hub.verify(NAME)
    assert hub.download(NAME, force=True, patience=QUICK).read_bytes() == CONTENT


def test_a_file_touched_but_unchanged_is_not_fetched_again(loopback: LoopbackHub) -> None:
    path = hub.download(NAME, patience=QUICK)
    num_requests = len(loopback.requests)
    os.utime(path)
    assert hub.resolve(NAME) == path
    assert len(loopback.requests) == num_requests


def test_a_failed_second_download_keeps_the_first(loopback: LoopbackHub) -> None:
    path = hub.download(NAME, patience=QUICK)
    loopback.misdeeds = ["break early", "500", "500", "500"]
    with pytest.raises(HubError):
        hub.download(NAME, force=True, patience=QUICK)
    assert path.read_bytes() == CONTENT
    hub.verify(NAME)


def test_two_downloads_at_once_do_no_harm(loopback: LoopbackHub, tmp_path: Path) -> None:
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(hub.download(NAME, force=True, patience=QUICK)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    hub.verify(NAME)
    assert hub.resolve(NAME).read_bytes() == CONTENT
    assert files_in_cache(tmp_path) == [f"{NAME}.ckpt", f"{NAME}.ckpt.json"]


def test_progress_reaches_the_total(loopback: LoopbackHub) -> None:
    seen: list[tuple[int, int | None]] = []
    hub.download(NAME, patience=QUICK, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_fresh_process_downloads_verifies_and_obeys_offline(loopback: LoopbackHub, tmp_path: Path) -> None:
    """huggingface_hub reads its endpoint and offline flag when it is imported, which ours must put off."""
    program = (
        "import sys; from latentite import hub\n"
        "assert 'huggingface_hub' not in sys.modules and 'torch' not in sys.modules\n"
        f"path = hub.resolve({NAME!r}); assert hub.verify({NAME!r})\n"
        "import os; os.environ['HF_HUB_OFFLINE'] = '1'; assert hub.resolve(path.stem) == path\n"
        "try: hub.resolve('alex_mp_20_vae')\n"
        "except hub.HubError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "alex_mp_20_vae is not on this machine and HF_HUB_OFFLINE is set" in done.stdout
    assert files_in_cache(tmp_path) == [f"{NAME}.ckpt", f"{NAME}.ckpt.json"]


UNREADABLE = [
    "",
    "{",
    "[" * 100_000,
    "[1, 2]",
    "null",
    "{}",
    '{"sha256": "0"}',
    "\x00\x01",
    '{"size": 6, "mtime_ns": 1}',
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_record_that_cannot_be_read_vouches_for_no_file(
    loopback: LoopbackHub, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside such a record any file was taken, and recorded as if someone had put it there."""
    path = hub.download(NAME, patience=QUICK)
    record = path.parent / f"{NAME}.ckpt.json"
    path.write_bytes(b"another file")
    record.write_text(text)
    with pytest.raises(
        HubError, match=r"ckpt\.json must be a JSON object with sha256.*is damaged \(remove it"
    ):
        hub.verify(NAME)
    assert record.read_text() == text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"is damaged .* and HF_HUB_OFFLINE is set; unset it, or fetch"):
        hub.resolve(NAME, patience=QUICK)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.resolve(NAME, patience=QUICK).read_bytes() == CONTENT  # fetched again
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_that_was_put_there_by_hand_is_taken_once_on_trust_and_said(
    loopback: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "hub" / f"{NAME}.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with caplog.at_level("WARNING"):
        assert hub.download(NAME, patience=QUICK) == path
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert f"has no record: it is taken as it is, sha256 {digest}, and checked from now on" in caplog.text
    assert loopback.requests == []
    caplog.clear()
    assert hub.verify(NAME) == digest
    assert caplog.records == []
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(HubError, match="is damaged: sha256 must be"):
        hub.verify(NAME)
