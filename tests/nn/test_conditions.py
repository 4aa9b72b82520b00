"""Conditions: values of crystals, requests, statistics, hiding, and what the vector depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.nn.condition_values import (
    ConditionConfig,
    ConditionKind,
    Transform,
    condition_values,
    parse_conditions,
    request_row,
)
from latentite.nn.conditions import AbsentPlace, Conditioning, ConditionModule, ConditionModuleConfig

NAN = float("nan")
EVERY_KIND = [
    ConditionConfig(name="band_gap", unit="eV", transform=Transform.ASINH),
    ConditionConfig(name="magnetism", kind=ConditionKind.CATEGORICAL, classes=["NM", "FM", "AFM"]),
    ConditionConfig(name="space_group", kind=ConditionKind.SPACE_GROUP),
    ConditionConfig(name="chemical_system", kind=ConditionKind.CHEMICAL_SYSTEM),
    ConditionConfig(name="composition", kind=ConditionKind.COMPOSITION),
    ConditionConfig(name="num_atoms", kind=ConditionKind.NUM_ATOMS),
    ConditionConfig(name="volume_per_atom", kind=ConditionKind.VOLUME_PER_ATOM, unit="Å^3"),
]
NAMES = [config.name for config in EVERY_KIND]


def module_of(
    *configs: ConditionConfig, absent: AbsentPlace = AbsentPlace.OUTPUT, row_drop: float = 0.1
) -> ConditionModule:
    torch.manual_seed(0)
    config = ConditionModuleConfig(
        conditions=list(configs), hidden_size=16, absent=absent, row_drop_probability=row_drop
    )
    return ConditionModule(config).eval()


@pytest.fixture
def labelled(crystals: CrystalBatch) -> CrystalBatch:
    """Sixteen crystals of different density with labels, some of them missing."""
    generator = torch.Generator().manual_seed(5)
    gap = torch.rand(16, generator=generator) * 6
    magnetism = torch.randint(0, 3, (16,), generator=generator).float()
    space_group = torch.randint(1, 231, (16,), generator=generator).float()
    for i, labels in enumerate((gap, magnetism, space_group)):
        labels[i::4] = NAN
    stretch = torch.linspace(0.9, 1.2, 16)[:, None, None]
    crystals = replace(crystals, lattice=stretch * crystals.lattice)
    return crystals.with_properties({"band_gap": gap, "magnetism": magnetism, "space_group": space_group})


@pytest.fixture
def fitted(labelled: CrystalBatch) -> tuple[ConditionModule, dict[str, Tensor]]:
    module = module_of(*EVERY_KIND)
    values = module.values(labelled)
    module.fit_statistics(values)
    return module, values


def test_values_of_crystals_equal_those_of_pymatgen(labelled: CrystalBatch) -> None:
    values = condition_values(EVERY_KIND, labelled)
    for i, structure in enumerate(labelled.to_structures()):
        fractions = torch.zeros(100)
        for element, amount in structure.composition.items():
            fractions[element.Z - 1] = amount / len(structure)
        torch.testing.assert_close(values["composition"][i], fractions)
        assert values["chemical_system"][i].equal((fractions > 0).float())
        assert values["num_atoms"][i] == len(structure)
        assert values["volume_per_atom"][i].item() == pytest.approx(
            structure.volume / len(structure), rel=1e-4
        )
    assert values["band_gap"].isnan().sum() == 4


def test_derived_conditions_need_no_labels_and_others_say_which_are_there(crystals: CrystalBatch) -> None:
    derived = [config for config in EVERY_KIND if config.name in NAMES[3:]]
    assert list(condition_values(derived, crystals)) == NAMES[3:]
    with pytest.raises(
        ValueError, match="condition band_gap must be a label of the crystals, which have: none"
    ):
        condition_values(EVERY_KIND, crystals)


def test_statistics_are_those_of_the_transformed_labels_without_the_missing(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, values = fitted
    gaps = values["band_gap"][~values["band_gap"].isnan()].double().asinh()
    assert set(module.statistics) == {"band_gap", "num_atoms", "volume_per_atom"}
    assert module.statistics["band_gap"] == pytest.approx((gaps.mean().item(), gaps.std(correction=0).item()))
    normalised = module.encoder("num_atoms").prepared(values["num_atoms"])
    assert normalised.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert normalised.square().mean().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "labels", "words"),
    [
        (ConditionConfig(name="gap"), [NAN, NAN], "must have labels in the training split, got none"),
        (ConditionConfig(name="gap"), [2.5, NAN, 2.5], "must vary in the training split, got 2.5 only"),
        (
            ConditionConfig(name="gap", transform=Transform.LOG),
            [0.0, 1.0],
            "transform=log can take, got 0.0 to 1.0",
        ),
        (ConditionConfig(name="gap", kind=ConditionKind.SPACE_GROUP), [225.0, 0.0], "from 1 to 230, got 0.0"),
        (
            ConditionConfig(name="gap", kind=ConditionKind.CATEGORICAL, classes=["a", "b"]),
            [0.0, 2.0],
            "from 0 to 1, got 2.0",
        ),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    config: ConditionConfig, labels: list[float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        module_of(config).fit_statistics({"gap": torch.tensor(labels)})


def test_a_number_without_statistics_is_refused_and_statistics_travel_with_the_weights(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, values = fitted
    other = module_of(*EVERY_KIND)
    with pytest.raises(ValueError, match="band_gap must have statistics"):
        other(values)
    other.load_state_dict(module.state_dict())
    assert other(values).vector.equal(module(values).vector)


def test_a_missing_label_a_hidden_one_and_none_at_all_are_the_same(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, values = fitted
    for name in NAMES:
        missing = torch.full_like(values[name], NAN)
        reference = module({key: value for key, value in values.items() if key != name}).vector
        assert module(values | {name: missing}).vector.equal(reference)
        hidden = {name: torch.zeros(16, dtype=torch.bool)}
        assert module(values, hidden).vector.equal(reference)
        known = ~values[name].isnan() if values[name].dim() == 1 else torch.ones(16, dtype=torch.bool)
        changed = (module(values).vector - reference).abs().amax(dim=-1) > 0
        assert changed.equal(known)
    assert module({name: torch.full_like(values[name], NAN) for name in NAMES}).vector.equal(
        module.absent(16).vector
    )


def test_a_conditioning_says_of_each_condition_whether_it_is_told_and_what(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    """The denoiser once got one vector, so that nothing could be added to a block for one condition alone."""
    module, values = fitted
    shown = {name: torch.arange(16) % 3 > 0 for name in NAMES[1:]}
    told, absent = module(values, shown), module.absent(16)
    assert told.vector.shape == (16, 16)
    assert told.per_condition.shape == (16, len(NAMES), 16)
    assert not absent.present.any()
    for column, name in enumerate(module.names):
        missing = values[name].isnan() if values[name].dim() == 1 else torch.zeros(16, dtype=torch.bool)
        wanted = ~missing & shown.get(name, torch.ones(16, dtype=torch.bool))
        assert told.present[:, column].equal(wanted), name
        is_absent = (told.per_condition == absent.per_condition)[:, column].all(dim=-1)
        assert is_absent.equal(~wanted), name


def test_conditionings_are_repeated_and_joined_row_by_row(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, values = fitted
    told, absent = module(values), module.absent(2)
    joined, twice = Conditioning.concatenate([absent, told]), told.repeat(2)
    assert len(joined) == 18
    for name in ("vector", "per_condition", "present"):
        one, other = getattr(absent, name), getattr(told, name)
        assert getattr(joined, name).equal(torch.cat([one, other])), name
        assert getattr(twice, name).equal(torch.cat([other, other])), name


def test_a_hidden_value_has_no_influence_and_gradients_stay_finite(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, values = fitted
    present = module.hide(values, generator=torch.Generator().manual_seed(0))
    shifted = {name: torch.where(_row(present[name], v), v, v + 1) for name, v in values.items()}
    assert module(shifted, present).vector.equal(module(values, present).vector)
    module(values, present).vector.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def _row(mask: Tensor, like: Tensor) -> Tensor:
    return mask if like.dim() == 1 else mask.unsqueeze(-1)


def test_training_labels_are_never_written_to(fitted: tuple[ConditionModule, dict[str, Tensor]]) -> None:
    """Regression: Chemeleon2's condition dropout overwrote the labels of the data set."""
    module, values = fitted
    before = {name: value.clone() for name, value in values.items()}
    present = {name: torch.ones(16, dtype=torch.bool) for name in NAMES}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        module(values, module.hide(values, generator=generator))
        module(values, present)
    for name, value in values.items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)
        assert present[name].all()


