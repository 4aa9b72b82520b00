"""Encode crystals, decode them again, and report how much came back: `latentite vae reconstruct`.

`reconstruct` does the work in memory; `write_report` leaves a folder:

    structures.csv     one row per structure: errors, matches, file names
    rejected.csv       rows of the source that could not be used, with the reason
    summary.json       rates (numerator, denominator, 95 % interval), means, provenance
    reconstructions.png
    cifs/              <id>_original.cif and <id>_reconstructed.cif
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from latentite import __version__
from latentite.base.files import replacing, write_csv, write_json
from latentite.base.machine import BATCH_SIZE
from latentite.checkpoint import CheckpointRecord
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.dataset_folder import write_rejections
from latentite.data.readers.records import Rejection
from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.draw.cells import draw_pairs, pretty
from latentite.formulas import reduced_formulas
from latentite.match.reduced import LOOSE, STRICT, MatcherSettings, is_comparable
from latentite.metrics.errors import reconstruction_table
from latentite.metrics.rates import Rate
from latentite.nn.vae import CrystalVAE

if TYPE_CHECKING:
    from pymatgen.core import Structure

log = logging.getLogger(__name__)

MATCHERS: tuple[MatcherSettings, ...] = (LOOSE, STRICT)
ORIGINAL, RECONSTRUCTED = "_original.cif", "_reconstructed.cif"
_CHUNK = 64

Advance = Callable[[int], None]
"""Told how many more crystals are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Originals, what came back, and every metric per crystal, all in the same order."""

    ids: tuple[str, ...]
    originals: CrystalBatch
    """In canonical form, as the network saw them."""
    rebuilt: CrystalBatch
    table: dict[str, np.ndarray]
    """Columns of `metrics.reconstruction.reconstruction_table`, one number per crystal."""
    rejections: tuple[Rejection, ...] = ()
    num_accepted: int
    """Usable crystals of the source; more than were evaluated when a limit was set."""

    @property
    def num_in(self) -> int:
        """Rows of the source: accepted + rejected."""
        return self.num_accepted + len(self.rejections)

    @property
    def rates(self) -> dict[str, Rate]:
        """Shares of the crystals that were evaluated."""
        total = len(self.ids)
        counts = {"composition_correct": int((self.table["composition_correct"] > 0.5).sum())}
        for settings in MATCHERS:
            counts[f"match_{settings.name}"] = int(np.isfinite(self.table[f"rmsd_{settings.name}"]).sum())
        return {name: Rate(numerator=count, denominator=total) for name, count in counts.items()}

    @property
    def means(self) -> dict[str, float]:
        """Means of the continuous metrics over crystals where they are finite; RMSD over matched pairs."""
        names = [name for name in self.table if name != "composition_correct"]
        means = {}
        for name in names:
            finite = self.table[name][np.isfinite(self.table[name])]
            means[name] = float(finite.mean()) if len(finite) else math.nan
        return means


@torch.inference_mode()
def rebuild(
    network: CrystalVAE,
    crystals: CrystalBatch,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    advance: Advance = lambda count: None,
) -> CrystalBatch:
    """Encode, take the posterior mean, decode: the crystals that come back, on the CPU, in the same order.

    Raises:
        ValueError: for a batch size below 1.
    """
    network = network.to(device).eval()
    batches = epoch_batches(crystals.num_atoms, BatchPlan(batch_size=batch_size, shuffle=False))
    parts = []
    for chosen in batches:
        batch = crystals.select(chosen).with_properties({}).to(device)
        given = None if network.config.atom_type_predict else batch.atomic_numbers
        parts.append(network.reconstruct(batch).to_crystals(given).to("cpu"))
        advance(len(chosen))
    if not parts:
        return crystals.with_properties({})
    return CrystalBatch.concatenate(parts).select(torch.cat(batches).argsort())


def reconstruct(
    network: CrystalVAE,
    dataset: CrystalDataset,
    *,
    rejections: Iterable[Rejection] = (),
    num_accepted: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    advance: Advance = lambda count: None,
) -> Reconstruction:
    """Send a dataset through the network and compare, crystal by crystal.

    Args:
        network: the VAE.
        dataset: crystals in canonical form.
        rejections: rows of the source that did not enter the dataset, for the report.
        num_accepted: usable crystals of the source, if the dataset holds only some of them.
        batch_size: crystals at once.
        device: where the network works.
        advance: hears of each crystal twice, decoded and compared.
    """
    originals = dataset.crystals.with_properties({})
    rebuilt = rebuild(network, originals, batch_size=batch_size, device=device, advance=advance)
    chunks = []
    for chosen in torch.arange(len(originals)).split(_CHUNK):
        chunks.append(
            reconstruction_table(originals.select(chosen), rebuilt.select(chosen), matchers=MATCHERS)
        )
        advance(len(chosen))
    if not chunks:
        chunks.append(reconstruction_table(originals, rebuilt, matchers=MATCHERS))
    table = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return Reconstruction(
        ids=dataset.ids,
        originals=originals,
        rebuilt=rebuilt,
        table=table,
        rejections=tuple(rejections),
        num_accepted=len(dataset) if num_accepted is None else num_accepted,
    )


def subset(dataset: CrystalDataset, count: int, *, seed: int) -> CrystalDataset:
    """`count` crystals drawn with the seed, in the order of the source; all when there are fewer."""
    if len(dataset) <= count:
        return dataset
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:count].sort().values
    return replace(
        dataset,
        crystals=dataset.crystals.select(chosen),
        ids=tuple(dataset.ids[i] for i in chosen.tolist()),
        content_hash=f"{dataset.content_hash}[{count} drawn with seed {seed}]",
    )


def summary(
    result: Reconstruction, record: CheckpointRecord | None = None, *, source: str = ""
) -> dict[str, Any]:
    """Plain values for `summary.json`; numbers that do not exist are null."""
    content: dict[str, Any] = {
        "source": source,
        "num_in": result.num_in,
        "num_accepted": result.num_accepted,
        "num_rejected": len(result.rejections),
        "num_evaluated": len(result.ids),
        "rates": {name: rate.to_plain() for name, rate in result.rates.items()},
        "means": {name: value if math.isfinite(value) else None for name, value in result.means.items()},
        "units": {
            "coordinate_rmse": "Å",
            "coordinate_rmse_absolute": "Å",
            "length_error": "Å",
            "angle_error": "degrees",
            "rmsd_loose": "(volume/atoms)^(1/3)",
            "rmsd_strict": "(volume/atoms)^(1/3)",
        },
        "matchers": {m.name: {"ltol": m.ltol, "stol": m.stol, "angle_tol": m.angle_tol} for m in MATCHERS},
        "latentite": __version__,
    }
    if record is not None:
        content["checkpoint"] = {
            "file": record.path.name,
            "sha256": record.sha256,
            "weights": record.weights.value,
        }
    return content


def report_table(result: Reconstruction, *, title: str = "Reconstruction") -> Table:
    """The report as a rich table."""
    means = result.means
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="left")
    rates = result.rates
    table.add_row("match rate (0.3/0.5/10°)", str(rates["match_loose"]))
    table.add_row("match rate (0.2/0.3/5°)", str(rates["match_strict"]))
    table.add_row("composition correct", str(rates["composition_correct"]))
    table.add_row("element accuracy", f"{100 * means['element_accuracy']:.2f} %")
    table.add_row("coordinate RMSE", f"{means['coordinate_rmse']:.3f} Å")
    table.add_row("length error", f"{means['length_error']:.3f} Å")
    table.add_row("angle error", f"{means['angle_error']:.2f}°")
    rmsd = means["rmsd_loose"]
    shown = f"{rmsd:.4f} (volume/atoms)^(1/3)" if math.isfinite(rmsd) else "- (no pair matched)"
    table.add_row("RMSD of matched pairs", shown)
    counts = f"{result.num_in} in = {result.num_accepted} accepted + {len(result.rejections)} rejected"
    table.add_row("crystals", f"{counts}; {len(result.ids)} evaluated")
    return table


def write_report(
    result: Reconstruction,
    out_dir: str | Path,
    *,
    record: CheckpointRecord | None = None,
    source: str = "",
    with_cifs: bool = True,
    num_pictures: int = 12,
    seed: int = 0,
) -> None:
    """Write the folder that the module's docstring describes; an older report there is replaced.

    Args:
        result: what to report.
        out_dir: the folder; made when missing.
        record: the checkpoint, for provenance.
        source: what the user called the data.
        with_cifs: write the CIF pairs too.
        num_pictures: pairs in the figure, drawn at random, so that they are as good as the average.
        seed: of that draw.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stems = file_stems(result.ids)
    written = _write_cifs(result, folder / "cifs", stems) if with_cifs else {}
    write_rejections(folder / "rejected.csv", result.rejections)
    _write_structures(result, folder / "structures.csv", written)
    if len(result.ids):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(result.ids), generator=generator)[:num_pictures]
        draw_reconstructions(result, chosen, folder / "reconstructions.png")
    write_json(folder / "summary.json", summary(result, record, source=source))


