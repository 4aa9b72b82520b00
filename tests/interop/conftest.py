"""The reference files, and a hub on the loopback device that serves whatever a test gives it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from latentite import hub


@pytest.fixture(scope="session")
def references() -> Path:
    """Folder of the reference files (`LATENTITE_INTEROP_DIR`, else `../shared/interop`); skips where there is none."""
    default = Path(__file__).parents[3] / "shared" / "interop"
    folder = Path(os.environ.get("LATENTITE_INTEROP_DIR", default))
    if not (folder / "ref_in.safetensors").is_file():
        pytest.skip(f"no reference files in {folder}; set LATENTITE_INTEROP_DIR to run this test")
    return folder


@pytest.fixture
def served(serve_as_hub: Callable[[type[BaseHTTPRequestHandler]], str]) -> dict[str, Path]:
    """Name of a public checkpoint -> file that the hub serves for it; the cache is empty at first."""
    files: dict[str, Path] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Silent."""

        def do_GET(self) -> None:
            start = f"/{hub.REPOSITORY}/resolve/main/"
            known = {start + hub.PUBLIC[name]: path for name, path in files.items()}
            if self.path not in known:
                self.send_error(404)
                return
            content = known[self.path].read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    serve_as_hub(Handler)
    return files


@pytest.fixture
def cache(own_cache: Path) -> Path:
    """A cache of its own, for tests without network."""
    return own_cache