def test_hiding_has_the_declared_probabilities_and_is_reproducible() -> None:
    configs = [
        ConditionConfig(name="a", drop_probability=0.0),
        ConditionConfig(name="b", drop_probability=0.3),
        ConditionConfig(name="c", drop_probability=1.0),
    ]
    module = module_of(*configs, row_drop=0.2)
    values = {name: torch.zeros(40_000) for name in "abc"}
    shown = module.hide(values, generator=torch.Generator().manual_seed(1))
    assert shown["a"].float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert shown["b"].float().mean().item() == pytest.approx(0.8 * 0.7, abs=0.01)
    assert not shown["c"].any()
    assert not (shown["b"] & ~shown["a"]).any()  # what hides a is the row drop, which hides b too
    again = module.hide(values, generator=torch.Generator().manual_seed(1))
    assert all(again[name].equal(shown[name]) for name in "abc")
    alone = module.hide({"b": values["b"]}, generator=torch.Generator().manual_seed(1))
    assert alone["b"].equal(shown["b"])


def test_every_value_differs_from_absent_only_with_a_vector_of_its_own() -> None:
    """Regression: where "absent" is a learned value, as in Chemeleon2, asking for that value asks for nothing."""
    for place, confused in ((AbsentPlace.INPUT, True), (AbsentPlace.OUTPUT, False)):
        module = module_of(ConditionConfig(name="gap"), absent=place)
        module.fit_statistics({"gap": torch.tensor([0.5, 2.0, 3.0])})
        mean, std = module.statistics["gap"]
        learned = module.encoder("gap").null_embed[0, 0].detach()
        value = (learned * std + mean).view(1)
        assert torch.allclose(module({"gap": value}).vector, module.absent(1).vector, atol=1e-5) == confused


