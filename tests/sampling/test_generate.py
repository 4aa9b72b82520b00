"""`latentite sample` and `latentite.generate`: options in, files out, mistakes refused, kills survived."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import ase.io
import pytest
import torch
from pymatgen.core import Composition, Structure
from test_run_folder import contents
from tiny_checkpoint import write_checkpoint
from tiny_ldm import ALL_CONDITIONS, FLOW, NUM_ATOMS

import latentite
from known_crystals import rock_salt
from latentite import cli
from latentite.base.options import typed
from latentite.base.plain import names, numbers
from latentite.commands.sample import OF_GENERATORS
from latentite.data.readers.checks import Limits
from latentite.data.readers.rows import Row, read
from latentite.generation import GenerateResult, generate
from latentite.generators.latent.options import LatentOptions, parse_guidance
from latentite.generators.table import GENERATORS
from latentite.sampling.options import GenerateConfig, parse_shard, read_formulas

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional DDPM."""
    return write_checkpoint(tmp_path_factory.mktemp("ddpm") / "last.ckpt")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPM with conditions."""
    return write_checkpoint(tmp_path_factory.mktemp("cond") / "last.ckpt", conditions=ALL_CONDITIONS)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow."""
    return write_checkpoint(tmp_path_factory.mktemp("flow") / "last.ckpt", diffusion=FLOW)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sample(*arguments: object) -> int:
    """Run the command; texts are taken apart into words."""
    return cli.main(["sample", *words(*arguments)])


def words(*arguments: object) -> list[str]:
    return [word for argument in arguments for word in str(argument).split()]


