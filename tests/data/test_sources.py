"""Named datasets: found locally, downloaded whole from a loopback server, or refused in a clear sentence."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentite.base.download import DownloadError, Patience
from latentite.data import download_record, sources
from latentite.data.download_record import CHECKSUMS_VARIABLE
from latentite.data.sources import DATASETS, NamedDataset, resolve

QUICK = Patience(read_s=5.0, tries=3, pause_s=0.01)
ROWS = {"train": 3, "val": 2, "test": 1}


def table(count: int) -> bytes:
    """A CSV whose cells hold line breaks, as CIFs do."""
    return ("material_id,cif\n" + "".join(f'm{i},"data_{i}\nloop_\n x"\n' for i in range(count))).encode()


class Server:
    """A loopback web server: bodies by path, and a list of misdeeds to commit first."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.misdeeds: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
        self.etag = ""
        """Sent with every answer; ranges are served only with one."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        self.ranges.append(handler.headers.get("Range"))
        body = self.bodies.get(handler.path)
        misdeeds = self.misdeeds.get(handler.path, [])
        misdeed = misdeeds.pop(0) if misdeeds else ""
        if misdeed == "stall":
            time.sleep(5.0)
        if body is None or misdeed.isdigit():
            handler.send_error(int(misdeed or 404))
            return
        asked = handler.headers.get("Range") if self.etag else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if misdeed == "change":
            self.etag = '"another"'
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        handler.wfile.write(body[start : len(body) // 2] if misdeed == "truncate" else body[start:])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def served(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with a small `mp_20`, an empty cache, and no local data."""
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LATENTITE_DATA_DIR", raising=False)
    monkeypatch.delenv(CHECKSUMS_VARIABLE, raising=False)
    monkeypatch.setenv(sources.MIRROR_VARIABLE, server.address)
    monkeypatch.chdir(tmp_path)
    small = NamedDataset(summary="small", address="http://127.0.0.1:1/{name}/{file}", rows=ROWS)
    monkeypatch.setitem(DATASETS, "mp_20", small)
    for split, count in ROWS.items():
        server.bodies[f"/mp_20/{split}.csv"] = table(count)
    return server


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*")] if (tmp_path / "cache").exists() else []


def test_a_download_is_whole_recorded_and_done_once(served: Server, tmp_path: Path) -> None:
    folder = resolve("mp_20", patience=QUICK)
    assert folder == tmp_path / "cache" / "datasets" / "mp_20"
    for split, count in ROWS.items():
        assert (folder / f"{split}.csv").read_bytes() == table(count)
    record = json.loads((folder / "source.json").read_text())
    assert record["files"]["val.csv"] == {"rows": 2, "sha256": hashlib.sha256(table(2)).hexdigest()}
    assert record["addresses"][0] == f"{served.address}/mp_20/train.csv"
    assert resolve("mp_20", patience=QUICK) == folder
    assert len(served.requests) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mp_20"]  # no temporary folder is left


@pytest.mark.parametrize("misdeeds", [["500"], ["truncate"], ["503", "truncate"]])
def test_a_passing_failure_is_tried_again(served: Server, misdeeds: list[str]) -> None:
    served.misdeeds["/mp_20/val.csv"] = misdeeds
    folder = resolve("mp_20", patience=QUICK)
    assert (folder / "val.csv").read_bytes() == table(2)


@pytest.mark.parametrize(
    ("etag", "misdeeds", "ranges"),
    [
        ('"one"', ["truncate"], [None, "bytes=39-"]),
        (f'"{"a" * 64}"', ["truncate"], [None, "bytes=39-"]),  # no sha256, though it looks like one
        ('W/"one"', ["truncate"], [None, None]),  # the same meaning, not the same bytes
        ("", ["truncate"], [None, None]),
        ('"one"', ["truncate", "change"], [None, "bytes=39-", None]),
    ],
)
def test_a_broken_download_continues_only_with_the_same_file(
    served: Server, etag: str, misdeeds: list[str], ranges: list[str | None]
) -> None:
    served.etag = etag
    served.misdeeds["/mp_20/train.csv"] = misdeeds
    folder = resolve("mp_20", patience=QUICK)
    assert (folder / "train.csv").read_bytes() == table(3)
    assert served.ranges == [*ranges, None, None]


