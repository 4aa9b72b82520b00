"""A crystal GPT through `latentite sample`: its options, what is asked of it, and the guarantees of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_run_folder import contents

from latentite import cli
from latentite.checkpoint import CRYSTAL_GPT, Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.generation import generate
from latentite.generators.gpt.options import space_groups, wyckoff_letters
from latentite.metrics.close_pairs import closest_scaled
from latentite.nn.gpt.network import GPTConfig, GPTNetwork
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.sampling.window import GeometryLimits, RefusalKind, geometry_refusals
from latentite.symmetry.positions import wyckoff_table

HISTOGRAM = [0, 3, 5, 2, 8, 4, 6, 1, 7, 0, 2, 0, 4]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained crystal GPT."""
    torch.manual_seed(0)
    size = GPTSize(d_model=32, num_layers=2, num_heads=2, dim_feedforward=64, dropout=0.0, num_mixtures=3)
    config = GPTConfig(size=size, limits=GPTLimits(max_atoms=12, max_orbits=12, max_elements=4))
    network = GPTNetwork(config)
    with torch.no_grad():
        network.gpt.element_volume.fill_(2.9)
        network.gpt.cell_std.fill_(0.15)
    data = {
        "splits": {"train": {"num_atoms_histogram": HISTOGRAM}},
        "elements": ["Li", "O", "Na", "Mg", "Cl", "Ti", "Fe", "Sr"],
    }
    payload = build_payload(stage=Stage.GPT, config=config, data=data, metrics={}, generator=CRYSTAL_GPT)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("gpt") / "gpt.ckpt"
    torch.save({"state_dict": state, "latentite": payload}, path)
    return path


