"""Half a minute of fuzzing, the same inputs in every run; and that the fuzzer sees what it is there to see.

More of it: `PYTHONPATH=tests python -m fuzz --count 10000 --seed 1` (CONTRIBUTING.md).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fuzz.case import ANY, Case, chance_of
from fuzz.cif_text import written
from fuzz.formats import FORMATS, cases
from fuzz.parent import Child
from fuzz.random_crystals import NUM_SETTINGS, random_crystal, setting, smallest_distance
from fuzz.same_crystal import difference, unlike
from fuzz.told import told_by_cif, told_by_poscar

COUNT = 300
"""Inputs of all formats together; some 20 s where a core is free."""


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """One process that reads all of them."""
    with Child() as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_no_input_is_read_wrongly_ends_in_a_traceback_hangs_or_touches_anything(
    child: Child, format: str
) -> None:
    total = sum(share for _, share in FORMATS.values())
    count = round(COUNT * FORMATS[format][1] / total)
    results = [child.judge(case) for case in cases(count, seed=0, formats=[format])]
    found = [
        f"{result.case.name} ({result.case.kind}): {result.findings[0]}"
        for result in results
        if result.findings
    ]
    assert not found, "\n".join(found)
    assert len(results) == count
    assert (
        sum(result.counts.get("accepted", 0) + result.counts.get("read", 0) for result in results)
        > count / 10
    )


def test_a_case_is_a_function_of_seed_format_and_index() -> None:
    for name, (maker, _) in FORMATS.items():
        if name in ("ase", "checkpoint"):  # their libraries write times or random names into files
            continue
        first, second = (maker(7, chance_of(3, name, 7)) for _ in range(2))
        assert (first.kind, first.to_json(), list(first.files)) == (
            second.kind,
            second.to_json(),
            list(second.files),
        )


def test_a_random_crystal_obeys_the_operations_of_its_setting() -> None:
    for index in range(30):
        crystal = random_crystal(chance_of(1, "crystal", index))
        numbers, coords, lattice = crystal.arrays
        assert smallest_distance(coords, lattice) > 1.2
        group = crystal.setting
        for rotation, shift in zip(group.rotations, group.translations, strict=True):
            images = coords @ rotation.T + shift
            apart = images[:, None] - coords[None]
            nearest = np.abs(apart - np.round(apart)).max(-1)
            assert (nearest.min(1) < 1e-4).all()
            assert (numbers[nearest.argmin(1)] == numbers).all()
    assert {setting(number).number for number in range(1, NUM_SETTINGS + 1)} == set(range(1, 231))


def test_the_same_crystal_in_another_cell_is_the_same_and_another_origin_choice_is_not() -> None:
    coords = np.array([[0.0, 0, 0], [0.25, 0.25, 0.25]])
    centres = np.array([[0.0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    whole = (coords[:, None] + centres).reshape(-1, 3), 3.57 * np.eye(3)
    primitive = coords @ np.eye(3) @ np.linalg.inv(centres[1:]), 3.57 * centres[1:]
    carbon = [(np.full(len(places), 6), places, lattice) for places, lattice in (whole, primitive)]
    assert difference(*carbon) is None
    assert difference(carbon[1], carbon[0]) is None
    shifted = (carbon[0][0], whole[0] + np.where(np.arange(8) < 4, 0.05, 0.0)[:, None], whole[1])
    assert difference(shifted, carbon[0]) == "another arrangement of the same atoms"
    denser = (carbon[0][0], whole[0], whole[1] * 0.99)
    assert "Å^3 per atom" in str(difference(denser, carbon[0]))
    silicon = (np.where(np.arange(8) < 4, 6, 14), *whole)
    assert "composition" in str(difference(silicon, carbon[0]))


def test_a_damaged_file_is_held_against_what_it_still_says_of_itself() -> None:
    told = 0
    for index in range(40):
        chance = chance_of(4, "told", index)
        crystal = random_crystal(chance)
        numbers, coords, lattice = crystal.arrays
        text = written(crystal, chance).text().encode()
        found = told_by_cif(text)
        if found is None:
            continue
        told += 1
        shares, volume = found
        assert unlike(crystal.arrays, shares, volume) is None
        assert unlike((np.append(numbers, 92), coords, lattice), shares, volume) is not None
        assert volume is None or unlike((numbers, coords, 1.01 * lattice), shares, volume) is not None
        assert told_by_cif(text + b"_chemical_formula_sum U1\n") is None  # which of the two is unknown
    assert told > 10
    lines = ["x", "2.0", "1 0 0", "0 2 0", "0 0 3", "Na_pv Cl", "1 3", "Direct", *["0 0 0"] * 4]
    assert told_by_poscar("\n".join(lines).encode()) == ({11: 0.25, 17: 0.75}, pytest.approx(12.0))
    lines[1] = "-24"
    assert told_by_poscar("\n".join(lines).encode()) == ({11: 0.25, 17: 0.75}, 6.0)
    lines[6] = "1 x"
    assert told_by_poscar("\n".join(lines).encode()) is None


WATCHED = """
import os, pickle, subprocess, sys
from pathlib import Path
from fuzz.guard import CANARY, Guard
root = Path(sys.argv[1])
(root / "out").mkdir(); (root / "outside").mkdir(); (root / "outside" / "secret").write_text("x")
guard = Guard()
def seen(act):
    with guard.watching([root / "out"], root / "outside") as events:
        try:
            act()
        except ImportError:
            pass
    return len(events)
