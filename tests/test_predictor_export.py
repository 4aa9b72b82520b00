"""Exported predictors: equal to the Python model at other sizes than the traced ones, and without training parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from latentite.base.plain import from_plain, to_plain
from latentite.checkpoint import CheckpointRecord, Stage, Weights
from latentite.checkpoint.record import DataCard
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.energy.dispersion import Dispersion, d3bj, dispersion_energy
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.predictor.export import export_predictor, plan_dispersion
from latentite.predictor.exported import SUFFIXES, load_exported
from latentite.predictor.predict import at_fidelity

SIZE = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
TARGETS = ["energy", "energy_per_atom", "band_gap"]


def make_predictor(**changes: object) -> tuple[PropertyPredictor, CheckpointRecord]:
    torch.manual_seed(0)
    values = {
        "vae": {"encoder": SIZE, "decoder": SIZE},
        "targets": TARGETS,
        "extents": {"energy": "total", "energy_per_atom": "per_atom"},
        "units": {"energy": "eV"},
        "fidelities": ["PBE", "HSE"],
        "ensemble": 2,
    }
    config = from_plain(PredictorConfig, values | changes)
    network = PropertyPredictor(config).eval()
    for parameter in network.parameters():  # zero at the start: the heads of the second fidelity
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert network.baselines is not None
    table = network.baselines.values
    table[:, :2, 1:90] = torch.randn(table[:, :2, 1:90].shape, dtype=torch.float64)
    table[1, 0, 26] = torch.nan
    if network.config.standardise:
        network.feature_mean.normal_()
        network.feature_std.uniform_(0.5, 2.0)
    network.mean.copy_(torch.tensor([1.0, -2.0, 0.5])[: len(config.targets)])
    network.std.copy_(torch.tensor([3.0, 0.2, 1.0])[: len(config.targets)])
    data = {"fidelities": {"PBE": {"dispersion": False}, "HSE": {"dispersion": None}}}
    record = CheckpointRecord(
        path=Path("predictor.ckpt"),
        stage=Stage.PREDICTOR,
        weights=Weights.RAW,
        config=to_plain(config),
        state={},
        data=DataCard.of(data),
        metrics={},
        sha256="0" * 64,
    )
    return network, record


@pytest.fixture
def atoms(make_random_crystals) -> list[Atoms]:
    """Cells of 1 to 12 atoms that are not canonical, without iron."""
    found = CrystalBatch.from_arrays(make_random_crystals(9, seed=4)).to_atoms()
    for one in found:
        one.numbers[one.numbers == 26] = 27
    return found


def expected(network: PropertyPredictor, atoms: list[Atoms], fidelity: str) -> np.ndarray:
    """[crystal target] of the predictor itself, packed, one batch."""
    arrays = [CrystalArrays(a.numbers, a.get_scaled_positions(wrap=False), np.asarray(a.cell)) for a in atoms]
    batch = at_fidelity(network, CrystalBatch.from_arrays(canonicalize_many(arrays)), fidelity)
    with torch.no_grad():
        return torch.stack([network.predict(batch)[name] for name in TARGETS], dim=1).double().numpy()


OTHERWISE = {"pooling": "attention", "fidelity_mode": "independent", "composition": True, "standardise": True}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file beside the predictor that it was written from."""

    network: PropertyPredictor
    card: dict[str, Any]
    path: Path