def test_tensor_names_and_shapes_are_those_of_the_public_checkpoints() -> None:
    config = ConditionModuleConfig(
        conditions=[ConditionConfig(name="band_gap")], hidden_size=64, absent=AbsentPlace.INPUT
    )
    shapes = {name: tuple(value.shape) for name, value in ConditionModule(config).state_dict().items()}
    assert shapes == {
        "encoders.band_gap.null_embed": (1, 1),
        "encoders.band_gap.mean": (),
        "encoders.band_gap.std": (),
        "encoders.band_gap.embedding.0.weight": (64, 1),
        "encoders.band_gap.embedding.0.bias": (64,),
        "encoders.band_gap.embedding.2.weight": (64, 64),
        "encoders.band_gap.embedding.2.bias": (64,),
        "proj.0.weight": (64, 64),
        "proj.0.bias": (64,),
        "proj.2.weight": (64, 64),
        "proj.2.bias": (64,),
    }


def test_a_request_is_parsed_to_typed_values() -> None:
    text = (
        "band_gap=2.0, chemical_system=Li-Fe-O,magnetism=FM,space_group=Fm-3m,"
        "composition=Li(FeO2)2,num_atoms=12,volume_per_atom=1.5e1"
    )
    assert parse_conditions(text, EVERY_KIND) == {
        "band_gap": 2.0,
        "chemical_system": ("Li", "O", "Fe"),
        "magnetism": 1,
        "space_group": 225,
        "composition": {"Li": 1 / 7, "O": 4 / 7, "Fe": 2 / 7},
        "num_atoms": 12,
        "volume_per_atom": 15.0,
    }
    assert parse_conditions({"band_gap": 2, "chemical_system": ["O", "Li", "O"]}, EVERY_KIND) == {
        "band_gap": 2.0,
        "chemical_system": ("Li", "O"),
    }
    assert parse_conditions("", EVERY_KIND) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gap=2", "condition gap must be one of the model's, which has: band_gap, magnetism, space_group"),
        ("band_gap=1,band_gap=2", "band_gap must be given once"),
        ("band_gap", "must be written name=value"),
        ("band_gap=wide", "band_gap must be a number in eV, got wide"),
        ("band_gap=nan", "band_gap must be finite"),
        ("magnetism=ferro", "magnetism must be one of NM, FM, AFM, got ferro"),
        ("space_group=231", "number from 1 to 230 or a symbol such as Fm-3m, got 231"),
        ("chemical_system=Li-Xx", "chemical_system must name elements from H to Fm, got 'Xx'"),
        ("chemical_system=LiFeO", "chemical_system must name elements from H to Fm, got 'LiFeO'"),
        ("composition=Qq2", "composition must name elements from H to Fm, got 'Qq'"),
        ("composition=(LiO", "composition must be a formula such as LiFePO4, got .LiO"),
        ("num_atoms=2.5", "num_atoms must be a whole number"),
        ("volume_per_atom=-3", "volume_per_atom must be positive in Å"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_conditions(text, EVERY_KIND)


def test_an_unconditional_model_says_so() -> None:
    with pytest.raises(ValueError, match="which has: none: it is unconditional"):
        parse_conditions("band_gap=2", [])


def test_a_request_has_the_values_of_a_crystal_that_fulfils_it(labelled: CrystalBatch) -> None:
    values = condition_values(EVERY_KIND, labelled)
    for i, structure in enumerate(labelled.to_structures()):
        request = {
            "chemical_system": structure.chemical_system,
            "composition": structure.composition.formula.replace(" ", ""),
            "num_atoms": len(structure),
        }
        parsed = parse_conditions(request, EVERY_KIND)
        for config in EVERY_KIND:
            if config.name in parsed:
                torch.testing.assert_close(request_row(config, parsed[config.name]), values[config.name][i])


def test_any_subset_of_the_conditions_can_be_asked_for(
    fitted: tuple[ConditionModule, dict[str, Tensor]],
) -> None:
    module, _ = fitted
    seen = [module.absent(3).vector]
    for text in (
        "band_gap=2",
        "magnetism=FM",
        "space_group=225",
        "chemical_system=Li-O",
        "band_gap=2,num_atoms=4",
    ):
        vectors = module(module.requested(module.parse(text), 3)).vector
        assert vectors.shape == (3, 16)
        torch.testing.assert_close(vectors[0], vectors[2])
        assert all(not torch.allclose(vectors, other) for other in seen)
        seen.append(vectors)


@given(st.lists(st.sampled_from(NAMES), unique=True), st.integers(1, 5))
def test_crystals_do_not_see_each_other_s_conditions(names: list[str], count: int) -> None:
    module = module_of(*EVERY_KIND)
    for name in module.statistics:
        module.encoder(name).set_statistics(1.0, 2.0)
    generator = torch.Generator().manual_seed(count)
    values = {}
    for name in names:
        encoder = module.encoder(name)
        values[name] = torch.rand(encoder.placeholder(count).shape, generator=generator).round() + (
            1.0 if encoder.is_class else 0.0
        )
    together = module(values, num_crystals=count).vector
    for i in range(count):
        alone = module({name: value[i : i + 1] for name, value in values.items()}, num_crystals=1).vector
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "spacegroup.number"}, "name of a condition must be letters, digits and _"),
        ({"name": "a", "drop_probability": 1.5}, "drop_probability of a must be between 0 and 1, got 1.5"),
        ({"name": "a", "kind": ConditionKind.CATEGORICAL}, "classes of a must be given"),
        ({"name": "a", "classes": ["x"]}, "classes of a must be empty"),
        (
            {"name": "a", "kind": ConditionKind.COMPOSITION, "transform": Transform.LOG},
            "transform of a must be none",
        ),
    ],
)
def test_impossible_declarations_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConditionConfig(**options)


def test_impossible_modules_are_refused() -> None:
    gap = ConditionConfig(name="gap")
    with pytest.raises(ValueError, match="conditions must not be empty"):
        ConditionModuleConfig()
    with pytest.raises(ValueError, match="conditions must have different names"):
        ConditionModuleConfig(conditions=[gap, replace(gap)])
    with pytest.raises(ValueError, match="absent must be output"):
        ConditionModuleConfig(conditions=EVERY_KIND, absent=AbsentPlace.INPUT)
    with pytest.raises(ValueError, match="condition pressure must be one of the model's, which has: gap"):
        module_of(gap)({"pressure": torch.zeros(2)})
    with pytest.raises(ValueError, match="num_crystals must be given"):
        module_of(gap)({})
