"""The order of the house: which module may import which, and that importing does nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "latentite"

ORDER = [
    {"", "elements", "base"},
    {"lattice"},
    {"crystal_arrays"},
    {"crystal"},
    {"formulas", "latent"},
    {"data", "nn", "diffusion"},
    {"objectives"},
    {"checkpoint"},
    {"interop"},
    {"hub"},
    {"models"},
    {"energy", "match"},
    {"metrics"},
    {"draw"},
    {"rewards"},
    {"generators"},
    {"sampling"},
    {"training"},
    {"rl", "predictor"},
    {"stages"},
    {"config"},
    {"generate", "evaluation"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
    {"train"},
]
"""Rooms from the ground floor upwards (DESIGN.md): a module imports from its own room and from lower floors,
never from another room of its floor. "" is `latentite/__init__.py`, "train" the scripts `src/train_*.py`."""

RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

ONLY_IN = {
    "lightning": {"training", "rl", "predictor"},
    "pytorch_lightning": set[str](),
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli", "interop"},
}
"""Third-party packages that only these rooms may import."""


def modules() -> dict[str, Path]:
    """Every module of the package and every training script, by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(["latentite", *parts]).removesuffix(".__init__")] = path
    return found | {path.stem: path for path in sorted((ROOT / "src").glob("train_*.py"))}


def room_of(name: str) -> str:
    """The room of a module: the part after `latentite.`, or "train"."""
    if name.startswith("train_"):
        return "train"
    return name.removeprefix("latentite").lstrip(".").split(".")[0]


def imports(name: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import of a file, those inside functions and `if`s included."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                keep = len(name.split(".")) - node.level + (1 if is_package else 0)
                base = ".".join([*name.split(".")[:keep], *([base] if base else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                # `from latentite import lattice` names a module; `import __version__` does not.
                yield node.lineno, target if target in known else base


MODULES = modules()


def test_every_module_has_a_room_in_the_order() -> None:
    homeless = sorted({room_of(name) for name in MODULES} - RANK.keys())
    assert homeless == [], "give these a place in ORDER (and in DESIGN.md)"


def test_modules_import_only_from_their_own_room_and_lower_floors() -> None:
    wrong = []
    for name, path in MODULES.items():
        room = room_of(name)
        for line, target in imports(name, path, set(MODULES)):
            other = room_of(target)
            if target.split(".")[0] == "latentite" and other != room and RANK[other] >= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert wrong == [], "\n".join(wrong)


def test_modules_leave_lightning_and_hydra_to_their_rooms() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        for line, target in imports(name, path, set(MODULES))
        if room_of(name) not in ONLY_IN.get(target.split(".")[0], {room_of(name)})
    ]
    assert wrong == [], "\n".join(wrong)


def test_the_order_is_enforced_where_an_import_hides_in_a_function(tmp_path: Path) -> None:
    path = tmp_path / "lattice.py"
    path.write_text(
        "def f():\n    from . import crystal\n    from .training.fit import fit\n", encoding="utf-8"
    )
    found = list(imports("latentite.lattice", path, {"latentite.crystal"}))
    assert found == [(2, "latentite.crystal"), (3, "latentite.training.fit")]


IMPORT_ALL = """
import importlib, os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.copyfile"}

def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system"}:
        raise RuntimeError(f"importing {current} did {event} {arguments!r}")
    if event in CHANGES or (event == "open" and arguments[2] & WRITING and str(arguments[0]) != os.devnull):
        raise RuntimeError(f"importing {current} wrote: {event} {arguments!r}")

# What others do when they are imported is theirs; our own modules are watched after them.
current = "libraries"
for library in sys.argv[1].split(","):
    importlib.import_module(library)
sys.addaudithook(watch)
for current in sys.argv[2].split(","):
    importlib.import_module(current)
"""


def import_all(names: list[str], home: Path, libraries: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in one fresh process, in an empty home, with everything but reading forbidden."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("LATENTITE", "HF_"))
    }
    # Caches of bytecode are Python's own, and that of fonts is matplotlib's.
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(home.parent / "fonts")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(home.parent), "CUDA_VISIBLE_DEVICES": ""}
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(libraries), ",".join(names)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_importing_any_module_opens_no_socket_writes_no_file_and_starts_no_process(tmp_path: Path) -> None:
    names = [name for name in MODULES if not name.startswith("train_")]
    libraries = ["torch", "numpy", "lightning.pytorch", "hydra", "rich.console", "huggingface_hub"]
    done = import_all(names, tmp_path / "home", libraries)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "open('x', 'w')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.mkdir('d')",
    ],
)
def test_the_watch_notices_a_module_that_does_such_things(tmp_path: Path, line: str) -> None:
    (tmp_path / "culprit.py").write_text(line + "\n", encoding="utf-8")
    done = import_all(["culprit"], tmp_path / "home", ["json"])
    assert done.returncode != 0
    assert "importing culprit" in done.stderr


def test_importing_the_package_itself_is_light() -> None:
    code = (
        "import sys, latentite; print(sorted({'torch', 'pymatgen', 'ase', 'lightning'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
