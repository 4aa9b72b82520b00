"""The densities that a crystal GPT may use in place of its own: of cells and of coordinates on the circle."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_normal, norm
from torch.distributions import Categorical, MixtureSameFamily, VonMises

from latentite.crystal_arrays import CrystalArrays
from latentite.nn.gpt.cell import CellHead, LatticeDensity
from latentite.nn.gpt.cell_densities import (
    FLOW_MISSING,
    NESTED_ORDER,
    CellFlow,
    GaussianMixture,
    JointMixtureHead,
)
from latentite.nn.gpt.choices import DrawSettings
from latentite.nn.gpt.circular import (
    CircularHead,
    CircularMixture,
    CoordDensity,
    concentration,
    log_density,
    offset_at,
)
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.sample import Sampler, num_uniforms
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.symmetry.cells import FREE
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.encode import encode, encode_p1
from latentite.symmetry.orbits import OrbitBatch

CIRCULAR = [CoordDensity.VON_MISES, CoordDensity.WRAPPED_NORMAL, CoordDensity.WRAPPED_CAUCHY]
WIDTHS = [0.002, 0.03, 0.3, 2.0]


def mixture(kind: CoordDensity, rows: int = 1) -> CircularMixture:
    """Three components, one of them across the end of the cell."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    locations = torch.tensor([0.99, 0.3, 5.6], dtype=torch.float64)
    widths = torch.tensor([0.02, 0.08, 0.3], dtype=torch.float64)
    return CircularMixture(
        kind=kind,
        log_weights=weights.log().expand(rows, -1),
        locations=locations.expand(rows, -1),
        log_widths=widths.log().expand(rows, -1),
    )


def numbers(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", CIRCULAR)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_density_on_the_circle_integrates_to_one_and_a_shift_by_one_changes_nothing(
    kind: CoordDensity, width: float
) -> None:
    """Three images of a wrapped normal distribution of width 2 integrate to 0.918."""
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    log_width = torch.full_like(grid, math.log(width))
    density = log_density(kind, grid - 0.4, log_width)
    assert abs(float(torch.trapezoid(density.exp(), grid)) - 1) < 1e-4
    for shift in (-1.0, 1.0, 3.0):
        assert (log_density(kind, grid + shift - 0.4, log_width) - density).abs().max() < 1e-5


def test_von_mises_mixtures_are_those_of_torch_with_the_jacobian_of_fractional_coordinates() -> None:
    mine = mixture(CoordDensity.VON_MISES)
    angles = 2 * math.pi * torch.remainder(mine.locations[0] + 0.5, 1.0) - math.pi
    theirs = MixtureSameFamily(
        Categorical(logits=mine.log_weights[0]), VonMises(angles, concentration(mine.log_widths[0]))
    )
    grid = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    expected = theirs.log_prob(2 * math.pi * grid - math.pi) + math.log(2 * math.pi)
    shifted = torch.remainder(grid + 0.5, 1.0)
    told = torch.stack([mine.log_prob(value.unsqueeze(0))[0] for value in shifted])
    # torch's I0 is a polynomial that is good to seven digits.
    assert (told - torch.stack(list(expected))).abs().max() < 1e-5


@pytest.mark.parametrize("kind", CIRCULAR)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_coordinates_that_are_drawn_follow_the_density(kind: CoordDensity, temperature: float) -> None:
    rows = 2_000
    drawn = mixture(kind, rows).tempered(temperature).draw(numbers(rows, 2))
    assert bool(((drawn >= 0) & (drawn < 1)).all())
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    density = mixture(kind, len(grid)).tempered(temperature).log_prob(grid).exp()
    cumulative = torch.cumulative_trapezoid(density, grid)
    cumulative = np.concatenate([[0.0], cumulative.numpy()])
    assert kstest(drawn.numpy(), lambda x: np.interp(x, grid.numpy(), cumulative)).pvalue > 0.01


