"""Permutations that are evaluated place by place shuffle like true ones; sets of ids are what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dri_iqa.data.order import IdSet, Permutation
from dri_iqa.seeds import Purpose


def shuffles(count: int, times: int) -> np.ndarray:
    """One permutation of 0..count-1 a row."""
    places = np.arange(count)
    return np.array(
        [Permutation(count, seed, Purpose.SCHEDULE, 3)(places) for seed in range(times)]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000, 4096, 10_007])
def test_every_place_once(count: int) -> None:
    order = Permutation(count, 0, Purpose.SCHEDULE, 1)
    whole = order(np.arange(count))
    assert np.array_equal(np.sort(whole), np.arange(count))
    some = np.random.default_rng(0).permutation(count)[:50]
    assert np.array_equal(order(some), whole[some]), "each place by itself"


def test_the_same_everywhere() -> None:
    """Integer arithmetic alone; these numbers are part of the reproducibility contract."""
    assert Permutation(10, 0, Purpose.SCHEDULE, 0)(np.arange(10)).tolist() == [
        6,
        0,
        4,
        1,
        9,
        7,
        2,
        5,
        3,
        8,
    ]
    far = Permutation(10**9, 5, Purpose.SCHEDULE, 2)(np.array([0, 1, 999_999_999]))
    assert far.tolist() == [30268132, 87740715, 88223920]


def test_tiny_ranges_come_in_every_order_equally_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for row in shuffles(4, 960).tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 24
    assert stats.chisquare([*counts.values()]).pvalue > 1e-3


def test_every_image_comes_equally_often_at_every_place_and_after_every_other() -> None:
    count, times = 24, 1200
    rows = shuffles(count, times)
    at, after = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(at, (np.arange(count)[None].repeat(times, 0), rows), 1)
    np.add.at(after, (rows[:, :-1], rows[:, 1:]), 1)
    pairs = after[~np.eye(count, dtype=bool)]
    assert chance(at, times / count, (count - 1) ** 2) > 1e-3
    assert chance(pairs, times / count, pairs.size - 1) > 1e-3


def chance(found: np.ndarray, expected: float, freedom: int) -> float:
    return float(stats.chi2.sf(((found - expected) ** 2 / expected).sum(), freedom))


@pytest.mark.parametrize("count", [1000, 250_000])
def test_images_move_as_far_and_neighbours_part_as_widely_as_in_a_true_shuffle(count: int) -> None:
    """Mean displacement n/3, mean distance of neighbours n/3, no correlation between an order and the next epoch's."""
    places = np.arange(count)
    true = np.random.default_rng(0).permutation(count)
    orders = [Permutation(count, 0, Purpose.SCHEDULE, epoch)(places) for epoch in range(2)]
    for order in orders:
        moved = np.abs(order - places)
        apart = np.abs(np.diff(order))
        spread = 5 / np.sqrt(count)
        assert moved.mean() / count == pytest.approx(1 / 3, abs=spread)
        assert apart.mean() / count == pytest.approx(1 / 3, abs=spread)
        assert stats.ks_2samp(moved, np.abs(true - places)).pvalue > 1e-3
        assert stats.ks_2samp(apart, np.abs(np.diff(true))).pvalue > 1e-3
        rising = np.diff(order) > 0
        assert rising.mean() == pytest.approx(0.5, abs=spread)
        assert abs(np.corrcoef(order, places)[0, 1]) < spread
        # the last digits, which a poor mixing would leave in step
        assert stats.chisquare(np.bincount(order[: count // 3] % 16)).pvalue > 1e-3
    assert abs(np.corrcoef(*orders)[0, 1]) < spread


@pytest.mark.parametrize(
    "ids", [(), (5,), range(4, 9), range(0, 20, 3), (9, 1, 2, 3, 7), range(0), [3, 4, 5, 8, 9]]
)
def test_a_set_of_ids_is_what_it_was_made_of(ids: object) -> None:
    members = sorted(ids)  # pyright: ignore
    found = IdSet.of(ids)  # pyright: ignore
    assert [*found] == members
    assert len(found) == len(members)
    assert found.take(np.arange(len(members))).tolist() == members
    assert [number for number in range(-2, 22) if number in found] == members
    assert found == IdSet.of(members[::-1]) == IdSet.of(found)
    assert [*IdSet.rest(21, found)] == [number for number in range(21) if number not in members]


def test_a_set_names_nothing_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        IdSet.of([1, 2, 1])
    assert "1" not in IdSet.of([1])
