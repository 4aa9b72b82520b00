"""The order of the rooms: which may import which, without circles, and that importing does nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import symtable
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import latentite

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "latentite"

ORDER = """
    latentite elements
    base lattice
    crystal_arrays
    crystal
    formulas
    data diffusion
    symmetry
    nn
    objectives
    checkpoint
    interop
    hub
    models
    energy match
    metrics
    draw
    rewards
    generators
    sampling
    training
    predictor rl
    stages
    config
    evaluation generation
    demo
    commands
    cli
    __main__
    scripts
"""
"""Rooms of the package, lower ones first: a file imports from its own room and from lines above, never from another
room of its line. `latentite` is `latentite/__init__.py`; `scripts` are the files beside the package in `src`."""

RANK = {room: rank for rank, line in enumerate(ORDER.split("\n")) for room in line.split()}

ONLY_IN = {
    "lightning": {"training", "rl", "predictor"},
    "pytorch_lightning": set[str](),
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli", "interop"},
}
"""Third-party packages that only these rooms may import."""


def modules() -> dict[str, Path]:
    """Every file of the package by dotted name, and every script beside it as `scripts.NAME`."""
    package = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        package[".".join(["latentite", *parts]).removesuffix(".__init__")] = path
    return package | {f"scripts.{path.stem}": path for path in sorted((ROOT / "src").glob("*.py"))}


def room_of(name: str) -> str:
    """The room of a module: the part after `latentite.`, `latentite` itself, or `scripts`."""
    first, _, rest = name.partition(".")
    return rest.split(".")[0] if first == "latentite" and rest else first


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


@cache
def all_imports() -> dict[str, list[tuple[int, str]]]:
    """Of every module what `imports` finds; not when tests are collected, because it takes seconds."""
    return {name: list(imports(name, path, set(MODULES))) for name, path in MODULES.items()}


def place(name: str, line: int) -> str:
    """Where an import stands, as editors open it."""
    return f"{MODULES[name].relative_to(ROOT)}:{line}"


def test_every_room_has_a_place_in_the_order_and_every_place_a_room() -> None:
    assert sorted({room_of(name) for name in MODULES} ^ RANK.keys()) == []


def test_rooms_import_only_from_lower_rooms() -> None:
    wrong = [
        f"{place(name, line)} imports {target}"
        for name, targets in all_imports().items()
        for line, target in targets
        if target.split(".")[0] == "latentite"
        and room_of(target) != room_of(name)
        and RANK[room_of(target)] >= RANK[room_of(name)]
    ]
    assert wrong == [], "\n".join(wrong)


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Circles of imports, each as names of which every one imports the next and the last is the first; none for none.

    Each is the next one that is left when the last import of those before it is taken out.
    """
    left, found = {name: set(targets) for name, targets in imported.items()}, []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]
            found.append(circle)
            left[circle[-2]].discard(circle[-1])
        else:
            return found


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count: they only hide a circle."""
    inside = {
        name: {target for _, target in targets if target in MODULES and target != name}
        for name, targets in all_imports().items()
    }
    lines = {(name, target): line for name, targets in all_imports().items() for line, target in targets}
    told = [
        "a circle of imports:\n"
        + "\n".join(
            f"  {place(name, lines[name, target])} imports {target}" for name, target in pairwise(circle)
        )
        for circle in circles(inside)
    ]
    assert told == [], "\n".join(told)


def test_circles_are_told_name_by_name() -> None:
    assert circles({"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}) == []
    [circle] = circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert sorted(circle[1:]) == ["a", "b", "c"]
    assert circle[0] == circle[-1]
    assert (circle[0], circle[1]) in {("a", "b"), ("b", "c"), ("c", "a")}


def test_lightning_and_hydra_are_left_to_their_rooms() -> None:
    wrong = [
        f"{place(name, line)} imports {target}"
        for name, targets in all_imports().items()
        for line, target in targets
        if room_of(name) not in ONLY_IN.get(target.split(".")[0], {room_of(name)})
    ]
    assert wrong == [], "\n".join(wrong)


def test_an_import_inside_a_function_counts(tmp_path: Path) -> None:
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
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(home.parent), str(ROOT / "src")]),
        "CUDA_VISIBLE_DEVICES": "",
    }
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
    names = [name for name in MODULES if not name.startswith("scripts.")]
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


def bound_names(path: Path) -> set[str]:
    """Names that a file binds at its top level: what can be imported from it."""
    symbols = symtable.symtable(path.read_text(encoding="utf-8"), str(path), "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def test_every_name_that_code_takes_from_the_package_exists() -> None:
    """mypy takes a deleted module for one without types, and an import inside a function fails only when it runs."""
    known = {name: bound_names(path) for name, path in MODULES.items()}
    known["latentite"] |= latentite._PUBLIC.keys()
    folders = ("src", "tests", "examples", "benchmarks", "tools")
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {alias.name} from {node.module}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("latentite.")
        for alias in node.names
        if f"{node.module}.{alias.name}" not in known
        and alias.name not in known.get(node.module or "", set())
    ]
    assert missing == [], "\n".join(missing)


def test_names_that_a_file_binds_are_those_of_its_top_level(tmp_path: Path) -> None:
    path = tmp_path / "culprit.py"
    path.write_text(
        "from a import b as c\nif c:\n    D: int = 1\ndef e(f):\n    g = f\nh()\n", encoding="utf-8"
    )
    assert bound_names(path) == {"c", "D", "e"}
