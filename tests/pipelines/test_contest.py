"""What a paired comparison with the champion says, and what is not compared at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.contest import incomparable, judge
from pipelines.runtime.promotion import Comparison

GROUPS = np.repeat(np.arange(12), 5)
GIVEN = np.random.default_rng(0).normal(size=60)


def noisy(spread: float, seed: int) -> np.ndarray:
    return GIVEN + spread * np.random.default_rng(seed).normal(size=60)


def judged(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray = GROUPS) -> Comparison:
    return judge(ours, theirs, GIVEN, groups, champion="4", seed=0, n=300)


def test_better_is_what_an_interval_above_zero_says() -> None:
    good, bad = noisy(0.3, 1), noisy(2.0, 2)
    assert judged(good, bad).better
    assert not judged(bad, good).better
    assert not judged(good, good).better, "an equal one is not better"
    assert not judged(good, 3 * good + 1).better, "nor one that ranks alike"
    near = judged(noisy(0.50, 1), noisy(0.51, 2))
    assert near.numbers["srocc_difference_low"] < 0 < near.numbers["srocc_difference_high"]
    assert not near.better


def test_a_judgement_resamples_scenes_not_images() -> None:
    """The champion is upside down in one scene of six: as images these are many, as scenes too few to tell."""
    rng = np.random.default_rng(0)
    group_N, given_N = np.repeat(np.arange(6), 20), rng.normal(size=120)
    ours_N, theirs_N = (given_N + 0.3 * rng.normal(size=120) for _ in range(2))
    theirs_N[:20] = -given_N[:20]
    settings: dict[str, Any] = {"champion": "4", "seed": 0, "n": 1000}
    assert judge(ours_N, theirs_N, given_N, np.arange(120), **settings).better
    assert not judge(ours_N, theirs_N, given_N, group_N, **settings).better


def test_what_cannot_be_resampled_or_ranked() -> None:
    good, bad = noisy(0.3, 1), noisy(2.0, 2)
    assert not judged(good, bad, np.zeros(60)).better, "one scene says nothing of others"
    constant = np.zeros(60)
    assert not judged(constant, bad).better
    assert judged(bad, constant).better
    assert not judged(constant, constant).better
    assert "predictions are constant" in judged(bad, constant).text
    assert not judge(good, bad, GIVEN, GROUPS, champion="4", seed=0, n=0).better


def test_only_the_same_test_of_the_same_scores_is_compared() -> None:
    facts = {"data": "sample", "kind": "pseudo", "manifest": "a", "split": "b"}
    assert incomparable(facts, dict(facts)) == ""
    said = {key: incomparable(facts, facts | {key: "x"}) for key in facts}
    assert all(said.values())
    assert len(set(said.values())) == 4
    assert "sample (x scores)" in said["kind"]
    assert incomparable(facts, {}), "a version of unknown origin"