@pytest.mark.parametrize("kappa", [0.01, 3.0, 49.0, 51.0, 2e4])
def test_the_quantiles_of_von_mises_invert_its_cumulative_density(kappa: float) -> None:
    log_width = torch.full((9,), -0.5 * math.log(kappa * (2 * math.pi) ** 2), dtype=torch.float64)
    asked = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    found = offset_at(CoordDensity.VON_MISES, asked, log_width)
    grid = torch.linspace(-0.5, 0.5, 200_001, dtype=torch.float64)
    density = log_density(CoordDensity.VON_MISES, grid, log_width[0].expand_as(grid)).exp()
    cumulative = np.concatenate([[0.0], torch.cumulative_trapezoid(density, grid).numpy()])
    assert np.abs(np.interp(found.numpy(), grid.numpy(), cumulative) - asked.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", CIRCULAR)
def test_temperature_divides_kappa_and_logits(kind: CoordDensity) -> None:
    warm = mixture(kind).tempered(0.5)
    before = mixture(kind)
    assert torch.allclose(concentration(warm.log_widths), concentration(before.log_widths) / 0.5)
    assert torch.allclose(warm.log_weights.exp(), torch.tensor([[25.0, 9.0, 4.0]]).double() / 38)
    assert torch.allclose(before.tempered(1.0, 0.6).log_weights.exp()[0, 2], torch.tensor(0.0).double())


def test_a_coordinate_depends_on_those_before_it_only_and_fixed_ones_count_nothing() -> None:
    torch.manual_seed(0)
    head = CircularHead(16, 4, CoordDensity.WRAPPED_NORMAL)
    hidden, coords = torch.randn(2, 3, 16), torch.rand(2, 3, 3)
    moving = torch.ones(2, 3, 3, dtype=torch.bool)
    moving[0, 0] = torch.tensor([True, False, True])
    before = head(hidden, coords, moving)
    changed = coords.clone()
    changed[..., 1] += 0.2
    after = head(hidden, changed, moving)
    assert torch.equal(before[..., :2], after[..., :2])
    assert not torch.equal(before[..., 3], after[..., 3])
    assert before[0, 0, 2].item() == 0
    assert torch.equal(before[..., 0], torch.zeros(2, 3))


def joint(rows: int = 6) -> tuple[JointMixtureHead, torch.Tensor]:
    torch.manual_seed(0)
    head = JointMixtureHead(16, 3).double()
    with torch.no_grad():
        for weights in head.parameters():
            weights.mul_(3.0)
    return head, torch.randn(rows, 16, dtype=torch.float64)


def test_what_families_leave_free_lies_one_in_the_other() -> None:
    """The marginal densities of the joint mixture and of the flow are exact because of this."""
    for family in FREE:
        in_order = family[NESTED_ORDER]
        assert bool((in_order == np.sort(in_order)[::-1]).all())


def test_the_joint_mixture_is_the_marginal_mixture_of_another_implementation() -> None:
    head, hidden = joint()
    free = torch.from_numpy(FREE)
    values = torch.randn(6, 6, dtype=torch.float64)
    with torch.no_grad():
        told = head(hidden, values, free)
        log_weights, means, factors = head.parameters_of(hidden)
    covariances = (factors @ factors.mT).numpy()
    assert bool((told[~free] == 0).all())
    for row, family in enumerate(FREE):
        places = [place for place, column in enumerate(NESTED_ORDER) if family[column]]
        point = values[row].numpy()[[NESTED_ORDER[place] for place in places]]
        parts = [
            math.exp(log_weights[row, k])
            * multivariate_normal.pdf(
                point, means[row, k].numpy()[places], covariances[row, k][np.ix_(places, places)]
            )
            for k in range(3)
        ]
        assert math.log(sum(parts)) == pytest.approx(float(told[row].sum()), abs=1e-8)


def test_the_joint_mixture_integrates_to_one_over_what_is_free() -> None:
    head, hidden = joint()
    step = 0.2
    line = torch.arange(-16.0, 16.0, step, dtype=torch.float64)
    values = torch.zeros(len(line) ** 2, 6, dtype=torch.float64)
    values[:, [0, 2]] = torch.cartesian_prod(line, line)
    free = torch.from_numpy(FREE[3]).expand(len(values), -1)  # Tetragonal: two components.
    with torch.no_grad():
        density = head(hidden[:1].expand(len(values), -1), values, free).sum(-1)
    assert abs(float(density.exp().sum()) * step**2 - 1) < 1e-4


def test_cells_of_the_joint_mixture_follow_its_density() -> None:
    head, hidden = joint(1)
    rows = 4_000
    with torch.no_grad():
        one = head.distribution(hidden, lambda logits: logits(hidden), 0.7)
    assert isinstance(one, GaussianMixture)
    many = GaussianMixture(
        log_weights=one.log_weights.expand(rows, -1),
        means=one.means.expand(rows, -1, -1),
        factors=one.factors.expand(rows, -1, -1, -1),
    )
    drawn = many.draw(numbers(rows, 12), torch.ones(rows, 6, dtype=torch.bool), torch.zeros(rows, 6)).numpy()
    covariances = (one.factors @ one.factors.mT)[0].numpy()
    weights, means = one.log_weights[0].exp().numpy(), one.means[0].numpy()
    directions = np.random.default_rng(0).normal(size=(4, 6))
    for direction in directions:  # Along any direction a mixture of normals.
        along, centres = drawn[:, NESTED_ORDER] @ direction, means @ direction
        widths = np.sqrt(np.einsum("i,kij,j->k", direction, covariances, direction))
        cumulative = lambda x, c=centres, w=widths: norm.cdf((x[:, None] - c) / w) @ weights  # noqa: E731
        assert kstest(along, cumulative).pvalue > 0.01


def test_a_component_is_drawn_given_those_that_the_family_fixes() -> None:
    """Training tells fixed components as 0 minus the mean, in units; the draw told the mean."""
    torch.manual_seed(3)
    head, rows = CellHead(16, 3), 4_000
    with torch.no_grad():
        for weights in head.parameters():
            weights.mul_(3.0)
    hidden = torch.randn(1, 16).expand(rows, -1)
    free = torch.tensor([True, False, True, False, False, False]).expand(rows, -1)
    fixed = torch.tensor([0.0, -2.0, 0.0, 1.5, 0.0, 0.0]).expand(rows, -1)
    with torch.no_grad():
        distribution = head.distribution(hidden, lambda logits: logits(hidden), 1.0)
        drawn = distribution.draw(numbers(rows, 12), free, fixed)
        weights, means, widths = head.parameters_of(hidden, drawn, 2)
        quantiles = (weights.exp() * torch.special.ndtr((drawn[:, 2:3] - means) / widths.exp())).sum(-1)
        others = head.parameters_of(hidden, torch.where(free, drawn, 0.0), 2)
    assert drawn[:, 1].eq(-2.0).all()
    assert drawn[:, 3].eq(1.5).all()
    assert kstest(quantiles.numpy(), "uniform").pvalue > 0.01
    assert not torch.allclose(others[1], means, atol=1e-2), "the fixed component makes no difference here"


def test_without_zuko_the_flow_is_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zuko", None)
    with pytest.raises(ValueError, match="pip install 'latentite"):
        CellFlow(8)
    assert "latentite[flow]" in FLOW_MISSING


def flow() -> tuple[CellFlow, torch.Tensor]:
    pytest.importorskip("zuko")
    torch.manual_seed(0)
    head = CellFlow(16).double()
    with torch.no_grad():
        for weights in head.parameters():
            weights.mul_(2.0)
    return head, torch.randn(1, 16, dtype=torch.float64)


def test_the_flow_is_autoregressive_and_the_density_of_each_component_integrates_to_one() -> None:
    head, hidden = flow()
    grid = torch.linspace(-9, 9, 4_001, dtype=torch.float64)
    with torch.no_grad():
        for component in (0, 2, 3):
            values = torch.full((len(grid), 6), 0.4, dtype=torch.float64)
            values[:, component] = grid
            free = torch.ones(len(grid), 6, dtype=torch.bool)
            density = head(hidden.expand(len(grid), -1), values, free)
            assert abs(float(torch.trapezoid(density[:, component].exp(), grid)) - 1) < 1e-4
            differs = ((density - density[:1]).abs() > 1e-9).any(0)
            place = NESTED_ORDER.index(component)
            assert not bool(differs[NESTED_ORDER[:place]].any())
            assert bool(differs[NESTED_ORDER[place:]].all())


def test_cells_of_the_flow_follow_its_density() -> None:
    head, hidden = flow()
    rows = 2_000
    with torch.no_grad():
        distribution = head.distribution(hidden.expand(rows, -1), lambda logits: logits(hidden), 1.0)
        free = torch.from_numpy(FREE[5]).expand(rows, -1)
        drawn = distribution.draw(numbers(rows, 12), free, torch.zeros(rows, 6, dtype=torch.float64))
        grid = torch.zeros(4_001, 6, dtype=torch.float64)
        grid[:, 0] = torch.linspace(-9, 9, 4_001)
        cubic = torch.from_numpy(FREE[5]).expand(len(grid), -1)
        density = head(hidden.expand(len(grid), -1), grid, cubic)[:, 0].exp()
    assert bool((drawn[:, 1:] == 0).all())
    cumulative = np.concatenate([[0.0], torch.cumulative_trapezoid(density, grid[:, 0]).numpy()])
    assert kstest(drawn[:, 0].numpy(), lambda x: np.interp(x, grid[:, 0].numpy(), cumulative)).pvalue > 0.01


def tiny(lattice: LatticeDensity, coords: CoordDensity) -> CrystalGPT:
    """An untrained network with volumes of 15 Å^3 per atom."""
    if lattice is LatticeDensity.FLOW:
        pytest.importorskip("zuko")
    torch.manual_seed(0)
    size = GPTSize(
        d_model=32,
        num_layers=2,
        num_heads=2,
        dim_feedforward=64,
        dropout=0.0,
        num_mixtures=3,
        num_coord_mixtures=4,
    )
    limits = GPTLimits(max_atoms=16, max_orbits=8, max_elements=4)
    model = CrystalGPT(size, limits, lattice_density=lattice, coord_density=coords).eval()
    with torch.no_grad():
        model.element_volume.fill_(2.7)
        model.cell_std.fill_(0.15)
    return model


def log_prob(model: CrystalGPT, batch: OrbitBatch) -> LogProbability:
    reductions = torch.from_numpy(minkowski_reductions(batch.primitive_lattices().numpy()))
    return model.log_prob(PaddedOrbits.of(batch), place_crystals(batch, reductions), None)


DENSITIES = [
    (LatticeDensity.AR, CoordDensity.BINS),
    (LatticeDensity.GMM, CoordDensity.VON_MISES),
    (LatticeDensity.FLOW, CoordDensity.WRAPPED_NORMAL),
    (LatticeDensity.AR, CoordDensity.WRAPPED_CAUCHY),
]


@pytest.mark.parametrize(("lattice", "coords"), DENSITIES)
def test_own_samples_have_the_log_probability_that_the_sampler_told_with_every_density(
    lattice: LatticeDensity, coords: CoordDensity
) -> None:
    model = tiny(lattice, coords)
    uniforms = numbers(24, num_uniforms(model.limits.max_orbits))
    sampler = Sampler(model, DrawSettings())
    drawn = sampler.draw(uniforms)
    with torch.no_grad():
        told = log_prob(model, drawn.orbits)
    assert (told.total - drawn.log_prob).abs().max() < 1e-4
    assert float(told.place_choices[..., 1:].abs().sum()) > 0
    rows = torch.tensor([3, 17])
    part, same = sampler.draw(uniforms[rows]).orbits, drawn.orbits.select(rows)
    assert part.position.equal(same.position)
    assert torch.allclose(part.coords, same.coords, atol=1e-5)
    assert torch.allclose(part.cell, same.cell, atol=1e-5)


@pytest.fixture
def crystals(rocksalt: CrystalArrays, perovskite: CrystalArrays) -> OrbitBatch:
    return OrbitBatch.pack([encode(rocksalt), encode(perovskite), encode_p1(rocksalt)])


@pytest.mark.parametrize(("lattice", "coords"), DENSITIES[1:])
def test_every_density_learns(lattice: LatticeDensity, coords: CoordDensity, crystals: OrbitBatch) -> None:
    model = tiny(lattice, coords).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        told = log_prob(model, crystals)
        loss = -(told.cell + told.coords).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_the_default_network_is_as_it_was_before_there_was_a_choice(crystals: OrbitBatch) -> None:
    """Names, shapes, initial values and log-probabilities, from the code before (429c30a).

    The coordinates are from efe3419: -121.54213 before, when candidates where atoms overlap had their share.
    """
    torch.manual_seed(0)
    size = GPTSize(d_model=32, num_layers=2, num_heads=2, dim_feedforward=64, dropout=0.0)
    model = CrystalGPT(size, GPTLimits(max_atoms=24, max_orbits=24, max_elements=5)).eval()
    shapes = "\n".join(f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    digest = hashlib.sha256(shapes.encode()).hexdigest()
    assert digest == "f8ba60525de6c24e8fba159eec1db4003d82bd914418df2a1259547d3079c65b"
    with torch.no_grad():
        told = log_prob(model, crystals)
    expected = {
        "group": [-5.40899, -5.26133, -5.96533],
        "letters": [-6.18557, -8.88638, -5.19976],
        "elements": [-9.56027, -14.33563, -37.41178],
        "cell": [-3.66486, -2.73922, -10.23291],
        "coords": [0.0, 0.0, -120.14119],
    }
    for part, values in expected.items():
        assert getattr(told, part).tolist() == pytest.approx(values, abs=1e-3)
