"""The distribution of chains against the stated probabilities, on 20,000 draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dri_iqa.config import ConfigError, DegradeConfig
from dri_iqa.degradations import GROUPS, OPERATORS, SETS, Recipe, draw_recipe
from dri_iqa.degradations.chain import draw_length, level_probabilities

DRAWS = 20_000


def draw(count: int = DRAWS, seed: int = 0, **options: Any) -> list[Recipe]:
    config = DegradeConfig(**options)
    rng = np.random.default_rng(seed)
    return [draw_recipe(rng, config) for _ in range(count)]


@pytest.fixture(scope="module")
def recipes() -> list[Recipe]:
    return draw()


def fits(observed: list[int], probabilities: list[float]) -> bool:
    expected = np.array(probabilities) * sum(observed)
    return stats.chisquare(observed, expected).pvalue > 1e-4


def test_length_is_binomial(recipes: list[Recipe]) -> None:
    counts = Counter(len(recipe) for recipe in recipes)
    assert max(counts) == 6
    assert fits([counts[n] for n in range(7)], [math.comb(6, n) / 64 for n in range(7)])


def test_a_group_is_used_at_most_once_and_all_equally(recipes: list[Recipe]) -> None:
    groups = [[OPERATORS[step.name].group for step in recipe.steps] for recipe in recipes]
    assert all(len(set(used)) == len(used) for used in groups)
    counts = Counter(group for used in groups for group in used)
    assert fits([counts[group] for group in GROUPS], [1 / 7] * 7)
    assert abs(sum(counts.values()) / DRAWS - 3) < 0.05


def test_types_are_uniform_within_groups(recipes: list[Recipe]) -> None:
    counts = Counter(step.name for recipe in recipes for step in recipe.steps)
    assert len(counts) == 24
    for names in GROUPS.values():
        assert fits([counts[name] for name in names], [1 / len(names)] * len(names))


def test_order_is_uniform(recipes: list[Recipe]) -> None:
    pairs = Counter()
    for recipe in recipes:
        groups = [OPERATORS[step.name].group for step in recipe.steps]
        pairs.update((a, b) for i, a in enumerate(groups) for b in groups[i + 1 :])
    for a in GROUPS:
        for b in GROUPS:
            if a < b:
                assert fits([pairs[a, b], pairs[b, a]], [0.5, 0.5])


def test_every_group_comes_equally_often_at_every_place() -> None:
    places = [Counter() for _ in GROUPS]
    orders = Counter()
    for recipe in draw(p_keep=1.0, n_max=7, seed=1):
        groups = tuple(OPERATORS[step.name].group for step in recipe.steps)
        orders[groups[:3]] += 1
        for place, group in zip(places, groups, strict=True):
            place[group] += 1
    for place in places:
        assert fits([place[group] for group in GROUPS], [1 / 7] * 7)
    assert len(orders) == 7 * 6 * 5
    assert fits(list(orders.values()), [1 / 210] * 210)


def test_length_level_and_place_are_independent(recipes: list[Recipe]) -> None:
    table = np.zeros((6, 5))
    for recipe in recipes:
        for place, step in enumerate(recipe.steps):
            table[place, step.level - 1] += 1
    assert stats.chi2_contingency(table)[1] > 1e-4  # pyright: ignore[reportOperatorIssue]


def test_levels_are_half_normal(recipes: list[Recipe]) -> None:
    stated = [0.2929, 0.2704, 0.2127, 0.1426, 0.0814]
    assert np.allclose(level_probabilities(DegradeConfig()), stated, atol=5e-5)
    counts = Counter(step.level for recipe in recipes for step in recipe.steps)
    assert fits(
        [counts[level] for level in range(1, 6)], list(level_probabilities(DegradeConfig()))
    )


def test_signs_are_even_where_there_are_signs(recipes: list[Recipe]) -> None:
    signs = Counter((step.name, step.sign) for recipe in recipes for step in recipe.steps)
    assert {name for name, sign in signs if sign < 0} == {"mean_shift", "linear_contrast"}
    for name in ("mean_shift", "linear_contrast"):
        assert fits([signs[name, 1], signs[name, -1]], [0.5, 0.5])


def test_uniform_levels_and_other_sigma() -> None:
    counts = Counter(
        step.level for recipe in draw(4000, level_dist="uniform") for step in recipe.steps
    )
    assert fits([counts[level] for level in range(1, 6)], [0.2] * 5)
    narrow = level_probabilities(DegradeConfig(level_sigma=1.0))
    counts = Counter(step.level for recipe in draw(4000, level_sigma=1.0) for step in recipe.steps)
    assert fits([counts[level] for level in range(1, 6)], list(narrow))
    assert narrow[0] > 0.5


def test_n_max_and_keep_probability() -> None:
    counts = Counter(len(recipe) for recipe in draw(4000, n_max=2, p_keep=0.8))
    assert fits([counts[n] for n in range(3)], [0.04, 0.32, 0.64])
    assert {len(recipe) for recipe in draw(50, p_keep=1.0)} == {6}
    assert {len(recipe) for recipe in draw(50, p_keep=1.0, n_max=7)} == {7}
    assert {len(recipe) for recipe in draw(50, p_keep=0.0)} == {0}


def test_keep_probability_per_group() -> None:
    keep = dict.fromkeys(GROUPS, 0.0) | {"noise": 1.0, "blur": 0.25}
    counts = Counter(
        OPERATORS[step.name].group
        for recipe in draw(8000, p_keep=keep, n_max=7)
        for step in recipe.steps
    )
    assert set(counts) == {"noise", "blur"}
    assert counts["noise"] == 8000
    assert fits([counts["blur"], 8000 - counts["blur"]], [0.25, 0.75])


def test_min_ops_conditions_the_length() -> None:
    counts = Counter(len(recipe) for recipe in draw(6000, min_ops=2))
    weights = np.array([math.comb(6, n) for n in range(2, 7)], float)
    assert set(counts) == set(range(2, 7))
    assert fits([counts[n] for n in range(2, 7)], list(weights / weights.sum()))


def test_given_length() -> None:
    rng = np.random.default_rng(0)
    for length in range(7):
        assert all(len(draw_recipe(rng, length=length)) == length for _ in range(20))
    counts = Counter(draw_length(rng, DegradeConfig()) for _ in range(4000))
    assert fits([counts[n] for n in range(7)], [math.comb(6, n) / 64 for n in range(7)])


def test_tables_with_signs_of_their_own_draw_none() -> None:
    for levels in ("kadis", "arniqa"):
        assert all(step.sign == 1 for recipe in draw(500, levels=levels) for step in recipe.steps)


def test_other_sets_use_their_operators() -> None:
    for name in ("kadid25", "qpt"):
        used = {step.name for recipe in draw(3000, set=name) for step in recipe.steps}
        assert used == {operator for names in SETS[name].values() for operator in names}


def test_realesrgan_keeps_its_order_and_probabilities() -> None:
    recipes = draw(4000, set="realesrgan")
    order = ["blur", "resize", "gaussian", "poisson", "jpeg"]
    places = {
        f"esrgan_{name}{suffix}": i + 10 * bool(suffix)
        for suffix in ("", "2")
        for i, name in enumerate(order)
    }
    counts: Counter[str] = Counter()
    for recipe in recipes:
        names = [step.name for step in recipe.steps]
        counts.update(names)
        rest = [places[name] for name in names if name != "esrgan_sinc"]
        assert rest == sorted(rest)
        if "esrgan_sinc" in names:
            assert names.index("esrgan_sinc") >= len(names) - 2
            counts["sinc last"] += names[-1] == "esrgan_sinc"
        assert ("esrgan_gaussian" in names) != ("esrgan_poisson" in names)
    for name, probability in {
        "esrgan_blur": 1.0,
        "esrgan_blur2": 0.8,
        "esrgan_resize": 0.9,
        "esrgan_resize2": 0.7,
        "esrgan_gaussian": 0.5,
        "esrgan_jpeg": 1.0,
        "esrgan_sinc": 0.8,
        "sinc last": 0.4,
    }.items():
        assert abs(counts[name] / 4000 - probability) < 0.03, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_keep": 1.5}, "p_keep: got 1.5"),
        ({"p_keep": {"nose": 0.5}}, r"unknown group 'nose' \(did you mean noise\?\)"),
        ({"p_keep": {"noise": 0.5}}, "no probability for blur"),
        ({"min_ops": 7}, "min_ops: got 7, expected 0 to 6"),
        ({"min_ops": 1, "p_keep": 0.0}, "min_ops: got 1, expected 0 to 0"),
        ({"level_sigma": 0.0}, "level_sigma: got 0"),
    ],
)
def test_impossible_chains_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(10, seed=0, **options)


def test_drawing_is_a_function_of_the_generator() -> None:
    assert draw(50, seed=3) == draw(50, seed=3) != draw(50, seed=4)