def draw_reconstructions(result: Reconstruction, chosen: torch.Tensor, path: Path) -> Path:
    """Write the picture of some originals beside what came back, each with its verdict."""
    rmsd = result.table["rmsd_loose"][chosen.numpy()]
    originals, rebuilt = result.originals.select(chosen), result.rebuilt.select(chosen)
    notes = [
        f"match, RMSD {distance:.3f}" if math.isfinite(distance) else f"no match: {pretty(formula)}"
        for distance, formula in zip(rmsd, reduced_formulas(rebuilt), strict=True)
    ]
    heading = f"Originals and reconstructions: match rate {result.rates['match_loose']}"
    return draw_pairs(originals, rebuilt, path, notes=notes, heading=heading)


def file_stems(ids: Sequence[str]) -> list[str]:
    """A file name for each id: safe on every file system, different for different positions."""
    stems: list[str] = []
    taken: set[str] = set()
    for identifier in ids:
        clean = re.sub(r"[^A-Za-z0-9.+-]+", "_", identifier).strip("._")[:80] or "structure"
        stem, count = clean, 1
        while stem.lower() in taken:  # lower: some file systems do not tell A from a
            count += 1
            stem = f"{clean}_{count}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems


def _write_cifs(result: Reconstruction, folder: Path, stems: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Write the pairs; gives both file names of each position, the second empty for what is no crystal."""
    folder.mkdir(exist_ok=True)
    names: dict[int, tuple[str, str]] = {}
    pairs = zip(stems, result.originals.to_structures(), result.rebuilt.to_structures(), strict=True)
    for position, (stem, original, rebuilt) in enumerate(pairs):
        _write_text(folder / f"{stem}{ORIGINAL}", original.to(fmt="cif"))
        if is_comparable(rebuilt):
            _write_text(folder / f"{stem}{RECONSTRUCTED}", _right_handed(rebuilt).to(fmt="cif"))
            names[position] = (f"{stem}{ORIGINAL}", f"{stem}{RECONSTRUCTED}")
        else:
            names[position] = (f"{stem}{ORIGINAL}", "")
    kept = {name for pair in names.values() for name in pair}
    for ending in (ORIGINAL, RECONSTRUCTED):  # files of an older report must not pass for this one's
        for stale in folder.glob(f"*{ending}"):
            if stale.name not in kept:
                stale.unlink()
    return names


def _right_handed(structure: Structure) -> Structure:
    """The same crystal in a right-handed cell: a CIF has lengths and angles only, and would hold the mirror image of
    one in a left-handed cell, which a decoder makes of a length below zero."""
    matrix = structure.lattice.matrix
    if np.linalg.det(matrix) > 0.0:
        return structure
    return type(structure)(-matrix, structure.species, -structure.frac_coords)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_structures(result: Reconstruction, path: Path, files: dict[int, tuple[str, str]]) -> None:
    matched = {f"matched_{m.name}": np.isfinite(result.table[f"rmsd_{m.name}"]) for m in MATCHERS}
    header = ["id", "formula", "num_atoms", "reconstructed_formula", *matched, *result.table]
    header += ["cif_original", "cif_reconstructed"]
    formulas, others = reduced_formulas(result.originals), reduced_formulas(result.rebuilt)
    num_atoms = result.originals.num_atoms.tolist()
    rows = []
    for i, identifier in enumerate(result.ids):
        cells: list[object] = [identifier, formulas[i], num_atoms[i], others[i]]
        cells += [bool(values[i]) for values in matched.values()]
        cells += [float(values[i]) for values in result.table.values()]
        rows.append([*cells, *files.get(i, ("", ""))])
    write_csv(path, header, rows)