@pytest.mark.parametrize(
    ("misdeeds", "reason"),
    [(["truncate"] * 9, r"of 79 bytes came"), (["500"] * 9, "HTTP 500"), (["404"] * 9, "HTTP 404")],
)
def test_a_lasting_failure_leaves_nothing_and_says_what_to_do(
    served: Server, tmp_path: Path, misdeeds: list[str], reason: str
) -> None:
    served.misdeeds["/mp_20/train.csv"] = misdeeds
    with pytest.raises(DownloadError, match=reason) as caught:
        resolve("mp_20", patience=QUICK)
    message = str(caught.value)
    assert "train.csv, val.csv and test.csv" in message
    assert "data/mp_20" in message
    assert leftovers(tmp_path) == ["datasets"]


def test_a_server_that_accepts_and_never_answers_is_given_up(served: Server) -> None:
    served.misdeeds["/mp_20/train.csv"] = ["stall"]
    start = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        resolve("mp_20", patience=Patience(read_s=0.1, tries=1))
    assert time.monotonic() - start < 4.5


def test_a_wrong_number_of_rows_is_refused(served: Server, tmp_path: Path) -> None:
    served.bodies["/mp_20/test.csv"] = table(5)
    with pytest.raises(DownloadError, match=r"test\.csv that came must have 1 rows, got 5"):
        resolve("mp_20", patience=QUICK)
    assert leftovers(tmp_path) == ["datasets"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"),
        (b"", "empty file"),
    ],
)
def test_what_is_no_table_is_named(served: Server, body: bytes, name: str) -> None:
    served.bodies["/mp_20/train.csv"] = body
    with pytest.raises(DownloadError, match=name):
        resolve("mp_20", patience=QUICK)
    assert len(served.requests) == 1  # another try could not help


