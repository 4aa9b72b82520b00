"""The lowest versions that pyproject.toml declares are those that `.ci/lowest` installs and tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DECLARED = [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]


def pins(name: str) -> dict[str, str]:
    """The versions that a file of constraints pins, by canonical name."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line]
    found: dict[str, str] = {canonicalize_name(package): version for package, version in pairs}
    assert len(found) == len(pairs), f"{name} pins a package twice"
    return found


def test_a_dependency_declares_a_floor_and_nothing_else() -> None:
    """What has no floor is installed at any version, so no run could say that the lowest one works."""
    assert [text for text in DECLARED if not re.fullmatch(r"[\w-]+>=[\d.]+", text)] == []


def test_the_lowest_constraints_are_the_declared_floors() -> None:
    """`lightning>=2.5` was declared while every training called an argument that 2.6 brought; so was pymatgen
    2025.10, which lacks modules that are imported. A floor now counts only with the pin that `.ci/lowest` tests."""
    floors = {tuple(text.split(">=")) for text in DECLARED}
    expected = {canonicalize_name(package): version for package, version in floors}
    assert len(expected) == len(floors), "pyproject.toml declares two floors for one package"
    assert pins("constraints-lowest.txt") == expected


def test_the_tested_constraints_satisfy_the_floors() -> None:
    tested = pins("constraints.txt")
    for text in DECLARED:
        requirement = Requirement(text)
        version = tested.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version, prereleases=True), (text, version)


def test_what_a_contributor_installs_is_pinned() -> None:
    names = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]}
    assert sorted(names - pins("constraints.txt").keys()) == []


def test_a_contributor_installs_what_ci_claims_to_test() -> None:
    """Without them the tests of energies, dispersion, HDF5 files and flows are skipped, and the run is green."""
    for extra in ("energy", "dispersion", "hdf5", "flow"):
        assert set(EXTRAS[extra]) <= set(EXTRAS["dev"]), extra


def test_the_tools_of_style_and_types_are_those_of_the_tested_constraints() -> None:
    """Only `.ci/run` runs them, so no lower version is known to agree with it (ruff 0.8 has other rules)."""
    for tool in ("mypy", "pandas-stubs", "ruff", "types-pyyaml"):
        assert pins("constraints-lowest.txt")[tool] == pins("constraints.txt")[tool], tool