assert seen(lambda: (root / "out" / "fine").write_text("x")) == 0
assert seen(lambda: (root / "fine").exists()) == 0
assert seen(lambda: (root / "out" / ".." / "beside").write_text("x")) == 1
assert seen(lambda: os.rename(root / "out" / "fine", root / "moved")) == 1
assert seen(lambda: (root / "outside" / "secret").read_text()) == 1
assert seen(lambda: os.mkdir(root / "made")) == 1
assert seen(lambda: subprocess.run(["true"])) >= 1
assert seen(lambda: os.system("true")) == 1
assert seen(lambda: pickle.loads(b"cbuiltins\\nset\\n.")) == 1
assert seen(lambda: __import__(CANARY)) == 1
"""


def test_the_guard_sees_writes_beside_the_folder_processes_and_pickles(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], env=_environment(), check=False)
    assert done.returncode == 0


def _environment() -> dict[str, str]:
    import os

    return {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("while True: pass", "death: a hang"),
        ("os.kill(os.getpid(), 11)", "death: SIGSEGV"),
        ("time.sleep(60)", "death: a hang without an end"),
        ("sys.exit(3)", "death: exit code 3"),
    ],
)
def test_a_child_that_hangs_or_dies_is_a_finding_and_the_next_case_has_another(act: str, said: str) -> None:
    script = (
        "import os, signal, sys, time\n"
        "print('\"ready\"', flush=True)\n"
        "sys.stdin.readline()\n"
        "signal.setitimer(signal.ITIMER_PROF, 0.3)\n"
        f"{act}\n"
    )
    with Child(command=[sys.executable, "-c", script], seconds=3.0) as child:
        for index in range(2):
            case = Case(format="cif", index=index, kind="x", source="x.cif", files={"x.cif": b""})
            [finding] = child.judge(case).findings
            assert finding.startswith(said)


def test_a_case_survives_its_way_to_the_child() -> None:
    case = next(cases(1, seed=0, formats=["csv"], first=3))
    back = Case.from_json(case.to_json())
    assert (back.kind, back.rows, back.labels, back.arguments) == (
        case.kind,
        case.rows,
        case.labels,
        case.arguments,
    )
    assert back.crystals.keys() == case.crystals.keys() != {ANY}
