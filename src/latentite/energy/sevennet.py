"""7net-0 (SevenNet) as a potential, from the weights in its own wheel; never touches the network.

Park et al. 2024, J. Chem. Theory Comput. 20, 4857; trained on the energies of MPtrj as VASP gave them, without the
corrections of MP2020. It is the extra `sevennet`.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentite.base.files import sha256_file
from latentite.energy.ase_calculator import ASEPotential
from latentite.energy.potential import TheoryLevel

MODEL = "SevenNet_0__11Jul2024"
WEIGHTS = f"pretrained_potentials/{MODEL}/checkpoint_sevennet_0.pth"
THEORY = TheoryLevel(functional="PBE(+U)", is_corrected=False)
CUTOFF = 5.0
"""Å; of the model."""


def sevennet_potential() -> ASEPotential:
    """7net-0 of 11 July 2024 behind the protocol of `potential.py`, on the CPU.

    Raises:
        ImportError: when sevenn is not installed, or another version of it has other files.
    """
    spec = find_spec("sevenn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "7net-0 was asked for but sevenn cannot be imported; pip install 'latentite[sevennet]'"
        )
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS
    if not path.is_file():
        raise ImportError(
            f"sevenn {version('sevenn')} has no {WEIGHTS}; install a version that has it (0.13.0 does)"
        )
    calculator = _calculator(path)
    return ASEPotential(
        calculator,
        name="7net-0",
        version=f"{MODEL} (sevenn {version('sevenn')})",
        sha256=sha256_file(path),
        elements=frozenset(int(number) for number in calculator.type_map),
        theory=THEORY,
        cutoff=CUTOFF,
    )


def _calculator(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about accelerators that are not there
        from sevenn.calculator import SevenNetCalculator

        # sevenn unpickles its file, which comes with the package's own code and from nowhere else.
        return SevenNetCalculator(str(path), device="cpu")