def test_a_crystal_gpt_samples_into_a_folder_and_its_options_are_in_the_manifest(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = "--num-samples 20 --space-group 225,Fd-3m --temperature 0.9 --top-p 0.99 --min-distance-scaled 0.5"
    assert cli.main(["sample", "--ckpt", str(gpt), *text.split(), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("asked 20, written 20, ")
    assert any(line.startswith("usable: ") for line in lines)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint"]["generator"] == "gpt"
    assert manifest["settings"]["space_group"] == [225, 227]
    assert manifest["settings"]["min_distance_scaled"] == 0.5
    assert set(manifest["counts"]["first_refused"]) <= {kind.value for kind in RefusalKind}


def test_the_files_do_not_depend_on_shards_and_resumption(gpt: Path, tmp_path: Path) -> None:
    from latentite.sampling.merge import merge

    options = {"num_samples": 128, "batch_size": 16, "seed": 3, "space_group": "195:230"}
    generate(gpt, out=tmp_path / "whole", **options)
    for number in (1, 2):
        generate(gpt, out=tmp_path / str(number), shard=f"{number}/2", **options)
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_formulas_elements_and_sizes_are_exact_in_every_crystal(gpt: Path) -> None:
    formula = generate(gpt, num_samples=16, formula="SrTiO3,NaCl")
    assert formula.counts.verified == formula.counts.written > 0
    elements = generate(gpt, num_samples=16, elements_allowed="Li,Fe,O", elements_required="Li,O")
    assert elements.counts.verified == elements.counts.written > 0
    sizes = generate(gpt, num_samples=16, num_atoms="6:7")
    assert sizes.crystals is not None
    assert set(sizes.crystals.num_atoms.tolist()) <= {6, 7}
    assert sizes.counts.verified == sizes.counts.written > 0


def test_further_attempts_keep_space_group_and_number_of_atoms(gpt: Path) -> None:
    """So that a bound on distances leaves the distribution of symmetry and sizes as it is."""
    raw = generate(gpt, num_samples=48, seed=1, min_distance_scaled=0.0, no_replace=True)
    strict = generate(gpt, num_samples=48, seed=1, min_distance_scaled=0.65, max_attempts=8)
    assert raw.jobs is not None
    assert raw.crystals is not None
    assert strict.jobs is not None
    assert strict.crystals is not None
    assert int(strict.jobs.attempts.max()) > 0
    sizes = dict(zip(raw.jobs.indices.tolist(), raw.crystals.num_atoms.tolist(), strict=True))
    for index, size in zip(strict.jobs.indices.tolist(), strict.crystals.num_atoms.tolist(), strict=True):
        assert sizes.get(index, size) == size
    assert min(pair.scaled for pair in closest_scaled(strict.crystals.to_arrays())) >= 0.65


def test_crystals_have_the_space_group_that_was_asked_or_a_supergroup(gpt: Path) -> None:
    import spglib

    result = generate(gpt, num_samples=40, space_group="14,62,136,166,194,225", min_distance_scaled=0.5)
    assert result.crystals is not None
    asked = {group: num_operations(group) for group in (14, 62, 136, 166, 194, 225)}
    for one in result.crystals.to_arrays():
        dataset = spglib.get_symmetry_dataset((one.lattice, one.frac_coords, one.atomic_numbers), 0.1)
        # The operations of the asked group are among those that are found in the same cell: it, or a supergroup.
        assert dataset.number in asked or len(dataset.rotations) > min(asked.values())


def num_operations(group: int) -> int:
    """In a primitive cell."""
    table = wyckoff_table()
    return int(table.num_images[table.first[group] + table.count[group] - 1])


MISTAKES = {
    "--space-group 231": "space_group must be a number from 1 to 230 or a symbol",
    "--space-group 230:195": "a range of space_group must go upwards",
    "--wyckoff a,2b": "wyckoff must be letters",
    "--temperature 0": "temperature must be a positive number",
    "--top-p 1.5": "top_p must be above 0 and at most 1",
    "--max-elements 9": "max_elements must be at most 4, the most that the model has seen",
    "--formula NaBr": "must have elements that the generator gpt makes, got Br",
    "--formula SrTiO3 --space-group 227": "space_group 227 must have room for SrTiO3",
    "--formula NaCl --max-elements 1": "NaCl must have at most 1 elements",
    "--num-atoms 40": "num_atoms must be at most 12",
    "--guidance band_gap=2": "guidance must be one number for a crystal GPT",
    "--min-distance-scaled -1": "min_distance_scaled must be 0 or more and below 2",
    "--steps 5": "is of the generator gpt, whose own options are",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_what_a_crystal_gpt_cannot_do_is_refused_in_one_sentence(
    gpt: Path, tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["sample", "--ckpt", str(gpt), *arguments.split(), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert MISTAKES[arguments] in message
    assert not out.exists()


def test_a_size_for_which_no_asked_group_has_room_is_counted_as_not_drawn(gpt: Path) -> None:
    result = generate(gpt, num_samples=4, num_atoms=5, space_group=227, max_attempts=2)
    assert result.counts.failed == 4
    assert result.counts.rejected == {"not_drawn": 8}


def test_lists_of_groups_and_letters_are_read_in_every_form() -> None:
    assert space_groups("225, Fd-3m,1:3") == (1, 2, 3, 225, 227)
    assert space_groups([62, 14]) == (14, 62)
    assert space_groups(7) == (7,)
    assert wyckoff_letters("b a,ee") == wyckoff_letters(["e", "a", "b", "e"]) == (0, 1, 4, 4)


def test_the_closest_pair_is_found_in_units_of_covalent_radii() -> None:
    rock_salt = CrystalArrays(
        torch.tensor([11, 17]).numpy(),
        torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]]).numpy(),
        torch.tensor([[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.0]]).numpy(),
    )
    [pair] = closest_scaled([rock_salt])
    assert pair.scaled == pytest.approx(2.8 / (1.66 + 1.02), abs=1e-5)
    lone = CrystalArrays(torch.tensor([55]).numpy(), torch.zeros(1, 3).numpy(), (3 * torch.eye(3)).numpy())
    [own] = closest_scaled([lone])
    assert (own.first, own.second) == (0, 0)
    assert own.scaled == pytest.approx(3 / (2 * 2.44), abs=1e-5)
    limits = GeometryLimits(min_distance_scaled=0.7)
    refusals = geometry_refusals(CrystalBatch.from_arrays([rock_salt, lone]), limits)
    assert refusals[0] is None
    assert refusals[1] is not None
    assert refusals[1].kind is RefusalKind.TOO_CLOSE
    assert "atom 1 (Cs) and its own periodic image" in refusals[1].reason
