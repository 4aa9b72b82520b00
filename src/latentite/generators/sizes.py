"""How many atoms each crystal of a run has, and the plan of a run.

A crystal's number of atoms is drawn from a distribution, by default that of the training set, as a function of (run
seed, index) alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.base.files import parse_json
from latentite.checkpoint import DataCard
from latentite.diffusion.noise import crystal_uniforms
from latentite.generators.jobs import Ask, Jobs

_DRAW_ASK, _DRAW_SIZE = 0, 1  # which of a crystal's uniform numbers decides what


@dataclass(frozen=True, kw_only=True, slots=True)
class NumAtoms:
    """A distribution of the number of atoms per cell."""

    weights: Float[Tensor, " size"]
    """Of 0, 1, 2, ... atoms, float64, not normalised; the first is 0."""

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or not bool(self.weights[1:].sum() > 0):
            raise ValueError("a distribution of the number of atoms must hold at least one size, got none")
        if bool(self.weights[0] != 0) or not bool((self.weights >= 0).all() & self.weights.isfinite().all()):
            raise ValueError(
                "a distribution of the number of atoms must be counts of 1 or more atoms per cell"
            )

    @property
    def largest(self) -> int:
        """The largest size that occurs."""
        return int(self.weights.nonzero()[-1])

    def weight(self, num_atoms: int) -> float:
        """Weight of one size; 0 for those that never occur."""
        return float(self.weights[num_atoms]) if 0 <= num_atoms < len(self.weights) else 0.0

    def quantile(self, uniforms: Float[Tensor, " crystal"], at_least: int = 1) -> Int[Tensor, " crystal"]:
        """The size at each fraction of the distribution, among sizes of `at_least` atoms.

        Raises:
            ValueError: when no size is that large.
        """
        weights = torch.where(torch.arange(len(self.weights)) >= at_least, self.weights, 0.0)
        total = weights.cumsum(0)
        if not total[-1] > 0:
            raise ValueError(
                f"num_atoms must allow {at_least} atoms, one for each required element, got {self.largest} at most"
            )
        # right=True passes over sizes of weight 0, and the largest one stands where rounding would pass the end
        return torch.searchsorted(total, uniforms * total[-1], right=True).clamp(max=self.largest)

    @staticmethod
    def from_histogram(counts: Sequence[float] | Sequence[int]) -> NumAtoms:
        """From the counts of 0, 1, 2, ... atoms, as checkpoints store them for their training set."""
        return NumAtoms(weights=torch.tensor(list(counts), dtype=torch.float64))

    @staticmethod
    def from_counts(counts: Mapping[int, float] | Mapping[int, int]) -> NumAtoms:
        """From the count of each size.

        Raises:
            ValueError: for a size below 1.
        """
        if any(size < 1 for size in counts):
            raise ValueError(f"num_atoms must be 1 or more, got {min(counts)}")
        weights = [float(counts.get(size, 0.0)) for size in range(max(counts, default=0) + 1)]
        return NumAtoms.from_histogram(weights)


def training_sizes(data: DataCard) -> NumAtoms | None:
    """Sizes of the training set, from what a checkpoint says of its data; None where it does not say."""
    counts = data.train_sizes
    return None if counts is None else NumAtoms.from_histogram(counts)


def parse_num_atoms(text: str | int) -> NumAtoms:
    """`12`, or `8:20` for every size from 8 to 20 equally often.

    Raises:
        ValueError: for any other text.
    """
    first, colon, last = str(text).partition(":")
    try:
        low, high = int(first), int(last if colon else first)
    except ValueError:
        raise ValueError(
            f"num_atoms must be a number such as 12 or a range such as 8:20, got {text}"
        ) from None
    if not 1 <= low <= high:
        raise ValueError(f"num_atoms must go upwards from 1 or more atoms, such as 8:20, got {text}")
    return NumAtoms.from_counts(dict.fromkeys(range(low, high + 1), 1.0))


def read_num_atoms(path: Path) -> NumAtoms:
    """From a file: CSV with the columns `num_atoms` and `count`, or JSON such as `{"8": 120, "12": 40}`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is neither.
    """
    if not path.is_file():
        raise FileNotFoundError(f"num_atoms_distribution must be train or a file with counts, got {path}")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix.lower() == ".json":
            counts = {int(size): float(count) for size, count in parse_json(text).items()}
        else:
            rows = [(int(r["num_atoms"]), float(r["count"])) for r in csv.DictReader(text.splitlines())]
            counts = dict(rows)
            if len(counts) < len(rows):
                raise ValueError("a number of atoms stands in two rows")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} must be a CSV with columns num_atoms and count, each number of atoms once, or JSON such as "
            f'{{"8": 120, "12": 40}}, got something else: {error!r}'
        ) from error
    return NumAtoms.from_counts(counts)


def choose_num_atoms(
    num_atoms: str | int | None, distribution: str | Path = "train", *, train: NumAtoms | None
) -> NumAtoms:
    """The distribution that the options `num_atoms` and `num_atoms_distribution` ask for.

    Args:
        num_atoms: see `parse_num_atoms`; it replaces the distribution.
        distribution: `train`, or a file (`read_num_atoms`).
        train: sizes of the training set; None where the checkpoint does not say.

    Raises:
        ValueError: when neither the options nor the checkpoint say, or for more atoms than the model has seen.
    """
    if num_atoms is not None:
        if str(distribution) != "train":
            raise ValueError(
                "num_atoms must not be given together with num_atoms_distribution; leave one out"
            )
        chosen = parse_num_atoms(num_atoms)
    elif str(distribution) != "train":
        chosen = read_num_atoms(Path(distribution))
    elif train is None:
        raise ValueError(
            "num_atoms must be given (such as 8:20): this checkpoint does not hold the sizes of its training set"
        )
    else:
        chosen = train
    if train is not None and chosen.largest > train.largest:
        raise ValueError(
            f"num_atoms must be at most {train.largest}, the most that the model has seen, got {chosen.largest}"
        )
    return chosen


def plan_jobs(
    indices: Sequence[int],
    *,
    seed: int,
    sizes: NumAtoms | None,
    asks: Sequence[Ask] = (Ask(),),
    num_samples: int | None = None,
) -> Jobs:
    """First attempts at these crystals of a run.

    A run has `num_samples` crystals for each request, those of the first request first; a job is a function of
    (seed, index) and of what is asked, so any part of a run can be planned alone.

    Args:
        indices: places in the run.
        seed: of the run.
        sizes: where a request does not fix the number of atoms, drawn from these; None leaves it to the generator.
        asks: as `build_asks` gives them: ordered by request.
        num_samples: crystals per request; None for a run of one request.

    Raises:
        ValueError: for an index outside the run, or more required elements than atoms.
    """
    places = torch.tensor(list(indices), dtype=torch.long)
    requests = torch.tensor([ask.request for ask in asks])
    num_requests = int(requests[-1]) + 1
    request = torch.zeros_like(places) if num_samples is None else places // num_samples
    if len(places) and not 0 <= int(request.min()) <= int(request.max()) < num_requests:
        raise ValueError(
            f"indices must be from 0 to {num_requests * (num_samples or 1) - 1}, got {int(places.max())}"
        )
    chosen = _draw_asks(asks, request, crystal_uniforms(seed, indices, _DRAW_ASK))
    num_atoms = torch.tensor([ask.num_atoms or 0 for ask in asks])[chosen]
    least = torch.tensor([ask.min_atoms for ask in asks])[chosen]
    uniforms = crystal_uniforms(seed, indices, _DRAW_SIZE)
    if sizes is not None:
        for at_least in least[num_atoms == 0].unique().tolist():
            drawn = (num_atoms == 0) & (least == at_least)
            num_atoms[drawn] = sizes.quantile(uniforms[drawn], at_least)
    return Jobs(
        indices=places,
        attempts=torch.zeros_like(places),
        num_atoms=num_atoms,
        asks=chosen,
        asked=tuple(asks),
    )


def _draw_asks(
    asks: Sequence[Ask], request: Int[Tensor, " crystal"], uniforms: Float[Tensor, " crystal"]
) -> Int[Tensor, " crystal"]:
    """For each crystal one of its request's asks, by weight: request r owns the interval from r to r + 1."""
    requests = torch.tensor([ask.request for ask in asks])
    weights = torch.tensor([ask.weight for ask in asks], dtype=torch.float64)
    totals = torch.zeros(int(requests[-1]) + 1, dtype=torch.float64).index_add(0, requests, weights)
    before = totals.cumsum(0) - totals
    ends = requests + (weights.cumsum(0) - before[requests]) / totals[requests]
    is_last = torch.cat([requests[1:] != requests[:-1], torch.tensor([True])])
    ends = torch.where(is_last, requests + 1.0, ends)  # exact, so that rounding leads to no other request
    return torch.searchsorted(ends, request + uniforms, right=True)