def test_the_command_writes_what_it_says(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = "--num-samples 80 --steps 4 --batch-size 16 --format cif,extxyz,json --num-atoms 2:6"
    code = sample("--ckpt", ckpt, options, "--out", out)
    assert code == 0
    rows = table(out / "samples.csv")
    assert [int(row["index"]) for row in rows] == list(range(80))
    assert {int(row["num_atoms"]) for row in rows} <= {2, 3, 4, 5, 6}
    rejected = table(out / "rejected.csv")
    assert rejected, "the tiny model is meant to make some that cannot be used"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"asked 80, written 80, {len(rejected)} replaced (")
    assert lines[0].endswith("0 failed")
    assert "requests verified: 80 of 80 written crystals" in lines
    frames = ase.io.read(out / "structures.extxyz", index=":")
    assert [frame.info["index"] for frame in frames] == list(range(80))
    ours = [
        list(read(out / name, limits=Limits())) for name in ("cifs", "structures.extxyz", "structures.jsonl")
    ]
    for row, frame, *found in zip(rows, frames, *ours, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure.from_file(out / row["file"])
        assert structure.composition.reduced_formula == row["formula"] == frame.info["formula"]
        assert len(structure) == int(row["num_atoms"])
        for item in found:
            assert isinstance(item, Row)
            assert item.atomic_numbers.tolist() == frame.numbers.tolist()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint"]["sha256"]
    assert manifest["settings"]["seed"] == 0
    assert manifest["settings"]["sampler"] == "ddim"


def test_the_package_the_module_and_the_command_are_the_same(ckpt: Path, tmp_path: Path) -> None:
    options = {"num_samples": 12, "steps": 3, "seed": 5}
    called = latentite.generate(ckpt, **options)
    assert isinstance(called, GenerateResult)
    result = generate(ckpt, out=tmp_path / "a", **options)
    assert result.counts.written == called.counts.written == 12
    assert called.crystals is not None
    assert (
        sample("--ckpt", ckpt, "--num-samples", 12, "--steps", 3, "--seed", 5, "--out", tmp_path / "b") == 0
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    formulas = [row["formula"] for row in table(tmp_path / "a" / "samples.csv")]
    assert formulas == [s.composition.reduced_formula for s in called.crystals.to_structures()]
    done = subprocess.run(
        [sys.executable, ROOT / "src" / "sample.py", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "--num-atoms-distribution" in done.stdout
    code = "import latentite, latentite.generation; print(callable(latentite.generate))"
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert again.stdout.strip() == "True"


def test_every_option_of_the_command_is_an_option_of_the_function() -> None:
    parser = cli.build_parser("sample")
    arguments = "--ckpt a --out b --num-samples 1 --batch-size 2 --seed 3 --sampler ddim --steps 4 --eta 0.5"
    arguments += " --guidance 1.5 --conditions band_gap=2 --num-atoms 8:20 --num-atoms-distribution train"
    arguments += (
        " --formula NaCl --formula LiFePO4 --formula-units 1,2 --elements-allowed Li --elements-required Li"
    )
    arguments += (
        " --elements-forbidden O --init x.cif --strength 0.3 --fix-sites 0 --fix-species Li --format cif"
    )
    arguments += (
        " --trajectory --device cpu --precision bf16 --shard 1/2 --resume --no-replace --max-attempts 5"
    )
    arguments += " --weights ema --noise-scale 0.5 --min-distance-scaled 0.5"
    found = parser.parse_args(["sample", *arguments.split()])
    assert set(typed(GenerateConfig, found)) == set(GenerateConfig.__dataclass_fields__)
    assert set(typed(LatentOptions, found)) == set(LatentOptions.__dataclass_fields__)
    assert typed(GenerateConfig, found)["formula"] == ("NaCl", "LiFePO4")
    assert typed(LatentOptions, found)["eta"] == 0.5
    assert GenerateConfig(ckpt="x").format == ("cif", "extxyz")


def test_the_command_offers_the_options_of_every_generator() -> None:
    assert [kind.options for kind in GENERATORS.values()] == list(OF_GENERATORS)


def test_formulas_come_out_exactly_and_are_recounted(
    conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "formulas.txt").write_text("NaCl  # rock salt\n\nLi2O\n")
    out = tmp_path / "out"
    options = (
        f"--formula LiCoO2 --formula {tmp_path}/formulas.txt --formula-units 1,2 --num-samples 10 --steps 3"
    )
    code = sample("--ckpt", conditional, options, "--out", out)
    assert code == 0
    assert "requests verified: 30 of 30 written crystals" in capsys.readouterr().out
    rows = table(out / "samples.csv")
    wanted = ["LiCoO2"] * 10 + ["NaCl"] * 10 + ["Li2O"] * 10
    for row, formula in zip(rows, wanted, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            composition = Structure.from_file(out / row["file"]).composition
        units = 2 if row["ask"].endswith(" x 2") else 1
        assert composition == Composition(formula) * units
        assert row["ask"].removesuffix(" x 2") == formula
        assert "composition=" in row["conditions"]
    assert {row["ask"] for row in rows[:10]} == {"LiCoO2", "LiCoO2 x 2"}


def test_conditions_are_written_as_they_were_asked(conditional: Path, tmp_path: Path) -> None:
    asked = "band_gap=2.5,chemical_system=O-Li-Fe,spacegroup=225"
    scales = "band_gap=2,chemical_system=1,spacegroup=1.5"
    generate(conditional, conditions=asked, guidance=scales, num_samples=4, steps=2, out=tmp_path)
    frame = ase.io.read(tmp_path / "structures.extxyz", index=0)
    assert frame.info["conditions"] == "band_gap=2.5,chemical_system=Li-O-Fe,spacegroup=225"
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["guidance"]["spacegroup"] == 1.5


def test_elements_can_be_ruled(ckpt: Path) -> None:
    result = generate(ckpt, elements_allowed="Li,O", elements_required=["O"], num_samples=20, steps=2)
    assert result.crystals is not None
    assert result.counts.verified == result.counts.written == 20
    assert set(result.crystals.atomic_numbers.tolist()) <= {3, 8}


def test_shards_together_are_the_whole_run_byte_for_byte(ckpt: Path, tmp_path: Path) -> None:
    options = {"num_samples": 150, "steps": 3, "batch_size": 16}
    generate(ckpt, out=tmp_path / "whole", **options)
    for number in (1, 2, 3):
        generate(ckpt, out=tmp_path / str(number), shard=f"{number}/3", **options)
    cifs = [{p.name: p.read_bytes() for p in (tmp_path / str(n) / "cifs").iterdir()} for n in (1, 2, 3)]
    assert all(cifs)
    together = {name: text for part in cifs for name, text in part.items()}
    assert len(together) == sum(map(len, cifs))
    assert together == {path.name: path.read_bytes() for path in (tmp_path / "whole" / "cifs").iterdir()}
    frames = b"".join((tmp_path / str(n) / "structures.extxyz").read_bytes() for n in (1, 2, 3))
    assert frames == (tmp_path / "whole" / "structures.extxyz").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_crystal_is_the_same_for_every_batch_size(ckpt: Path, batch_size: int) -> None:
    """The plan and the noise are exactly the same; the sums in the network are within rounding."""
    one, other = (generate(ckpt, num_samples=40, steps=3, batch_size=size) for size in (64, batch_size))
    assert one.crystals is not None
    assert other.crystals is not None
    assert one.jobs is not None
    assert other.jobs is not None
    assert one.jobs.attempts.equal(other.jobs.attempts)
    assert one.crystals.atomic_numbers.equal(other.crystals.atomic_numbers)
    torch.testing.assert_close(one.crystals.lattice, other.crystals.lattice, atol=1e-4, rtol=1e-4)
    difference = one.crystals.frac_coords - other.crystals.frac_coords
    assert (difference - difference.round()).abs().max() < 1e-4


def test_no_replace_keeps_the_raw_count(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("--ckpt", ckpt, "--num-samples", 60, "--steps", 3, "--out", tmp_path, "--no-replace") == 0
    rejected, written = table(tmp_path / "rejected.csv"), table(tmp_path / "samples.csv")
    assert len(rejected) + len(written) == 60
    assert rejected
    assert {row["attempts"] for row in written} == {"1"}
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"asked 60, written {len(written)}, 0 replaced, {len(rejected)} failed (")


def test_a_trajectory_has_every_state_and_ends_at_the_crystal(ckpt: Path, tmp_path: Path) -> None:
    generate(ckpt, num_samples=5, steps=3, trajectory=True, out=tmp_path)
    finals = ase.io.read(tmp_path / "structures.extxyz", index=":")
    for index, final in enumerate(finals):
        frames = ase.io.read(tmp_path / "trajectories" / f"{index:06d}.extxyz", index=":")
        assert [frame.info["state"] for frame in frames] == [0, 1, 2, 3]
        assert frames[-1].positions == pytest.approx(final.positions, abs=1e-6)
        assert frames[-1].symbols.get_chemical_formula() == final.symbols.get_chemical_formula()


def test_starting_from_a_structure_keeps_what_is_fixed(ckpt: Path, tmp_path: Path) -> None:
    structure = rock_salt("Na", "Cl", 5.64)
    structure.get_primitive_structure().to(filename=str(tmp_path / "nacl.cif"))
    out = tmp_path / "out"
    options = f"--init {tmp_path}/nacl.cif --strength 0.5 --fix-species Na --num-samples 6 --steps 4"
    code = sample("--ckpt", ckpt, options, "--out", out)
    assert code == 0
    rows = table(out / "samples.csv")
    assert all(int(row["num_atoms"]) == 2 and "Na" in row["formula"] for row in rows)
    assert all(float(row["fixed_deviation"]) >= 0.0 for row in rows)
    result = generate(ckpt, init=structure, strength=0.3, num_samples=3, steps=4)
    assert result.crystals is not None
    assert result.crystals.num_atoms.tolist() == [8, 8, 8]


MISTAKES = {
    "--num-samples 0": "num_samples must be at least 1, got 0",
    "--steps 21": "21",
    "--sampler heun": "sampler must be ddpm or ddim or dpm_solver for this ddpm model, got heun",
    "--sampler nonsense": "sampler must be one of ddpm, ddim",
    "--shard 0/4": "shard must be k/n with k from 1 to n",
    "--shard 5/4": "shard must be k/n with k from 1 to n",
    "--format cif,pdb": "format must be one of cif, extxyz, json, got pdb",
    "--device tpu": "device must be",
    "--precision fp8": "precision must be one of fp32, bf16, fp16, got fp8",
    "--guidance x": "guidance must be a number, or name=number",
    "--conditions band_gap=2": "condition band_gap must be one of the model's",
    "--num-atoms 20:8": "num_atoms must go upwards",
    "--num-atoms 8:40": "num_atoms must be at most 12",
    "--num-atoms 8 --formula NaCl": "num_atoms must not be given with formula or init",
    "--num-atoms-distribution sizes.csv --formula NaCl": "num_atoms_distribution must not be given with formula",
    "--guidance a=1,a=3": "guidance must be a number, or name=number",
    "--formula Xx": "formula",
    "--formula nothing.txt": "nothing.txt does not exist",
    "--formula NaCl --formula-units 1,x": "formula_units must be whole numbers",
    "--strength 0.3": "must be given together with init",
    "--init nothing.cif --strength 0.3": "nothing.cif",
    "--init nothing.cif": "strength must be given with init",
    "--elements-allowed Qq": "elements_allowed must name elements",
    "--weights best": "weights must be one of ema, raw, got best",
    "--weights ema": "no EMA weights",
    "--max-attempts 0": "max_attempts must be at least 1",
    "--eta -1": "eta must be",
    "--noise-scale -1": "noise_scale must be",
    "--noise-scale 0.5": "noise_scale must be 1 for sampler=ddim; only flow_sde has it, got 0.5",
    "--num-atoms-distribution nothing.csv": "num_atoms_distribution must be train or a file with counts, got nothing",
    "--seed -1": "seed must be 0 or more, got -1",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_ends_with_one_sentence_before_anything_is_written(
    ckpt: Path, tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("--ckpt", ckpt, "--steps", 3, *arguments.split(), "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert MISTAKES[arguments] in message
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_a_condition_would_overrule_is_refused(tmp_path: Path) -> None:
    """It was ignored: all crystals had the number of atoms of the condition."""
    told = write_checkpoint(tmp_path / "told.ckpt", conditions=(NUM_ATOMS,))
    (tmp_path / "sizes.csv").write_text("num_atoms,count\n6,1\n", encoding="utf-8")
    for option in ({"num_atoms": 8}, {"num_atoms_distribution": tmp_path / "sizes.csv"}):
        with pytest.raises(ValueError, match=f"^{next(iter(option))} must not be given with a condition"):
            generate(told, num_samples=1, steps=2, conditions="num_atoms=4", **option)
    result = generate(told, num_samples=3, steps=2, conditions="num_atoms=4")
    assert result.jobs is not None
    assert result.jobs.num_atoms.tolist() == [4, 4, 4]


def test_a_checkpoint_of_another_stage_and_no_checkpoint_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from checkpoint_files import lightning_file

    vae = lightning_file(tmp_path / "vae.ckpt")
    assert sample("--ckpt", vae, "--out", tmp_path / "out") == 2
    assert "expected a ldm checkpoint, got vae" in capsys.readouterr().err
    assert sample("--ckpt", tmp_path / "none.ckpt", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_a_flow_is_sampled_with_its_own_methods(flow: Path, tmp_path: Path) -> None:
    result = generate(flow, num_samples=6, steps=3, sampler="euler", out=tmp_path / "out")
    assert result.counts.done == 6
    with pytest.raises(
        ValueError, match="sampler must be euler or heun or flow_sde for this flow model, got ddim"
    ):
        generate(flow, sampler="ddim")


def test_resuming_with_another_option_names_it(ckpt: Path, tmp_path: Path) -> None:
    generate(ckpt, num_samples=8, steps=3, out=tmp_path)
    with pytest.raises(ValueError, match="seed was 0, got 1"):
        generate(ckpt, num_samples=8, steps=3, seed=1, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="add --resume"):
        generate(ckpt, num_samples=8, steps=3, out=tmp_path)
    assert generate(ckpt, num_samples=8, steps=3, out=tmp_path, resume=True).counts.written == 8
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["settings"].pop("noise_scale") == 1.0
    path.write_text(json.dumps(manifest))  # as a version wrote it that did not know the setting
    assert generate(ckpt, num_samples=8, steps=3, out=tmp_path, resume=True).counts.written == 8


def test_options_as_text() -> None:
    assert parse_guidance("a=1,b=2.5") == {"a": 1.0, "b": 2.5}
    assert parse_guidance("1.5") == parse_guidance(1.5) == 1.5
    assert parse_shard("2/8") == (2, 8)
    assert numbers("x", "1, 2,4") == numbers("x", [1, 2, 4]) == [1, 2, 4]
    assert numbers("x", 3) == [3]
    assert names(" Li, O ,") == ["Li", "O"]
    assert read_formulas("NaCl,LiFePO4") == ["NaCl", "LiFePO4"]


def test_killed_in_the_middle_and_resumed_the_bytes_are_those_of_an_uninterrupted_run(
    ckpt: Path, tmp_path: Path
) -> None:
    options = f"--ckpt {ckpt} --num-samples 256 --steps 8 --batch-size 8 --format cif,extxyz,json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert sample(options, "--out", tmp_path / "whole") == 0
    command = [sys.executable, "-m", "latentite", "sample", *words(options, "--out", tmp_path / "killed")]
    journal = tmp_path / "killed" / "journal.jsonl"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= 1:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was to be killed before its end"
    assert contents(tmp_path / "killed") != contents(tmp_path / "whole")
    assert sample(options, "--out", tmp_path / "killed", "--resume") == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    sessions = json.loads((tmp_path / "killed" / "manifest.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[1]["first"] in (64, 128, 192)