@pytest.fixture(scope="module")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Writes `make_predictor(**changes)` at HSE in a format, in a folder of its own; torch.export takes seconds."""

    @cache
    def write_once(format: str, changes: tuple[tuple[str, object], ...]) -> Exported:
        network, record = make_predictor(**dict(changes))
        path = tmp_path_factory.mktemp(format) / f"model{SUFFIXES[format]}"
        card = export_predictor(network, record, path, format=format, fidelity="HSE")
        return Exported(network=network, card=card, path=path)

    return lambda format, **changes: write_once(format, tuple(changes.items()))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("format", list(SUFFIXES))
@pytest.mark.parametrize("changes", [{}, OTHERWISE], ids=["plain", "otherwise"])
def test_every_format_equals_the_predictor_at_any_size(export_once, atoms, format, changes) -> None:
    made = export_once(format, **changes)
    model = load_exported(made.path)
    assert model.card == made.card
    wanted = expected(made.network, atoms, "HSE")
    for batch_size in (64, 1, 4):  # the trace had two crystals of three slots
        found = np.array([list(row.values()) for row in model.predict(atoms, batch_size=batch_size)])
        assert np.abs(found - wanted).max() < 1e-5
    assert model.predict(atoms[3]) == pytest.approx(dict(zip(TARGETS, wanted[3], strict=True)), abs=1e-5)
    other = expected(made.network, atoms, "PBE")
    assert np.abs(wanted - other).max() > 0.01  # the other fidelity is another model
    assert list(made.path.parent.iterdir()) == [made.path]


@pytest.mark.usefixtures("no_shape_checks")
def test_a_model_of_one_target_has_a_baseline_of_its_own(tmp_path, atoms) -> None:
    """With one target the model's table was a view of the predictor's, which safetensors refuses to write."""
    network, record = make_predictor(targets=["energy"], extents={"energy": "total"})
    assert network.baselines is not None
    before = network.baselines.values.clone()
    export_predictor(network, record, tmp_path / "m.safetensors", format="safetensors", fidelity="HSE")
    torch.testing.assert_close(network.baselines.values, before, equal_nan=True)
    arrays = [CrystalArrays(a.numbers, a.get_scaled_positions(wrap=False), np.asarray(a.cell)) for a in atoms]
    batch = at_fidelity(network, CrystalBatch.from_arrays(canonicalize_many(arrays)), "HSE")
    found = [row["energy"] for row in load_exported(tmp_path / "m.safetensors").predict(atoms)]
    assert found == pytest.approx(network.predict(batch)["energy"].tolist(), abs=1e-4)


ALONE = """
import sys
BLOCKED = sys.argv[3].split(",")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name in BLOCKED:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import json
from ase.io import read
from latentite.predictor.exported import load_exported
crystal = read(sys.argv[2])
print(json.dumps([load_exported(path).predict(crystal) for path in sys.argv[1].split(",")]))
"""
TRAINING = ["lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "latentite.training"]
NETWORKS = ["pymatgen", "einops", "safetensors", "rich", "latentite.nn", "latentite.crystal"]


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("formats", "blocked"),
    [
        # Weights alone need the networks that they belong to, the programs nothing of ours but the canonical form.
        (["safetensors"], TRAINING),
        (["pt2", "torchscript"], [*TRAINING, *NETWORKS]),
    ],
    ids=["weights", "programs"],
)
def test_a_model_runs_without_what_training_needs(tmp_path, export_once, atoms, formats, blocked) -> None:
    made = [export_once(format) for format in formats]
    crystal = tmp_path / "crystal.extxyz"
    write(crystal, atoms[5])
    paths = ",".join(str(one.path) for one in made)
    command = [sys.executable, "-c", ALONE, paths, str(crystal), ",".join(blocked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    wanted = expected(made[0].network, [atoms[5]], "HSE")[0]
    found = json.loads(done.stdout)
    assert len(found) == len(formats)
    for row in found:
        assert list(row.values()) == pytest.approx(wanted.tolist(), abs=1e-4)  # extxyz rounds


def test_what_a_model_cannot_predict_is_refused_by_name(tmp_path, atoms) -> None:
    network, record = make_predictor()
    export_predictor(network, record, tmp_path / "m.safetensors", format="safetensors", fidelity="HSE")
    model = load_exported(tmp_path / "m.safetensors")
    iron = Atoms("Fe", cell=3 * np.eye(3), pbc=True)
    with pytest.raises(
        ValueError, match=r"crystal 0 \(Fe\): the model has no baseline for Fe at fidelity HSE"
    ):
        model.predict(iron)
    with pytest.raises(ValueError, match="must be a crystal"):
        model.predict(Atoms("Cu"))
    with pytest.raises(ValueError, match="must have a cell with a volume"):
        model.predict(Atoms("Cu", cell=np.zeros((3, 3)), pbc=True))


def test_wrong_requests_and_files_are_refused(tmp_path) -> None:
    network, record = make_predictor()
    with pytest.raises(ValueError, match="fidelity must be one of PBE, HSE, got 'SCAN'"):
        export_predictor(network, record, tmp_path / "m.pt2", format="pt2", fidelity="SCAN")
    with pytest.raises(ValueError, match=r"got pt2 and m\.pt"):
        export_predictor(network, record, tmp_path / "m.pt", format="pt2")
    cspnet = {"vae": {"encoder": SIZE | {"kind": "cspnet"}, "decoder": SIZE}}
    with pytest.raises(ValueError, match="transformer encoder"):
        export_predictor(*make_predictor(**cspnet), tmp_path / "m.pt2", format="pt2")
    assert list(tmp_path.iterdir()) == []
    for suffix in SUFFIXES.values():
        (tmp_path / f"m{suffix}").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="must be a model written by"):
            load_exported(tmp_path / f"m{suffix}")
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        load_exported(tmp_path / "none.pt2")


def test_dispersion_is_refused_where_it_would_be_counted_twice_or_makes_no_sense() -> None:
    network, record = make_predictor()

    def plan(**changes):
        return plan_dispersion(network, record, **{"method": "pbe", "target": "energy", **changes})

    with pytest.raises(ValueError, match="nobody says whether the labels of HSE contain dispersion"):
        plan(fidelity="HSE")
    with pytest.raises(ValueError, match="D3 adds to total energies only, got band_gap"):
        plan(target="band_gap")
    with pytest.raises(ValueError, match="a target must be one of"):
        plan(target="stress")
    contained = {"fidelities": {"PBE": {"dispersion": True}}}
    with pytest.raises(ValueError, match="contain dispersion already"):
        plan_dispersion(
            network,
            replace(record, data=DataCard.of(contained)),
            method="pbe",
            target="energy",
            labels_have_none=True,
        )
    named, own = make_predictor(fidelities=["PBE-D3", "HSE"])
    with pytest.raises(ValueError, match="the labels of PBE-D3 contain dispersion already"):
        plan_dispersion(named, own, method="pbe", target="energy", labels_have_none=True)


def test_dispersion_needs_its_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dftd3", None)
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    with pytest.raises(ValueError, match=r"pip install 'latentite\[dispersion\]'"):
        d3bj("pbe")


def test_a_functional_is_named_exactly() -> None:
    pytest.importorskip("dftd3")
    # Grimme, Ehrlich & Goerigk 2011, table 2: PBE.
    assert d3bj("pbe").parameters == {
        "s6": 1.0, "s8": 0.7875, "a1": 0.4289, "a2": 4.4407, "alp": 14.0, "s9": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="got 'PBE'; did you mean pbe"):
        d3bj("PBE")


def test_dispersion_is_added_to_the_energy_per_atom_or_per_cell(tmp_path, atoms) -> None:
    pytest.importorskip("dftd3")
    network, record = make_predictor()
    crystal = atoms[5]
    energy = dispersion_energy(d3bj("pbe"), crystal)
    assert energy < 0
    assert dispersion_energy(d3bj("pbe"), crystal * (2, 1, 1)) == pytest.approx(2 * energy, rel=1e-6)
    plain, number = expected(network, [crystal], "PBE")[0], len(crystal)
    for column, target, share in ((0, "energy", energy), (1, "energy_per_atom", energy / number)):
        path = tmp_path / f"{target}.safetensors"
        plan = plan_dispersion(network, record, method="pbe", target=target)
        card = export_predictor(network, record, path, format="safetensors", dispersion=plan)
        assert "s8=0.7875" in Dispersion(**card["dispersion"]["d3bj"]).describe()
        found = load_exported(path).predict(crystal)
        assert found[target] == pytest.approx(plain[column] + share, abs=1e-5)
        others = [name for name in TARGETS if name != target]
        assert [found[name] for name in others] == pytest.approx(
            [plain[TARGETS.index(name)] for name in others], abs=1e-5
        )
