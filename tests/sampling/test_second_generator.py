"""The seam: a second generator, which shares nothing with latent diffusion, is sampled by the same code."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run_folder import contents
from tiny_checkpoint import write_checkpoint

import latentite
from latentite import cli
from latentite.checkpoint import (
    CheckpointError,
    CheckpointRecord,
    Stage,
    build_payload,
    export_portable,
    read_checkpoint,
)
from latentite.crystal import CrystalBatch
from latentite.evaluation.run import evaluate
from latentite.generation import generate, sample_with
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.protocol import Advance, Askable, Drawn, GeneratorCard
from latentite.generators.table import GENERATORS, GeneratorKind
from latentite.models import load_ldm
from latentite.sampling.merge import merge
from latentite.sampling.options import GenerateConfig

NAME = "from_a_table"
SPECIES = ((11, 17), (3, 9), (12, 8, 8))
"""Its crystals: NaCl, LiF, and a third."""


@dataclass(kw_only=True, slots=True)
class TableOptions:
    """Its own options."""

    edge: float = 6.0
    """Å, of the cubic cell."""
    missing: int = 5
    """Every so many seeds have no crystal."""

    def __post_init__(self) -> None:
        if not self.edge > 0:
            raise ValueError(f"edge must be positive, got {self.edge}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableGenerator:
    """Takes a crystal from a table by the job's seed; it chooses how many atoms, and some rows fail."""

    options: TableOptions
    card: GeneratorCard
    calls: list[int] = field(default_factory=list)

    @staticmethod
    def build(record: CheckpointRecord, options: TableOptions, device: torch.device) -> TableGenerator:
        card = GeneratorCard(
            kind=NAME,
            sha256=record.sha256,
            weights=record.weights,
            elements=(3, 8, 9, 11, 12, 17),
            asks=frozenset({Askable.ELEMENTS}),
            needs_num_atoms=False,
        )
        return TableGenerator(options=options, card=card)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {item.name: getattr(self.options, item.name) for item in fields(self.options)}

    def accept(self, asks: Sequence[Ask]) -> tuple[Ask, ...]:
        for ask in asks:
            if ask.elements is not None and len(ask.elements.required) > 3:
                raise ValueError("elements_required must be at most 3, as many as a crystal of the table has")
        return tuple(asks)

    def draw(self, jobs: Jobs, *, seed: int, batch_size: int, advance: Advance) -> Drawn:
        self.calls.append(len(jobs))
        rows, failures = [], {}
        for position, (value, ask) in enumerate(zip(jobs.seeds(seed), jobs.asks.tolist(), strict=True)):
            rules = jobs.asked[ask].elements
            fitting = [z for z in SPECIES if rules is None or set(rules.required) <= set(z)]
            if value % self.options.missing == 0 or not fitting:
                failures[position] = "the table has no such row"
            else:
                rows.append(fitting[value // 7 % len(fitting)])
        advance(len(jobs))
        crystals = CrystalBatch(
            atomic_numbers=torch.tensor([z for row in rows for z in row], dtype=torch.long),
            frac_coords=torch.tensor([[place / 4] * 3 for row in rows for place in range(len(row))]).view(
                -1, 3
            ),
            lattice=(self.options.edge * torch.eye(3)).repeat(len(rows), 1, 1),
            num_atoms=torch.tensor([len(row) for row in rows], dtype=torch.long),
        )
        return Drawn(crystals=crystals, failures=failures)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the second generator, which is in the table of generators for this test."""
    kind = GeneratorKind(options=TableOptions, build=TableGenerator.build, policy=None)
    monkeypatch.setitem(GENERATORS, NAME, kind)
    payload = build_payload(stage=Stage.LDM, config={}, data={}, metrics={}, generator=NAME)
    path = tmp_path / "table.ckpt"
    torch.save({"state_dict": {"network.row": torch.zeros(1)}, "latentite": payload}, path)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_generator_samples_into_a_folder_through_the_same_command(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["sample", "--ckpt", str(table), "--num-samples", "40", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("asked 40, written 40, ")
    written, rejected = rows_of(out / "samples.csv"), rows_of(out / "rejected.csv")
    assert {row["formula"] for row in written} == {"NaCl", "LiF", "MgO2"}
    assert {row["num_atoms"] for row in written} == {"2", "3"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint"]["generator"] == NAME
    assert manifest["settings"]["edge"] == 6.0
    assert not {"sampler", "steps", "guidance"} & manifest["settings"].keys()
    assert rejected
    assert {(row["kind"], row["reason"]) for row in rejected} == {("not_drawn", "the table has no such row")}


def test_what_a_generator_gave_no_crystal_for_is_counted_with_its_reason(table: Path) -> None:
    result = generate(table, num_samples=50, no_replace=True)
    counts = result.counts
    assert counts.done == counts.written + counts.failed == 50
    assert counts.rejected == {"not_drawn": counts.failed}
    assert counts.failed > 0
    assert result.crystals is not None
    assert len(result.crystals) == counts.verified == counts.written


def test_shards_of_a_second_generator_are_resumed_extended_merged_and_evaluated(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_samples": 150, "batch_size": 16, "seed": 4}
    generate(table, out=tmp_path / "whole", **options)
    for number in (1, 2):
        generate(table, out=tmp_path / str(number), shard=f"{number}/2", **options)
    assert generate(table, out=tmp_path / "1", shard="1/2", resume=True, **options).counts.failed == 0
    merge([tmp_path / "2", tmp_path / "1"], tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"edge was 6\.0, got 7\.0"):
        generate(table, out=tmp_path / "merged", resume=True, edge=7.0, **options)
    more = {**options, "num_samples": 160}
    assert generate(table, out=tmp_path / "merged", resume=True, **more).counts.written == 160
    report = evaluate(tmp_path / "merged", reference=None, out=tmp_path / "report", workers=1)
    assert len(report.crystals.arrays) == 160


def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(table, out=tmp_path / "whole", num_samples=150, batch_size=16)
    draw: Callable[..., Drawn] = TableGenerator.draw

    def stop_in_the_second_window(self: TableGenerator, jobs: Jobs, **told: Any) -> Drawn:
        if int(jobs.indices[-1]) >= 64:
            raise KeyboardInterrupt
        return draw(self, jobs, **told)

    with monkeypatch.context() as patch:
        patch.setattr(TableGenerator, "draw", stop_in_the_second_window)
        with pytest.raises(KeyboardInterrupt):
            generate(table, out=tmp_path / "cut", num_samples=150, batch_size=16)
    assert 0 < len(rows_of(tmp_path / "cut" / "samples.csv")) < 150
    generate(table, out=tmp_path / "cut", num_samples=150, batch_size=16, resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


MISTAKES = {
    "--steps 5": "is of the generator from_a_table, whose own options are edge, missing",
    "--guidance 2": "guidance must not be given: ",
    "--formula NaCl": "formula must not be given: the generator from_a_table cannot be asked for one",
    "--num-atoms 4": "num_atoms must not be given: the generator from_a_table cannot be asked for a number of atoms",
    "--elements-required Fe": "must have elements that the generator from_a_table makes, got Fe",
    "--elements-allowed Fe,Cu": "elements_allowed must leave an element that the generator from_a_table makes",
    "--elements-required Li,O,F,Na": "elements_required must be at most 3",
    "--conditions band_gap=2": "condition band_gap must be one of the model's",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_what_the_chosen_generator_does_not_have_is_refused_in_one_sentence(
    table: Path, tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["sample", "--ckpt", str(table), *arguments.split(), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert MISTAKES[arguments] in message
    assert not out.exists()


def test_an_option_of_another_generator_and_an_unknown_one_are_refused(table: Path, tmp_path: Path) -> None:
    latent = write_checkpoint(tmp_path / "latent.ckpt")
    with pytest.raises(
        ValueError, match=r"edge must not be given: .* is of the generator latent_diffusion, whose own"
    ):
        generate(latent, edge=7.0)
    with pytest.raises(ValueError, match=r"stepps must not be given: .* own options are edge, missing"):
        latentite.generate(table, stepps=3)  # type: ignore[operator]  # a module that can be called
    with pytest.raises(ValueError, match="edge must be positive, got -1"):
        generate(table, edge=-1)


def test_no_generator_has_an_option_of_the_name_of_a_general_one() -> None:
    general = {item.name for item in fields(GenerateConfig)}
    for name, kind in GENERATORS.items():
        assert not general & {item.name for item in fields(kind.options)}, name


def test_a_checkpoint_of_an_unknown_generator_is_refused_and_named(tmp_path: Path) -> None:
    payload = build_payload(stage=Stage.LDM, config={}, data={}, metrics={}, generator="of_tomorrow")
    path = tmp_path / "new.ckpt"
    torch.save({"state_dict": {"network.row": torch.zeros(1)}, "latentite": payload}, path)
    with pytest.raises(
        CheckpointError, match="generator must be one of latent_diffusion, gpt, got 'of_tomorrow'"
    ):
        generate(path)
    with pytest.raises(
        CheckpointError, match="expected a checkpoint of latent_diffusion, got one of of_tomorrow"
    ):
        load_ldm(path)
    torch.save(
        {"state_dict": {"network.row": torch.zeros(1)}, "latentite": {**payload, "generator": 7}}, path
    )
    with pytest.raises(CheckpointError, match="generator must be the name of one, got 7"):
        generate(path)


def test_new_checkpoints_say_their_generator_and_those_without_it_are_latent_diffusion(
    tmp_path: Path,
) -> None:
    new = write_checkpoint(tmp_path / "new.ckpt")
    assert read_checkpoint(new).generator == "latent_diffusion"
    weights, card = export_portable(new, tmp_path / "pair")
    assert (
        json.loads(card.read_text())["generator"] == read_checkpoint(weights).generator == "latent_diffusion"
    )
    content = torch.load(new, weights_only=True)
    del content["latentite"]["generator"]
    torch.save(content, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt").generator is None
    one, other = (generate(path, num_samples=4, steps=2) for path in (new, tmp_path / "old.ckpt"))
    assert one.crystals is not None
    assert other.crystals is not None
    assert one.crystals.frac_coords.equal(other.crystals.frac_coords)
    assert build_payload(stage=Stage.VAE, config={}, data={}, metrics={}).get("generator") is None


def test_a_generator_without_a_checkpoint_is_sampled_too(tmp_path: Path) -> None:
    """As campaigns do: whatever fulfils the protocol, from wherever it is."""
    card = GeneratorCard(kind=NAME, sha256="0" * 64, elements=(3, 9), asks=frozenset(), needs_num_atoms=False)
    generator = TableGenerator(options=TableOptions(), card=card)
    config = GenerateConfig(num_samples=10, out=tmp_path / "out")
    assert sample_with(generator, config, device="cpu", command=["a campaign"]).counts.written == 10
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["weights"] is None


def test_sampling_imports_no_network_no_diffusion_and_no_generator() -> None:
    folder = Path(latentite.__file__).parent / "sampling"
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for room in ("nn", "diffusion", "objectives", "generators.latent", "generators.table"):
            assert f"latentite.{room}" not in text, f"{path.name} knows {room}"
