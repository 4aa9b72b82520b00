"""Building: nothing is lost, nothing stale is served, groups stay together."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data import build as build_module
from latentite.data import dataset_folder, source_rows
from latentite.data.build import build_split, load_splits
from latentite.data.dataset_folder import build_dataset
from latentite.data.labels import unique_ids
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.data.source_rows import cache_key
from latentite.data.splits import assign_splits, check_fractions, formula_keys


def salts(count: int = 24) -> list[Structure]:
    """Rocksalt cells of several formulas, two or three lattice constants each."""
    pairs = [(a, b) for a in ("Li", "Na", "K", "Rb", "Cs") for b in ("F", "Cl")][: -(-count // 3)]
    found = [
        Structure(Lattice.cubic(3.0 + 0.1 * k), list(pair), [[0, 0, 0], [0.5, 0.5, 0.5]])
        for pair in pairs
        for k in range(3)
    ]
    return found[:count]


def write_csv(path: Path, structures: list[Structure], *, spoil: tuple[int, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["material_id", "e_above_hull", "band_gap", "colour", "cif"])
        for k, structure in enumerate(structures):
            text = "spoiled" if k in spoil else str(CifWriter(structure))
            gap = "" if k % 4 == 0 else 0.5 * k
            writer.writerow([f"s{k}", 0.01 * k, gap, "white" if k % 2 else "black", text])
    return path


def quick(source: object, tmp_path: Path, **options: object) -> build_module.BuildResult:
    built = BuildOptions(**options)  # type: ignore[arg-type]  # any options
    return build_split(source, options=built, cache_dir=tmp_path / "cache", progress=False)  # type: ignore[arg-type]


def test_every_row_is_accepted_or_rejected_and_keeps_its_labels(tmp_path: Path) -> None:
    structures = salts()
    result = quick(write_csv(tmp_path / "a.csv", structures, spoil=(2, 5)), tmp_path)
    assert result.num_in == 24
    assert [rejection.row for rejection in result.rejections] == [2, 5]
    kept = [k for k in range(24) if k not in (2, 5)]
    dataset = result.dataset
    assert dataset.ids == tuple(f"s{k}" for k in kept)
    assert list(dataset.crystals.properties) == ["energy_above_hull", "band_gap"]
    torch.testing.assert_close(
        dataset.crystals.properties["energy_above_hull"], torch.tensor([0.01 * k for k in kept])
    )
    gaps = torch.tensor([math.nan if k % 4 == 0 else 0.5 * k for k in kept])
    torch.testing.assert_close(dataset.crystals.properties["band_gap"], gaps, equal_nan=True)
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1, scale=False)
    for k, structure in zip(kept, dataset.crystals.to_structures(), strict=True):
        assert matcher.fit(structures[k], structure)


def test_cache_is_used_and_a_changed_row_or_option_invalidates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chemeleon2's cache was named by the split alone: labels then attached to the wrong crystals."""
    path = write_csv(tmp_path / "a.csv", salts(), spoil=(1,))
    first = quick(path, tmp_path)
    calls = []
    real_build = source_rows._build
    monkeypatch.setattr(source_rows, "_build", lambda *a: calls.append(1) or real_build(*a))
    again = quick(path, tmp_path)
    assert not calls
    assert again.dataset.content_hash == first.dataset.content_hash
    assert (again.rejections, again.num_in, again.path) == (first.rejections, first.num_in, first.path)

    assert quick(path, tmp_path, limits=Limits(max_atoms=1)).num_in == 24
    assert len(calls) == 1
    path.write_text(path.read_text().replace("s3,0.03", "s3,0.04"))
    changed = quick(path, tmp_path)
    assert len(calls) == 2
    assert changed.dataset.crystals.properties["energy_above_hull"][2] == pytest.approx(0.04)

    monkeypatch.setattr(source_rows, "CANONICAL_VERSION", 10**6)
    assert quick(path, tmp_path).path != changed.path
    assert len(calls) == 3


def test_processes_give_bit_for_bit_what_one_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentite.data.readers import rows

    monkeypatch.setattr(rows, "CHUNK", 7)
    monkeypatch.setattr(rows, "_WORTH_A_POOL", 7)
    path = write_csv(tmp_path / "a.csv", salts(), spoil=(0, 8, 23))
    results = [build_split(path, workers=workers, use_cache=False, progress=False) for workers in (1, 2)]
    assert results[0].dataset.content_hash == results[1].dataset.content_hash
    assert results[0].rejections == results[1].rejections
    with pytest.raises(ValueError, match="workers must be at least 1"):
        build_split(path, workers=0, use_cache=False, progress=False)


