"""The loopback hub as a fixture."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest
from loopback_hub import Handler, LoopbackHub


@pytest.fixture
def loopback(serve_as_hub: Callable[[type[BaseHTTPRequestHandler]], str]) -> LoopbackHub:
    state = LoopbackHub()
    state.address = serve_as_hub(type("BoundHandler", (Handler,), {"hub": state}))
    return state
