"""`DataCard`: a checkpoint's description of the crystals that its model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from latentite.base.plain import from_plain, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCard:
    """One split of a data set; None for what the file does not say."""

    content_hash: str | None = None
    """sha256 of its crystals and labels; what was left out of it is said behind the 64 digits."""
    num_crystals: int | None = None
    num_atoms_histogram: list[int | float] | None = None
    """Number of crystals (of an imported model: their share) with 0, 1, 2, ... atoms per cell."""
    num_rejected: int | None = None
    """Crystals that have no description by orbits, and are not among those above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityCard:
    """One level of theory of the labels; None for what the file does not say."""

    num_in: int | None = None
    num_rejected: int | None = None
    rows: dict[str, int] | None = None
    """By split."""
    moved: dict[str, int] | None = None
    """Rows that another fidelity's split took along, as `train -> test`."""
    without_label: dict[str, int] | None = None
    """Rows that lack a property, by property."""
    dispersion: bool | None = None
    """True where the energies contain dispersion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitCard:
    """The description of the crystals by orbits, and the largest of the training split; None for what is not said."""

    mode: str | None = None
    """`symmetry`, or `p1` where every atom is an orbit."""
    symprec: float | None = None
    """Å."""
    fallback: float | None = None
    """Å; tolerance of crystals that the first one describes wrongly."""
    max_orbits: int | None = None
    """Of one crystal."""
    max_elements: int | None = None
    """Different ones of one crystal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCard:
    """The training data: names, hashes, counts, sizes, labels; None or empty for what the file does not say."""

    name: str | None = None
    """Of the data set."""
    splits: dict[str, SplitCard] = field(default_factory=dict)
    """`train`, `val`, `test`."""
    categories: dict[str, list[str]] | None = None
    """Names behind the codes of each label that is a class."""
    properties: list[str] | None = None
    """Labels of the training split."""
    fidelities: dict[str, FidelityCard] = field(default_factory=dict)
    """Levels of theory by name."""
    reference_fidelity: str | None = None
    """The one that the others are compared with."""
    elements: list[str] | None = None
    """Symbols of the elements of the training split."""
    orbits: OrbitCard | None = None
    """Of models that are trained on orbits."""
    others: dict[str, Any] = field(default_factory=dict)
    """Everything else in the section, as it stands there; an imported model has its `source` and `hyper_parameters`."""

    @staticmethod
    def of(data: Mapping[str, Any]) -> DataCard:
        """The card of a checkpoint's section `data`.

        Raises:
            ConfigError: when something in it is not what its key announces, naming the key.
        """
        known = {item.name for item in fields(DataCard)} - {"others"}
        stated = {key: value for key, value in data.items() if key in known}
        others = {key: value for key, value in data.items() if key not in known}
        return from_plain(DataCard, {**stated, "others": others}, where="data")

    def to_plain(self) -> dict[str, Any]:
        """The section `data`: what is not said is left out."""
        said = _without_none(to_plain(self))
        said |= said.pop("others")
        return {key: value for key, value in said.items() if value or key not in ("splits", "fidelities")}

    def split(self, name: str) -> SplitCard:
        """One of the splits; one of which nothing is said where the file does not have it."""
        return self.splits.get(name, SplitCard())

    @property
    def train_sizes(self) -> list[int | float] | None:
        """Numbers (or shares) of training crystals with 0, 1, 2, ... atoms; None where the file does not say."""
        return self.split("train").num_atoms_histogram

    @property
    def largest_cell(self) -> int:
        """Atoms of the largest training crystal; 0 where the file does not say."""
        return max(0, len(self.train_sizes or []) - 1)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