BUILDER = """
import sys
from pathlib import Path
from latentite.data.build import build_split
result = build_split(sys.argv[1], cache_dir=Path(sys.argv[2]), progress=False, workers=1)
print(result.dataset.content_hash)
"""


def test_two_builders_at_once_do_no_harm(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", salts())
    command = [sys.executable, "-c", BUILDER, str(path), str(tmp_path / "cache")]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {builder.communicate(timeout=300)[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0]
    assert hashes == {quick(path, tmp_path).dataset.content_hash}
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1


def test_canonical_form_can_be_switched_off(tmp_path: Path) -> None:
    structure = Structure(
        Lattice.from_parameters(4, 5, 6, 80, 95, 100), ["K", "I"], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]
    )
    as_is = quick([structure], tmp_path, canonical=False).dataset.crystals
    np.testing.assert_allclose(as_is.lattice[0].numpy(), structure.lattice.matrix, atol=1e-6)
    np.testing.assert_allclose(as_is.frac_coords.numpy(), structure.frac_coords, atol=1e-6)
    assert as_is.atomic_numbers.tolist() == [19, 53]


def test_text_and_numbers_become_categories_when_asked(tmp_path: Path) -> None:
    structures = salts(6)
    structures[0].properties = {"colour": "white", "group": 225}
    structures[1].properties = {"colour": "black", "group": 62}
    structures[2].properties = {"colour": "white"}
    result = quick(
        structures, tmp_path, properties=("colour",), categorical=("group",), derived=("num_elements",)
    )
    properties, categories = result.dataset.crystals.properties, result.dataset.categories
    assert categories == {"colour": ("black", "white"), "group": ("225", "62")}
    assert properties["colour"][:3].tolist() == [1.0, 0.0, 1.0]
    assert properties["colour"][3:].isnan().all()
    assert properties["group"][:2].tolist() == [0.0, 1.0]
    assert properties["num_elements"].tolist() == [2.0] * 6


def test_unknown_property_names_the_columns_that_exist(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", salts(3))
    with pytest.raises(ValueError, match="'bandgap'; it has 'energy_above_hull', 'band_gap', 'colour'"):
        quick(path, tmp_path, properties=("bandgap",))
    assert list(quick(path, tmp_path, properties=("e_above_hull",)).dataset.crystals.properties) == [
        "energy_above_hull"
    ]


def test_duplicate_ids_stay_distinguishable() -> None:
    assert unique_ids(["a", "b", "a", "a#2", "a"]) == ["a", "b", "a#3", "a#2", "a#4"]


def test_load_splits_reads_ready_made_tables_with_common_categories(tmp_path: Path) -> None:
    structures = salts(6)
    write_csv(tmp_path / "data" / "train.csv", structures[:4])
    write_csv(tmp_path / "data" / "validation.csv", structures[4:5])
    options = BuildOptions(properties=("colour",))
    splits = load_splits(tmp_path / "data", options=options, cache_dir=tmp_path / "cache", progress=False)
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "val": 1}
    assert splits["val"].categories == splits["train"].categories == {"colour": ("black", "white")}
    assert splits["train"].crystals.properties["colour"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert splits["val"].crystals.properties["colour"].tolist() == [0.0]


def test_load_splits_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data folder must exist"):
        load_splits(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="must hold train, val and test files"):
        load_splits(tmp_path)
    write_csv(tmp_path / "train.csv", salts(2), spoil=(0, 1))
    with pytest.raises(ValueError, match="at least one usable crystal, got none of 2"):
        load_splits(tmp_path, cache_dir=tmp_path / "cache", progress=False)


def dataset_of(tmp_path: Path, **arguments: object) -> dict:
    build_dataset(
        arguments.pop("source", None) or write_csv(tmp_path / "a.csv", salts(), spoil=(4,)),  # type: ignore[arg-type]
        tmp_path / "out",
        cache_dir=tmp_path / "cache",
        progress=False,
        **arguments,  # type: ignore[arg-type]  # any arguments
    )
    return json.loads((tmp_path / "out" / "dataset.json").read_text())


def test_build_dataset_divides_by_reduced_formula_and_writes_its_report(tmp_path: Path) -> None:
    report = dataset_of(tmp_path)
    splits = load_splits(tmp_path / "out")
    assert list(splits) == ["train", "val", "test"]
    owners = defaultdict(set)
    for split, dataset in splits.items():
        for structure in dataset.crystals.to_structures():
            owners[structure.composition.reduced_formula].add(split)
    assert all(len(owner) == 1 for owner in owners.values())
    assert sorted(sum((dataset.ids for dataset in splits.values()), ())) == sorted(
        f"s{k}" for k in range(24) if k != 4
    )
    assert (report["num_in"], report["num_accepted"], report["num_rejected"]) == (24, 23, 1)
    assert report["formulas_of_test_also_in_train"] == 0
    assert report["splits"]["train"]["content_hash"] == splits["train"].content_hash
    with (tmp_path / "out" / "rejected.csv").open() as handle:
        [rejected] = csv.DictReader(handle)
    assert (rejected["row"], rejected["id"]) == ("4", "s4")
    assert "unreadable CIF" in rejected["reason"]


def test_division_depends_on_the_seed_alone(tmp_path: Path) -> None:
    hashes = [dataset_of(tmp_path, seed=seed)["splits"]["test"]["content_hash"] for seed in (0, 0, 1, 2)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) > 1


def test_splits_of_an_earlier_build_do_not_join_the_new_one(tmp_path: Path) -> None:
    dataset_of(tmp_path)
    dataset_of(tmp_path, fractions={"train": 1.0})
    assert list(load_splits(tmp_path / "out")) == ["train"]


def test_ready_made_splits_are_respected(tmp_path: Path) -> None:
    structures = salts(9)
    write_csv(tmp_path / "src" / "train.csv", structures[:6])
    write_csv(tmp_path / "src" / "test.csv", structures[5:])
    report = dataset_of(tmp_path, source=tmp_path / "src")
    assert report["group_by"] == "ready-made"
    assert {split: entry["crystals"] for split, entry in report["splits"].items()} == {"train": 6, "test": 4}
    assert report["formulas_of_test_also_in_train"] == 1
    with pytest.raises(ValueError, match="must differ from the source"):
        build_dataset(tmp_path / "src", tmp_path / "src")
    with pytest.raises(ValueError, match="is built already"):
        build_dataset(tmp_path / "out", tmp_path / "other")


def test_everything_rejected_is_an_error_that_names_the_reasons_and_their_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", salts(3))
    with pytest.raises(ValueError, match=r"got none of 3 rows: more atoms than the limit \(3\)") as refused:
        dataset_of(tmp_path, source=path, options=BuildOptions(limits=Limits(max_atoms=1)))
    rejected = tmp_path / "out" / "rejected.csv"
    assert str(refused.value).endswith(f"; each row's reason is in {rejected}")
    assert rejected.read_text().count("more than the limit") == 3


def test_a_source_without_rows_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Its error once pointed to a `rejected.csv` that held only the header."""
    path = write_csv(tmp_path / "a.csv", [])
    with pytest.raises(ValueError, match=r"a\.csv must hold at least one usable crystal, got no rows$"):
        dataset_of(tmp_path, source=path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ({"train": 0.8, "val": 0.1, "test": 0.2}, "must sum to 1"),
        ({"train": 1.2, "val": -0.2}, "between 0 and 1"),
        ({"train": 0.5, "valid": 0.5}, "got valid"),
        ({"train": math.nan}, "between 0 and 1"),
    ],
)
def test_impossible_fractions_are_refused(fractions: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_fractions(fractions)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=60),
    seed=st.integers(0, 99),
    train=st.sampled_from([0.34, 0.5, 0.8, 0.98]),
    order=st.randoms(use_true_random=False),
)
def test_groups_are_never_torn_and_no_split_is_empty(
    sizes: list[int], seed: int, train: float, order: object
) -> None:
    fractions = {"train": train, "val": (1 - train) / 2, "test": (1 - train) / 2}
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    assigned = assign_splits(groups, fractions, seed=seed)
    owner = {}
    for group, split in zip(groups, assigned, strict=True):
        assert owner.setdefault(group, split) == split
    assert set(assigned) == {"train", "val", "test"}
    shuffled = list(groups)
    order.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    again = dict(zip(shuffled, assign_splits(shuffled, fractions, seed=seed), strict=True))
    assert again == owner
    wanted = fractions["train"] * len(groups)
    assert abs(assigned.count("train") - wanted) <= 2 * max(sizes)


def test_too_few_groups_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"at least 3 groups of crystals, got 1 \(4 crystals\); use --group-by none"
    ):
        assign_splits(["C"] * 4, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)


@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=12), min_size=1, max_size=8))
def test_formula_keys_are_equal_exactly_for_equal_reduced_formulas(numbers: list[list[int]]) -> None:
    arrays = [
        CrystalArrays(np.array(n), np.zeros((len(n), 3)), np.eye(3))
        for n in [*numbers, *(2 * n for n in numbers)]
    ]
    keys = formula_keys(CrystalBatch.from_arrays(arrays))
    names = []
    for crystal in arrays:
        counts = np.bincount(crystal.atomic_numbers)
        names.append(tuple((counts // np.gcd.reduce(counts)).tolist()) + (0,) * (101 - len(counts)))
    for k, first in enumerate(names):
        for m, second in enumerate(names):
            assert (keys[k] == keys[m]) == (first == second)


def test_five_spoiled_cifs_of_a_folder_are_the_five_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for k, structure in enumerate(salts(30)):
        (folder / f"c{k:02d}.cif").write_text(str(CifWriter(structure)))
    text = (folder / "c00.cif").read_text()
    partial = Structure(Lattice.cubic(4), [Composition("Fe0.5Ni0.5")], [[0, 0, 0]])
    (folder / "c03.cif").write_text("")
    (folder / "c07.cif").write_text("<html><body>503 Service Unavailable</body></html>")
    (folder / "c11.cif").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "c13.cif").write_text(str(CifWriter(partial)))
    (folder / "c17.cif").write_text(text.replace("0.50000000", "0.01000000"))
    dataset_of(tmp_path, source=folder)
    with (tmp_path / "out" / "rejected.csv").open() as handle:
        reasons = {row["id"]: row["reason"] for row in csv.DictReader(handle)}
    assert list(reasons) == ["c03", "c07", "c11", "c13", "c17"]
    words = ["empty file", "HTML", "Git-LFS", "partial occupancy", "Å apart"]
    assert all(word in reason for word, reason in zip(words, reasons.values(), strict=True))


def test_content_and_limits_make_the_key_of_the_crystals_and_labels_do_not(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", salts(3))
    copy = write_csv(tmp_path / "elsewhere" / "a.csv", salts(3))
    assert cache_key(path, BuildOptions()) == cache_key(copy, BuildOptions())
    labelled = BuildOptions(properties=("colour",), categorical=("band_gap",), derived=("density",))
    assert cache_key(path, BuildOptions()) == cache_key(path, labelled)
    for others in (BuildOptions(limits=Limits(max_atoms=3)), BuildOptions(canonical=False)):
        assert cache_key(path, BuildOptions()) != cache_key(path, others)


def test_real_splits_load_whole(shared_data: Path, tmp_path: Path) -> None:
    splits = load_splits(shared_data / "mp_20_biternary", cache_dir=tmp_path, progress=False)
    assert {name: len(split) for name, split in splits.items()} == {"train": 10458, "val": 900, "test": 900}
    assert int(splits["train"].crystals.num_atoms.max()) == 20


def test_crystal_without_canonical_form_is_rejected_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentite.data import pack

    real = pack.canonicalize_many

    def fails_for_caesium(crystals: list) -> list:
        if any(55 in numbers for numbers, _, _ in map(astuple, crystals)):
            raise ValueError("it cannot be reduced")
        return real(crystals)

    monkeypatch.setattr(pack, "canonicalize_many", fails_for_caesium)
    structures = [*salts(4), Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])]
    result = quick(structures, tmp_path)
    assert len(result.dataset) == 4
    assert [(item.row, item.reason) for item in result.rejections] == [
        (4, "no canonical form: it cannot be reduced")
    ]


ORPHANS = """
import sys
from latentite.data import dataset_folder, source_rows
from latentite.data.readers import rows
from latentite.data.build import build_split

rows.CHUNK, rows._WORTH_A_POOL = 1, 1

def hang(records, limits, canonical):
    import os, time
    os.write(1, f"{os.getpid()}\\n".encode())  # one write: two workers' lines must not mix
    time.sleep(600)

source_rows.pack = hang
build_split(sys.argv[1], use_cache=False, progress=False, workers=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", salts(6))
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60.0
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlived their parent by a minute"
        time.sleep(0.2)
    parent.stdout.close()


def test_interrupted_build_leaves_no_mixture_of_old_and_new_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(tmp_path)
    real = dataset_folder.write_dataset

    def fails_at_train(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "train.safetensors":
            raise KeyboardInterrupt
        real(path, *arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(dataset_folder, "write_dataset", fails_at_train)
    with pytest.raises(KeyboardInterrupt):
        dataset_of(tmp_path, seed=1)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"val.safetensors", "test.safetensors", "rejected.csv"}
