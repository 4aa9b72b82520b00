"""Asks, sizes and plans: what a model can do, how many atoms are drawn, which crystal gets which ask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from tiny_ldm import ALL_CONDITIONS, NUM_ATOMS, TRAIN_SIZES, build_asks, tiny_network

from latentite.generators.asks import Ask, element_rules
from latentite.generators.latent.generator import ask_warnings
from latentite.generators.sizes import (
    NumAtoms,
    choose_num_atoms,
    parse_num_atoms,
    plan_jobs,
    read_num_atoms,
)
from latentite.generators.told import unusual_values
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.conditions import ConditionModule, ConditionModuleConfig
from latentite.nn.denoiser import TokenIndex

PLAIN = tiny_network()
TOLD = tiny_network(conditions=(*ALL_CONDITIONS, NUM_ATOMS))
CSP = tiny_network(conditions=ALL_CONDITIONS, atom_type_predict=False)


def test_a_formula_tells_the_model_all_that_follows_from_it() -> None:
    asks = build_asks(TOLD, train_sizes=TRAIN_SIZES, conditions="band_gap=1.5", formulas=["TiO2"])
    # of 3, 6, 9 and 12 atoms all but 9 occur in training
    assert [(ask.label, ask.num_atoms, ask.weight) for ask in asks] == [
        ("TiO2", 3, 2.0),
        ("TiO2 x 2", 6, 6.0),
        ("TiO2 x 4", 12, 4.0),
    ]
    assert asks[1].composition == (8, 8, 8, 8, 22, 22)
    assert asks[1].conditions == {
        "band_gap": 1.5,
        "composition": {"O": pytest.approx(2 / 3), "Ti": pytest.approx(1 / 3)},
        "chemical_system": ("O", "Ti"),
    }
    assert ask_warnings(TOLD, asks) == []


def test_formula_units_are_drawn_as_often_as_their_sizes_occur() -> None:
    asks = build_asks(PLAIN, train_sizes=TRAIN_SIZES, formulas=["NaCl", "TiO2"])
    jobs = plan_jobs(range(8000), seed=5, sizes=TRAIN_SIZES, asks=asks, num_samples=4000)
    assert {asks[ask].label.split(" ")[0] for ask in jobs.asks[:4000].unique().tolist()} == {"NaCl"}
    second = jobs.num_atoms[4000:]
    counts = [int((second == size).sum()) for size in (3, 6, 12)]
    assert sum(counts) == 4000
    assert chisquare(counts, [4000 * weight / 12 for weight in (2, 6, 4)]).pvalue > 0.01
    given = build_asks(PLAIN, train_sizes=TRAIN_SIZES, formulas=["TiO2"], formula_units=[1, 3])
    assert [(ask.num_atoms, ask.weight) for ask in given] == [(3, 1.0), (9, 1.0)]


def test_a_number_far_from_all_that_was_seen_is_asked_with_a_warning() -> None:
    config = ConditionConfig(name="band_gap", unit="eV")
    module = ConditionModule(ConditionModuleConfig(conditions=[config], hidden_size=8))
    module.fit_statistics({"band_gap": torch.tensor([0.0, 1.0, 2.0, 3.0])})
    asked = lambda value: [Ask(request=0, conditions={"band_gap": value})]  # noqa: E731
    assert unusual_values(module, asked(5.0)) == []
    (sentence,) = unusual_values(module, asked(20.0))
    assert sentence.startswith("condition band_gap=20 is 17 standard deviations above the mean")
    (sentence,) = unusual_values(module, [*asked(-20.0), *asked(-20.0)])
    assert "19 standard deviations below" in sentence


def test_a_model_that_was_never_told_a_composition_is_asked_with_a_warning() -> None:
    for network, words in (
        (PLAIN, "is not told the composition"),
        (tiny_network(conditions=ALL_CONDITIONS[2:]), "is told the elements, but not how many of each"),
    ):
        asks = build_asks(network, train_sizes=TRAIN_SIZES, formulas=["NaCl"])
        (warning,) = ask_warnings(network, asks)
        assert words in warning
        assert "NaCl" in warning
    assert ask_warnings(PLAIN, build_asks(PLAIN, train_sizes=TRAIN_SIZES)) == []


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (
            PLAIN,
            {"conditions": "band_gap=1"},
            "condition band_gap must be one of the model's, which has: none",
        ),
        (
            TOLD,
            {"conditions": "gap=1"},
            "condition gap must be one of the model's, which has: band_gap, comp",
        ),
        (
            TOLD,
            {"conditions": "band_gap=1", "guidance": 0.0},
            "guidance must not be 0 .* ignore condition band_gap",
        ),
        (TOLD, {"formulas": ["NaCl"], "guidance": 0.0}, "guidance must not be 0 .* ignore formula NaCl"),
        (
            TOLD,
            {"conditions": "band_gap=1", "guidance": {}},
            "guidance must have a scale .* none for band_gap",
        ),
        (TOLD, {"guidance": {"gap": 1.0}}, "guidance must be for conditions of the model, .* got gap"),
        (
            TOLD,
            {"formulas": ["NaCl"], "conditions": "composition=NaCl"},
            "composition must not be given together",
        ),
        (
            TOLD,
            {"formulas": ["NaCl"], "conditions": "num_atoms=3"},
            "num_atoms must fit the formula NaCl, got 3",
        ),
        (TOLD, {"conditions": "num_atoms=13"}, "must have at most 12 atoms, .* got 13"),
        (
            PLAIN,
            {"formulas": ["Li7P3S11"]},
            "formula Li7P3S11 must fit in a size that the model has seen, up to 12",
        ),
        (
            PLAIN,
            {"formulas": ["NaCl"], "formula_units": [7]},
            "NaCl x 7 must have at most 12 atoms, .* got 14",
        ),
        (PLAIN, {"formulas": ["NaCl"], "formula_units": [0]}, "formula_units must be 1 or more, got 0"),
        (PLAIN, {"formula_units": [1]}, "formula_units must be given together with a formula"),
        (PLAIN, {"formulas": ["NaCl"], "allowed": ["Na"]}, "must not be given with a formula"),
        (PLAIN, {"required": ["Na"], "forbidden": ["Na"]}, "elements_required must be allowed .* got Na"),
        (PLAIN, {"required": ["Na"], "allowed": ["Cl"]}, "elements_required must be allowed .* got Na"),
        (PLAIN, {"allowed": ["Na"], "forbidden": ["Na"]}, "elements_allowed must leave an element"),
        (TOLD, {"required": "Na,Cl,O", "conditions": "num_atoms=2"}, "num_atoms must be at least 3"),
        (CSP, {}, "formula must be given: this model predicts structures"),
        (CSP, {"allowed": ["Na"]}, r"elements_\* must not be given: this model predicts structures"),
        (
            tiny_network(conditions=ALL_CONDITIONS[:1], atom_type_predict=False),
            {"formulas": ["NaCl"]},
            "formula must be asked of a model with a composition condition",
        ),
        (
            tiny_network(conditions=ALL_CONDITIONS, atom_type_predict=False, index=TokenIndex.NONE),
            {"formulas": ["NaCl"]},
            "formula must be asked of a model that knows which token is which atom",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused_in_one_sentence(
    network: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_asks(network, train_sizes=TRAIN_SIZES, **options)  # type: ignore[arg-type]  # one table of cases
    assert "\n" not in str(caught.value)


def test_sizes_follow_the_histogram_and_depend_on_seed_and_index_alone() -> None:
    jobs = plan_jobs(range(6000), seed=0, sizes=TRAIN_SIZES)
    counts = torch.bincount(jobs.num_atoms, minlength=13)
    expected = TRAIN_SIZES.weights / TRAIN_SIZES.weights.sum() * 6000
    assert bool((counts[expected == 0] == 0).all())
    assert chisquare(counts[expected > 0].numpy(), expected[expected > 0].numpy()).pvalue > 0.01
    some = [5990, 3, 77]
    assert plan_jobs(some, seed=0, sizes=TRAIN_SIZES).num_atoms.equal(jobs.num_atoms[some])
    assert not plan_jobs(range(6000), seed=1, sizes=TRAIN_SIZES).num_atoms.equal(jobs.num_atoms)


def test_sizes_leave_room_for_required_elements() -> None:
    asks = build_asks(PLAIN, train_sizes=TRAIN_SIZES, required="Li,Fe,P,O")
    jobs = plan_jobs(range(500), seed=0, sizes=TRAIN_SIZES, asks=asks)
    assert int(jobs.num_atoms.min()) == 4
    assert int(jobs.num_atoms.max()) == 12
    with pytest.raises(
        ValueError, match="num_atoms must allow 4 atoms, one for each required element, got 3"
    ):
        plan_jobs(range(5), seed=0, sizes=parse_num_atoms("2:3"), asks=asks)


def test_sizes_are_read_from_options_and_files(tmp_path: Path) -> None:
    assert parse_num_atoms("12").weights.nonzero().flatten().tolist() == [12]
    assert parse_num_atoms("8:10").weights.nonzero().flatten().tolist() == [8, 9, 10]
    (tmp_path / "a.csv").write_text("num_atoms,count\n2,5\n4,1\n", encoding="utf-8")
    (tmp_path / "a.json").write_text('{"2": 5, "4": 1}', encoding="utf-8")
    for name in ("a.csv", "a.json"):
        assert read_num_atoms(tmp_path / name).weights.tolist() == [0, 0, 5, 0, 1]
        assert choose_num_atoms(None, tmp_path / name, train=None).largest == 4
    assert choose_num_atoms(None, train=TRAIN_SIZES) is TRAIN_SIZES
    (tmp_path / "b.csv").write_text("size,count\n2,5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.csv must be a CSV with columns num_atoms and count"):
        read_num_atoms(tmp_path / "b.csv")
    (tmp_path / "twice.csv").write_text("num_atoms,count\n2,5\n4,1\n2,7\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"twice\.csv must be a CSV .* each number of atoms once"):
        read_num_atoms(tmp_path / "twice.csv")
    for wrong in ("0", "5:4", "a:b", "1.5", "-3:4", "8:", ":8"):
        with pytest.raises(ValueError, match=f"num_atoms must .*got {wrong}"):
            parse_num_atoms(wrong)
    with pytest.raises(
        ValueError, match="num_atoms must be at most 12, the most that the model has seen, got 20"
    ):
        choose_num_atoms("8:20", train=TRAIN_SIZES)
    with pytest.raises(ValueError, match=r"num_atoms must be given .* does not hold the sizes"):
        choose_num_atoms(None, train=None)
    with pytest.raises(ValueError, match="at least one size"):
        NumAtoms.from_histogram([0, 0])


def test_a_plan_gives_each_request_its_samples_and_refuses_places_outside() -> None:
    asks = build_asks(PLAIN, train_sizes=TRAIN_SIZES, formulas=["NaCl", "TiO2", "C"])
    jobs = plan_jobs(range(30), seed=0, sizes=TRAIN_SIZES, asks=asks, num_samples=10)
    assert [asks[ask].request for ask in jobs.asks.tolist()] == [0] * 10 + [1] * 10 + [2] * 10
    part = plan_jobs(range(12, 25), seed=0, sizes=TRAIN_SIZES, asks=asks, num_samples=10)
    assert part.asks.equal(jobs.asks[12:25])
    assert part.num_atoms.equal(jobs.num_atoms[12:25])
    with pytest.raises(ValueError, match="indices must be from 0 to 29, got 30"):
        plan_jobs(range(31), seed=0, sizes=TRAIN_SIZES, asks=asks, num_samples=10)


def test_rules_are_described() -> None:
    asks = build_asks(PLAIN, train_sizes=TRAIN_SIZES, allowed="Li,O,Fe", required="Li")
    assert asks[0].label == "only Li-O-Fe, with Li"
    assert build_asks(PLAIN, train_sizes=None, forbidden="Pb,Hg")[0].label == "without Hg-Pb"
    assert element_rules(None, None, None) is None
