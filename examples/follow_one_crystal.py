"""Follow one crystal from a table to a CIF file, with the type and shape of what it is at each stop.

    python examples/follow_one_crystal.py

Rock salt starts as a row of a CSV file. It goes the way of training (read, brought to the canonical form, packed into a
batch, encoded to latents, noised, and judged by the diffusion loss), and a new crystal comes the way of sampling (from
noise through the denoiser and the decoder to a CIF file). Each stop calls the function that training or sampling
calls. The networks are tiny and have random weights, so what comes out is a cell with atoms, not yet a crystal. Needs
no data, no GPU and a few seconds.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from pathlib import Path

import torch
from pymatgen.core import Lattice, Structure

from latentite.data.build import load_splits
from latentite.data.canonical import canonicalize_many
from latentite.data.readers.checks import Limits
from latentite.data.readers.opening import open_records
from latentite.data.readers.rows import parse_many
from latentite.formulas import reduced_formulas
from latentite.generators.jobs import Ask
from latentite.generators.latent.chain import sample_jobs
from latentite.generators.sizes import NumAtoms, plan_jobs
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize
from latentite.nn.encoders import EncoderConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.vae import DecoderConfig, VAEConfig
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind, LDMStageConfig, diffusion_loss
from latentite.sampling.writers import cif_text


def show(stop: str, thing: object) -> None:
    """Print where we are, what is there, and the shape of everything in it."""
    print(f"\n{stop}\n  {type(thing).__module__}.{type(thing).__qualname__}")
    values = {"": thing}
    if dataclasses.is_dataclass(thing):
        values = {f".{field.name}": getattr(thing, field.name) for field in dataclasses.fields(thing)}
    for name, value in values.items():
        if hasattr(value, "shape"):
            print(f"  {name or 'itself':16} {value.dtype} {list(value.shape)}")
        else:
            print(f"  {name or 'itself':16} {value!r}"[:100])


def write_table(path: Path) -> None:
    """One row as public data sets have it: an id, a label, and the crystal as the text of a CIF."""
    salt = Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [["material_id", "band_gap", "cif"], ["salt", 5.0, salt.to(fmt="cif")]]
        csv.writer(file).writerows(rows)


def tiny_model() -> LDMStageConfig:
    """Settings of a VAE and a flow-matching denoiser that anything can run."""
    size = {"d_model": 32, "num_heads": 4, "dim_feedforward": 64, "num_layers": 2}
    return LDMStageConfig(
        vae=VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size), latent_dim=8),
        denoiser=DenoiserConfig(
            size=DenoiserSize.CUSTOM, depth=2, hidden_size=32, num_heads=2, learn_variance=False
        ),
        diffusion=DiffusionConfig(kind=DiffusionKind.FLOW),
    )


def main(folder: Path) -> Path:
    """Follow it; gives the CIF file at the end."""
    table = folder / "train.csv"
    write_table(table)

    # From a file to a batch: `latentite data build` and every training do this.
    record = next(iter(open_records(table)))
    show("1. data/readers/opening.py cuts the table into records", record)

    [arrays] = parse_many([record], Limits(max_atoms=20))
    show("2. data/readers/rows.py reads the CIF: eight atoms in the conventional cell", arrays)

    [canonical] = canonicalize_many([arrays])
    show("3. data/canonical.py: the same cell with axes, origin and order of atoms in one form", canonical)

    train = load_splits(folder, cache_dir=folder / "cache")["train"]
    show("4. data/build.py does all of this for whole tables, and decides on their labels", train)

    batch = train.crystals.select(torch.tensor([0]))
    show("5. crystal.py: a batch, the atoms of all its crystals one after the other", batch)

    # From a batch to a loss: a step of training/ldm.py.
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = tiny_model()
    network = LatentDiffusion(model).eval()
    posterior = network.vae.encode(batch)
    show("6. nn/vae.py encodes each atom to a small Gaussian", posterior)

    latents = network.latents(posterior, batch.num_atoms, generator)
    show("7. nn/ldm.py draws the latents from it, normalised and padded", latents)

    loss = diffusion_loss(
        lambda tokens, time: network.denoiser(tokens, time, latents.mask),
        latents,
        model.diffusion,
        schedule=model.diffusion.build_schedule(),
        generator=generator,
    )
    show("8. objectives/ldm.py adds noise, asks the denoiser for the way back, and compares", loss)

    # From noise to a crystal: what `latentite sample` does for each batch.
    decoded = network.decode(latents)
    show("9. nn/vae.py: elements, coordinates and cell that latents stand for", decoded)

    jobs = plan_jobs([0], seed=0, sizes=NumAtoms.from_counts({8: 1}), asks=[Ask()], num_samples=1)
    sampled = sample_jobs(network, model.diffusion, jobs, seed=0).crystals
    show("10. generators/latent/chain.py goes from pure noise to latents, and decodes them", sampled)

    [crystal], [formula] = sampled.to_arrays(), reduced_formulas(sampled)
    path = folder / "000000.cif"
    path.write_text(cif_text(crystal, formula), encoding="utf-8")
    show("11. sampling/writers.py: the text of a CIF file", path.name)
    return path


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
