"""What every test may use: run-time shape checks, deterministic hypothesis, small crystals, real data."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

# Threads of OpenMP sleep while they wait: on a busy machine spinning ones took a hundred times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A worker has one core, and so has what its tests start: every other thread would wait for another worker's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import known_skips
import shape_checks

# Shapes and dtypes in the annotations of arrays are checked at every call during the tests.
# The hook acts on modules that are imported later, so it comes before the first import of ours.
shape_checks.install()

from latentite.crystal import CrystalBatch  # noqa: E402
from latentite.crystal_arrays import CrystalArrays  # noqa: E402

# One thread: the tests' tensors are small, and on a busy machine threads mostly wait for each other.
torch.set_num_threads(1)

hypothesis.settings.register_profile("local", deadline=None, max_examples=30)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=30, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """In CI an unknown reason to skip fails the run."""
    known_skips.pytest_configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, whole: no worker begins a long test when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _rendering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made everywhere, but to pixels only where a test is marked `pictures`: half a second for each."""
    if request.node.get_closest_marker("pictures") is None:
        render = Figure.savefig

        def savefig(self: Figure, target: Path | BinaryIO, **options: Any) -> None:
            if options.get("format") == "png" and isinstance(target, Path):
                target.write_bytes(b"not rendered")
            else:
                render(self, target, **options)

        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """For tests of what our own code answers to arrays of a wrong shape, and for tracing, where sizes are symbols."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _data_dir() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("LATENTITE_DATA_DIR", root.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data (`LATENTITE_DATA_DIR`, else `../shared/data`); skips where there is none."""
    folder = _data_dir()
    if not (folder / "mp_20_biternary").is_dir():
        pytest.skip(f"no real data in {folder}; set LATENTITE_DATA_DIR to run this test")
    return folder


@pytest.fixture
def rocksalt() -> CrystalArrays:
    """NaCl, the conventional cell of eight atoms, a = 5.64 Å."""
    sodium = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    return CrystalArrays(
        np.array([11] * 4 + [17] * 4), np.concatenate([sodium, (sodium + 0.5) % 1.0]), 5.64 * np.eye(3)
    )


@pytest.fixture
def perovskite() -> CrystalArrays:
    """SrTiO3, five atoms, a = 3.905 Å."""
    coords = [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    return CrystalArrays(np.array([38, 22, 8, 8, 8]), np.array(coords), 3.905 * np.eye(3))


def random_crystals(count: int, *, seed: int = 0, max_atoms: int = 12) -> list[CrystalArrays]:
    """Triclinic cells of 1 to `max_atoms` atoms of random elements, 15 Å^3 per atom, none overlapping."""
    generator = np.random.default_rng(seed)
    crystals: list[CrystalArrays] = []
    while len(crystals) < count:
        num_atoms = int(generator.integers(1, max_atoms + 1))
        shape = np.eye(3) + 0.25 * generator.uniform(-1.0, 1.0, size=(3, 3))
        lattice = shape * (15.0 * num_atoms / abs(np.linalg.det(shape))) ** (1.0 / 3.0)
        coords = _spread(num_atoms, lattice, generator)
        if coords is not None:
            crystals.append(CrystalArrays(generator.integers(1, 90, size=num_atoms), coords, lattice))
    return crystals


def _spread(num_atoms: int, lattice: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """Uniform positions at least 1.2 Å from each other and from each other's images, or None."""
    images = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    placed: list[np.ndarray] = []
    for _ in range(200 * num_atoms):
        candidate = generator.uniform(size=3)
        near = [np.linalg.norm((candidate - other + images) @ lattice, axis=-1).min() for other in placed]
        if not near or min(near) > 1.2:
            placed.append(candidate)
        if len(placed) == num_atoms:
            return np.array(placed)
    return None


@pytest.fixture(scope="session")
def make_random_crystals() -> Callable[..., list[CrystalArrays]]:
    """`random_crystals`, for tests that want other numbers of them than the fixture `crystals` has."""
    return random_crystals


@pytest.fixture
def crystals() -> CrystalBatch:
    """Sixteen random crystals in one batch, the same in every run."""
    return CrystalBatch.from_arrays(random_crystals(16))


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache and no bundled checkpoints."""
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENTITE_CKPT_DIR", str(tmp_path / "ckpts"))
    return tmp_path / "cache"


@pytest.fixture
def serve_as_hub(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Makes the answers of a handler, on the loopback device, the hub; gives its address."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers: list[ThreadingHTTPServer] = []

    def serve(handler: type[BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        return address

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
