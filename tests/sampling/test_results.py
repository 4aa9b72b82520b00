"""`benchmarks/results.py`: parts are measured once or left out with a reason, and the page is made of their files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_bundle import write
from tiny_checkpoint import make_usable, write_checkpoint
from tiny_ldm import FLOW, tiny_network

from latentite.checkpoint import Stage
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, write_dataset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


PARTS = ("weights", "vae", "samples", "test", "prediction", "rl")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script as a module, without bundled weights."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("LATENTITE_CACHE_DIR", str(folder / "cache"))
        patch.setenv("LATENTITE_CKPT_DIR", str(folder / "ckpts"))
        import results as module

        yield module


@pytest.fixture(scope="module")
def words(
    tmp_path_factory: pytest.TempPathFactory, make_random_crystals: Callable[..., list[CrystalArrays]]
) -> list[str]:
    """The command line: a tiny model, and random crystals in three splits."""
    tmp_path = tmp_path_factory.mktemp("results")
    network = make_usable(tiny_network(FLOW))
    vae = write(tmp_path / "vae.ckpt", network.vae, Stage.VAE, network.config.vae)
    ldm = write_checkpoint(tmp_path / "ldm.ckpt", diffusion=FLOW)
    crystals = CrystalBatch.from_arrays(make_random_crystals(30, max_atoms=6))
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        part = crystals.select(torch.arange(first, first + 10))
        dataset = CrystalDataset(
            crystals=part, ids=tuple(f"{split}-{i}" for i in range(10)), content_hash=split
        )
        write_dataset(tmp_path / "data" / f"{split}.safetensors", dataset)
    return [
        *("--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")),
        *("--page", str(tmp_path / "page" / "results.md"), "--vae", str(vae), "--ldm", str(ldm)),
        *("--quick", "--relax", "none", "--parts"),
    ]


@pytest.fixture(scope="module")
def measured(results: ModuleType, words: list[str]) -> tuple[Path, str]:
    """The folder of what was measured with its page, and what was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert results.main([*words, *PARTS]) == 0
    return Path(words[words.index("--out") + 1]).parent, printed.getvalue()


@pytest.mark.slow
@pytest.mark.pictures
def test_parts_are_measured_once_and_shown(
    results: ModuleType,
    words: list[str],
    measured: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, said = measured
    parts = PARTS
    assert "rl: left out: there is no checkpoint for it; give --rl," in said
    assert said.count("measured in") == len(parts) - 1
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "out").glob("*.json")
    }
    assert found.keys() == set(parts) - {"rl"}
    assert found["vae"]["found"]["rates"]["match_loose"]["denominator"] == 10
    samples = found["samples"]["found"]
    assert samples["num_in"] == samples["sampling"]["counts"]["written"]
    assert sum(samples["histograms"]["num_atoms"].values()) == samples["num_scored"]
    assert found["prediction"]["found"]["targets"]["num_targets"] == results.QUICK.formulas
    page = (folder / "page" / "results.md").read_text(encoding="utf-8")
    assert f"| crystals | {samples['num_in']} | 10 |" in page
    assert "`python benchmarks/results.py --parts samples rl`" in page
    assert "**Sets of fewer than 100 crystals: samples, test.**" in page
    assert (folder / "page" / "images" / "results_histograms.png").stat().st_size > 1000
    assert results.main([*words, *parts]) == 0
    assert capsys.readouterr().out.count("there already") == len(parts) - 1
    assert results.main([*words, "vae", "--seed", "1"]) == 0
    assert "vae: measured in" in capsys.readouterr().out
    assert "measured with different settings" in (folder / "page" / "results.md").read_text(encoding="utf-8")


def test_the_page_compares_before_and_after(
    results: ModuleType, words: list[str], measured: tuple[Path, str], tmp_path: Path
) -> None:
    """600 of 1,000 against 500 of 1,000: Newcombe's interval of the difference is 5.6 to 14.3 points."""
    out = tmp_path / "out"
    out.mkdir()
    for name, count in (("samples", 500), ("rl", 600)):
        content = json.loads((measured[0] / "out" / "samples.json").read_text(encoding="utf-8"))
        content["found"]["rates"]["novel"] |= {"numerator": count, "denominator": 1000}
        (out / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert results.main([*words, "--out", str(out), "--page", str(tmp_path / "again.md")]) == 0
    line = next(
        line for line in (tmp_path / "again.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| novel |") and "points" not in line and "**" in line
    )  # fmt: skip
    assert "50.0 % (500 of 1000" in line
    assert "**+10.0 (+5.6 to +14.3)**" in line


def test_a_mistake_is_one_line(
    results: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main([*words, "vae", "--data", "nowhere"]) == 2
    assert "--data must be a folder" in capsys.readouterr().err
    assert results.main([*words, "vae", "--rl", "no_such_name"]) == 2
    assert "no_such_name" in capsys.readouterr().err