def test_an_unreachable_server_fails_with_the_files_to_provide(
    served: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(sources.MIRROR_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv("LATENTITE_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(DownloadError, match="mp_20 is not on this machine") as caught:
        resolve("mp_20", patience=QUICK)
    assert str(tmp_path / "mine" / "mp_20") in str(caught.value)


def test_a_zip_archive_is_unpacked_and_removed(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("inside/train.csv", table(3))
        members.writestr("../../val.csv", table(2))  # must not be written outside the folder
    served.bodies["/alex_mp_20/alex.zip"] = archive.getvalue()
    dataset = NamedDataset(summary="small", address="x", archive="alex.zip", rows={"train": 3, "val": 2})
    monkeypatch.setitem(DATASETS, "alex_mp_20", dataset)
    folder = resolve("alex_mp_20", patience=QUICK)
    assert sorted(path.name for path in folder.iterdir()) == ["source.json", "train.csv", "val.csv"]
    assert (folder / "val.csv").read_bytes() == table(2)
    served.bodies["/alex_mp_20/alex.zip"] = archive.getvalue()[:50]
    (folder / "train.csv").rename(folder.parent / "elsewhere")
    folder.rename(folder.parent / "away")
    with pytest.raises(DownloadError, match="must be a zip file"):
        resolve("alex_mp_20", patience=QUICK)


def test_local_folders_come_before_the_network_in_a_fixed_order(
    served: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for parent in ("given", "variable", "data"):
        (tmp_path / parent / "mp_20").mkdir(parents=True)
        (tmp_path / parent / "mp_20" / "train.csv.gz").write_bytes(b"x")
    given = tmp_path / "given"
    monkeypatch.setenv("LATENTITE_DATA_DIR", str(tmp_path / "variable"))
    assert resolve("mp_20", data_dir=given) == given / "mp_20"
    assert resolve("mp_20", data_dir=given / "mp_20") == given / "mp_20"
    assert resolve("mp_20") == tmp_path / "variable" / "mp_20"
    monkeypatch.delenv("LATENTITE_DATA_DIR")
    assert resolve("mp_20") == Path("data/mp_20")
    with pytest.raises(FileNotFoundError, match=r"data_dir must hold train\.csv"):
        resolve("mp_20", data_dir=tmp_path)
    assert not served.requests


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(ValueError, match="got 'mp20'; did you mean mp_20"):
        resolve("mp20")
    with pytest.raises(ValueError, match="take one of prototypes, mp_20"):
        resolve("quartz")


@pytest.mark.parametrize("name", ["mp_120", "alex_mp_20_bandgap"])
def test_a_dataset_without_address_says_where_its_files_belong(served: Server, name: str) -> None:
    with pytest.raises(DownloadError, match=rf"{name} is not on this machine; .*data/{name}"):
        resolve(name, patience=QUICK)
    assert not served.requests


def test_only_https_addresses_are_opened(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.MIRROR_VARIABLE, "file:///etc")
    with pytest.raises(DownloadError, match="must begin with http"):
        resolve("mp_20", patience=QUICK)


def test_every_dataset_can_be_had_or_says_how() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.is_shipped or dataset.address or dataset.made_from or dataset.advice, name
        assert bool(dataset.rows) == bool(dataset.address), name


def sums_file(tmp_path: Path, **others: str) -> Path:
    """Checksums of the small data set, as `sha256sum mp_20/*.csv` prints them."""
    sums = {split: hashlib.sha256(table(count)).hexdigest() for split, count in ROWS.items()} | others
    path = tmp_path / "sums.txt"
    path.write_text(
        "# mine\n\n" + "".join(f"{digest}  mp_20/{split}.csv\n" for split, digest in sums.items())
    )
    return path


def test_a_download_without_a_checksum_is_taken_on_trust_said_and_recorded(
    served: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        folder = resolve("mp_20", patience=QUICK)
    said = [record.message for record in caplog.records]
    record = json.loads((folder / "source.json").read_text())
    for split, count in ROWS.items():
        digest = hashlib.sha256(table(count)).hexdigest()
        assert record["downloads"][f"{split}.csv"] == digest
        assert any(f"{split}.csv is taken on trust" in line and digest in line for line in said)
    caplog.clear()
    assert resolve("mp_20", patience=QUICK) == folder
    assert caplog.records == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: _flip(folder / "val.csv"),
            r"val\.csv has changed since it was downloaded: its sha256 must be",
        ),
        (
            lambda folder: (folder / "test.csv").unlink(),
            r"test\.csv must be there, as source\.json says, and is not",
        ),
        (
            lambda folder: (folder / "source.json").unlink(),
            r"source\.json must say which files were downloaded",
        ),
        (lambda folder: (folder / "source.json").write_text("{"), r"source\.json must say which files"),
        (
            lambda folder: (folder / "source.json").write_text('{"files": ["a"]}'),
            r"source\.json must say which",
        ),
    ],
)
def test_a_download_that_is_no_longer_what_came_is_refused_on_each_use(
    served: Server, damage: Callable[[Path], object], words: str
) -> None:
    folder = resolve("mp_20", patience=QUICK)
    damage(folder)
    for _ in range(2):
        with pytest.raises(DownloadError, match=words) as caught:
            resolve("mp_20", patience=QUICK)
        assert f"remove the folder {folder} to download it again" in str(caught.value)
    shutil.rmtree(folder)
    assert resolve("mp_20", patience=QUICK) == folder


def test_a_file_that_was_exchanged_with_equal_size_and_time_is_noticed_by_the_next_process(
    served: Server,
) -> None:
    folder = resolve("mp_20", patience=QUICK)
    stat = (folder / "val.csv").stat()
    _flip(folder / "val.csv")
    os.utime(folder / "val.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    download_record._digest.cache_clear()  # as a new process has it
    with pytest.raises(DownloadError, match="has changed since it was downloaded"):
        resolve("mp_20", patience=QUICK)


def test_a_checksum_of_the_users_own_decides_what_is_taken(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CHECKSUMS_VARIABLE, str(sums_file(tmp_path, val="1" * 64)))
    came = hashlib.sha256(table(2)).hexdigest()
    with pytest.raises(
        DownloadError, match=rf"val\.csv must have sha256 {'1' * 64}, but what came has {came}"
    ):
        resolve("mp_20", patience=QUICK)
    assert len([path for path in served.requests if "val" in path]) == 1  # a further try would bring it again
    assert leftovers(tmp_path) == ["datasets"]
    sums_file(tmp_path)
    with caplog.at_level("WARNING"):
        folder = resolve("mp_20", patience=QUICK)
    assert "on trust" not in caplog.text
    assert resolve("mp_20", patience=QUICK) == folder


def test_an_earlier_download_is_held_against_a_checksum_that_came_later(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve("mp_20", patience=QUICK)
    monkeypatch.setenv(CHECKSUMS_VARIABLE, str(sums_file(tmp_path)))
    resolve("mp_20", patience=QUICK)
    sums_file(tmp_path, train="2" * 64)
    with pytest.raises(DownloadError, match=r"mp_20/train\.csv must have sha256 2222"):
        resolve("mp_20", patience=QUICK)


def test_the_checksum_of_an_archive_is_that_of_the_archive(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for split, count in ROWS.items():
            file.writestr(f"inside/{split}.csv", table(count))
    small = NamedDataset(summary="s", address="http://127.0.0.1:1/{name}/{file}", archive="a.zip", rows=ROWS)
    monkeypatch.setitem(DATASETS, "mp_20", small)
    served.bodies["/mp_20/a.zip"] = archive.getvalue()
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    (tmp_path / "sums.txt").write_text(f"{'3' * 64} *mp_20/a.zip\n")
    monkeypatch.setenv(CHECKSUMS_VARIABLE, str(tmp_path / "sums.txt"))
    with pytest.raises(DownloadError, match=rf"must have sha256 3333\d*, but what came has {digest}"):
        resolve("mp_20", patience=QUICK)
    (tmp_path / "sums.txt").write_text(f"{digest.upper()} *mp_20/a.zip\n")
    folder = resolve("mp_20", patience=QUICK)
    assert json.loads((folder / "source.json").read_text())["downloads"] == {"a.zip": digest}
    assert resolve("mp_20", patience=QUICK) == folder
    _flip(folder / "val.csv")
    with pytest.raises(DownloadError, match=r"val\.csv has changed"):
        resolve("mp_20", patience=QUICK)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "nonsense\n",
            r"line 1, must be written 'SHA256  mp_20/train\.csv', as sha256sum does, got 'nonsense'",
        ),
        (
            f"{'a' * 64}  mp_20/train.csv\n",
            r"must have a line for mp_20/val\.csv; add it, or unset the variable",
        ),
        (
            f"{'a' * 64}  mp_20/val.csv\n{'b' * 64}  mp_20/val.csv\n",
            r"line 2: mp_20/val\.csv must have one checksum",
        ),
        (None, "LATENTITE_DATASETS_SHA256 must name a file of checksums"),
    ],
)
def test_checksums_that_cannot_be_used_are_refused_before_anything_is_fetched(
    served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "sums.txt").write_text(text)
    monkeypatch.setenv(CHECKSUMS_VARIABLE, str(tmp_path / "sums.txt"))
    with pytest.raises(DownloadError, match=words):
        resolve("mp_20", patience=QUICK)
    assert served.requests == []
