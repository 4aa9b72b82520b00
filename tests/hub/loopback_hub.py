"""A hub on the loopback device that misbehaves on request; the tests of this folder download from it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from latentite import hub
from latentite.hub import Patience

NAME = "mp_20_vae"
QUICK = Patience(answer_s=0.8, read_s=0.8, tries=3, pause_s=0.01)
CONTENT = bytes(range(256)) * 2000  # 512,000 bytes


@dataclass
class LoopbackHub:
    """What the server serves, how it misbehaves, and what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    is_large_file: bool = True
    """Whether the entity tag is the sha256 and the file lies behind a redirect, as for large files."""
    misdeeds: list[str] = field(default_factory=list)
    """One per coming request for content; none left: well-behaved."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of every request."""


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        hub_state = self.hub
        hub_state.requests.append((self.path, self.headers.get("range")))
        expected = f"/{hub.REPOSITORY}/resolve/main/{hub.PUBLIC[NAME]}"
        if self.path == "/storage":
            self.send_content()
        elif self.path != expected:
            self.send_error(404)
        elif hub_state.is_large_file:
            self.send_response(302)
            self.send_hub_headers()
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(CONTENT)))
            self.send_header("Location", "/storage")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_content()

    def send_hub_headers(self) -> None:
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", '"' + "e" * 40 + '"')

    def send_content(self) -> None:
        misdeed = self.hub.misdeeds.pop(0) if self.hub.misdeeds else ""
        content = self.hub.content
        if misdeed == "silence":
            time.sleep(4)
            return
        if misdeed.isdigit():
            self.send_error(int(misdeed))
            return
        if misdeed == "damage":
            content = b"x" + content[1:]
        if misdeed == "login page":
            page = b"<html>Please log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        start = 0
        if (asked := self.headers.get("range")) and misdeed != "no ranges":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_hub_headers()
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = {"break early": start + 100_000, "stall": start + 100_000}.get(misdeed, len(content))
        self.wfile.write(content[start:end])
        if misdeed == "stall":
            self.wfile.flush()
            time.sleep(4)


def files_in_cache(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "hub").glob("*"))
