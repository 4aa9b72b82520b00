"""Follow one crystal through the whole house, with the type and shape at each stop.

    python examples/follow_one_crystal.py

Rock salt starts as a row of a CSV file, is read, brought to the canonical form and packed, encoded to a
latent and decoded by a tiny VAE, noised and denoised by a tiny diffusion transformer (random weights: what comes
out is a cell, not yet a crystal), and a new one ends as a CIF file. Needs no data, no GPU and a few seconds; the
tests run it.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from pathlib import Path

import torch
from pymatgen.core import Lattice, Structure

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data import canonical
from latentite.data.readers.checks import Limits
from latentite.data.readers.rows import Row, read
from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.samplers import noised
from latentite.diffusion.schedule import FlowSchedule
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import sample_jobs
from latentite.nn.decoder import DecoderConfig
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize, TokenIndex
from latentite.nn.encoders import EncoderConfig
from latentite.nn.ldm import LatentDiffusion, LDMConfig
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind


def show(place: str, thing: object) -> None:
    """Print where we are, what is there, and the shape of everything in it."""
    print(f"\n{place}\n  {type(thing).__module__}.{type(thing).__qualname__}")
    values = {"": thing}
    if dataclasses.is_dataclass(thing):
        values = {f".{field.name}": getattr(thing, field.name) for field in dataclasses.fields(thing)}
    for name, value in values.items():
        if hasattr(value, "shape"):
            print(f"  {name or 'itself':20} {value.dtype} {list(value.shape)}")
        else:
            print(f"  {name or 'itself':20} {value!r}"[:100])


def write_csv(path: Path) -> Structure:
    """One row as the public tables have it: an id, a label, and the CIF as text."""
    salt = Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "band_gap", "cif"])
        writer.writerow(["salt", 5.0, salt.to(fmt="cif")])
    return salt


def main(folder: Path) -> Path:
    """Walk; gives the CIF at the end of the way."""
    salt = write_csv(folder / "crystals.csv")
    show("0. pymatgen's conventional cell, written to a CSV file", salt.frac_coords)

    row = next(iter(read(folder / "crystals.csv", limits=Limits(max_atoms=20))))
    if not isinstance(row, Row):
        raise SystemExit(f"the row was rejected: {row.reason}")
    show("1. data/readers/rows.py reads the row", row)

    arrays = canonical.canonicalize(CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice))
    show(
        "2. data/canonical.py: the Niggli cell, atoms and origin in order; here its lattice (Å)",
        arrays.lattice,
    )

    batch = CrystalBatch.from_arrays([arrays])
    show("3. crystal.py packs it; a batch may hold thousands", batch)

    torch.manual_seed(0)
    size = {"d_model": 32, "num_heads": 4, "dim_feedforward": 64, "num_layers": 2}
    vae = CrystalVAE(VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size), latent_dim=8))
    vae.eval()
    with torch.inference_mode():
        posterior = vae.encode(batch)
        show("4. nn/vae.py encodes each atom to a small Gaussian", posterior)

        latent = posterior.sample(torch.Generator().manual_seed(0))
        show("5. one draw from it: the latent, one row per atom", latent)

        decoded = vae.decode(latent, batch.num_atoms)
        show("6. nn/decoder.py: what the decoder says of elements, coordinates and cell", decoded)

    crystals = decoded.to_crystals()
    show("7. the most likely crystal, again a CrystalBatch", crystals)

    denoiser = DenoiserConfig(
        size=DenoiserSize.CUSTOM,
        depth=2,
        hidden_size=32,
        num_heads=2,
        learn_variance=False,
        index=TokenIndex.NONE,
    )
    network = LatentDiffusion(LDMConfig(vae=vae.config, denoiser=denoiser)).eval()
    network.vae.load_state_dict(vae.state_dict())
    latents = network.encode(batch)
    show("8. nn/ldm.py: the latents as the diffusion stage sees them, padded", latents)

    level = 30
    schedule = FlowSchedule(num_steps=50)
    noise = CrystalNoise([1], num_atoms=batch.num_atoms, num_channels=8)
    state = noised(latents.tokens, noise.start(), schedule, level)
    show(f"9. diffusion/samplers.py puts the noise of level {level} of 50 on them", state)

    time = torch.tensor([float(schedule.at(level).time)])
    with torch.inference_mode():
        show("10. nn/denoiser.py says which way is back", network.denoiser(state, time, latents.mask))

    flow = DiffusionConfig(kind=DiffusionKind.FLOW)
    sampled = sample_jobs(network, flow, Jobs.plain(batch.num_atoms), seed=0).crystals
    show("11. generators/latent/chain.py walks from pure noise to a new crystal", sampled)

    path = folder / "sampled.cif"
    sampled.to_structures()[0].to(filename=str(path), fmt="cif")
    show("12. a CIF file, the end of the way", path.name)
    return path


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
