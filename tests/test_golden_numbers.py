"""What may not change while code moves: losses of every stage, samples of the bundled models, an evaluation.

CONTRIBUTING.md says what a failure means, and when the numbers may be renewed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from runs import RUNS, differences, golden

SHOWN = 20


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_its_golden_numbers(name, tmp_path):
    found = differences(name, tmp_path)
    more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    assert not found, "\n".join(
        [
            f"{len(found)} golden numbers moved ({golden(name).name}); CONTRIBUTING.md says when that is allowed",
            *found[:SHOWN],
            *more,
        ]
    )


def test_every_golden_file_belongs_to_a_run():
    assert {path.stem for path in golden("any").parent.iterdir()} == set(RUNS)
