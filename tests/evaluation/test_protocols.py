"""A protocol's tables against what they are by definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from dri_iqa.evaluation.metrics import (
    mean_paired_interval,
    paired_interval,
    resplit_interval,
    srocc,
)
from dri_iqa.evaluation.protocols import (
    Outcome,
    cross_rows,
    difference_rows,
    run_rows,
    subset_rows,
    variant_rows,
)


def one(variant: str, split: int, crop_seed: int, noise: float, **changes) -> Outcome:
    """Predictions of 40 images in 10 scenes that follow the given scores up to noise."""
    rng = np.random.default_rng(split)  # the same images for all variants of a split
    given = rng.random(40)
    draws = np.random.default_rng([split, crop_seed, len(variant)])
    values = {
        "variant": variant,
        "trained_on": "live",
        "tested_on": "live",
        "split": split,
        "seed": 0,
        "crop_seed": crop_seed,
        "predicted_N": given + noise * draws.standard_normal(40),
        "given_N": given,
        "group_N": np.repeat(np.arange(10), 4),
        "subset_N": np.tile(np.array(["blur", "jpeg"]), 20),
        "trained_images": 160,
    }
    return Outcome(**(values | changes))


NOISE = {"v1": 0.4, "proposed": 0.2}


@pytest.fixture(scope="module")
def tested() -> list[Outcome]:
    cells = itertools.product(NOISE.items(), range(3), range(2))
    return [one(name, split, crops, noise) for (name, noise), split, crops in cells]


def test_every_test_is_a_row_with_scipys_figures(tested: list[Outcome]) -> None:
    rows = run_rows(tested)
    assert len(rows) == 12
    for row, part in zip(rows, tested, strict=True):
        assert row["srocc"] == pytest.approx(
            stats.spearmanr(part.predicted_N, part.given_N).statistic, abs=1e-12
        )
        assert (row["images"], row["groups"], row["note"]) == (40, 10, "")


def test_crop_seeds_are_averaged_before_the_spread_over_trainings(tested: list[Outcome]) -> None:
    rows = run_rows(tested)
    first, second = variant_rows(rows)
    assert (first["variant"], second["variant"]) == ("v1", "proposed")
    by_hand = [
        np.mean([r["srocc"] for r in rows if (r["variant"], r["split"]) == ("v1", split)])
        for split in range(3)
    ]
    assert first["trainings"] == first["splits"] == 3
    assert first["srocc"] == pytest.approx(np.mean(by_hand))
    assert first["srocc_median"] == pytest.approx(np.median(by_hand))
    assert first["srocc_std"] == pytest.approx(np.std(by_hand, ddof=1))
    assert first["srocc_crops"] > 0
    (single,) = variant_rows([rows[0]])
    assert (single["srocc_std"], single["srocc_crops"]) == (None, 0)


def test_differences_pair_the_same_images_of_the_same_trainings(tested: list[Outcome]) -> None:
    (row,) = difference_rows(tested, n=300)
    assert row["difference"] == "proposed - v1"
    means = {}
    for name in NOISE:
        for split in range(3):
            parts = [o for o in tested if (o.variant, o.split) == (name, split)]
            predicted = np.mean([o.predicted_N for o in parts], axis=0)
            means[name, split] = srocc(predicted, parts[0].given_N)
    by_hand = [means["proposed", split] - means["v1", split] for split in range(3)]
    assert row["srocc"] == pytest.approx(np.mean(by_hand))
    assert row["better_in"] == sum(value > 0 for value in by_hand)
    # a t-test with the variance of splits that share images: 40 were tested for 160 that were trained on
    half = stats.t.ppf(0.975, 2) * np.std(by_hand, ddof=1) * np.sqrt(1 / 3 + 40 / 160)
    assert row["srocc_low"] == pytest.approx(np.mean(by_hand) - half)
    assert row["srocc_high"] == pytest.approx(np.mean(by_hand) + half)


def test_of_a_single_split_scenes_are_resampled(tested: list[Outcome]) -> None:
    first = [o for o in tested if o.split == 0 and o.crop_seed == 0]
    (row,) = difference_rows(first, n=300)
    a, b = (next(o for o in first if o.variant == name) for name in ("proposed", "v1"))
    wanted = paired_interval(srocc, a.predicted_N, b.predicted_N, a.given_N, a.group_N, n=300)
    assert (row["srocc"], row["srocc_low"], row["srocc_high"]) == (
        wanted.estimate, wanted.low, wanted.high,
    )  # fmt: skip


def test_training_seeds_of_a_split_are_averaged_before_splits_are_compared() -> None:
    cells = itertools.product(NOISE.items(), range(2), range(2))
    tested = [one(name, split, seed, noise, seed=seed) for (name, noise), split, seed in cells]
    (row,) = difference_rows(tested, n=10)
    assert (row["trainings"], row["splits"]) == (4, 2)
    gains = [
        np.mean(
            [
                srocc(o.predicted_N, o.given_N)
                for o in tested
                if (o.variant, o.split) == ("proposed", split)
            ]
        )
        - np.mean(
            [
                srocc(o.predicted_N, o.given_N)
                for o in tested
                if (o.variant, o.split) == ("v1", split)
            ]
        )
        for split in range(2)
    ]
    wanted = resplit_interval(gains, test_per_train=0.25)
    assert (row["srocc_low"], row["srocc_high"]) == pytest.approx((wanted.low, wanted.high))


def test_splits_that_share_images_do_not_make_a_difference_out_of_none() -> None:
    """A method against itself with other seeds: the plain t-test finds a difference far too often."""
    rng = np.random.default_rng(0)
    found = {"corrected": 0, "plain": 0}
    for _ in range(400):
        noise = rng.standard_normal(
            500
        )  # what each image adds to the difference of two equal methods
        drawn = [noise[rng.permutation(500)[:250]].mean() for _ in range(10)]
        for name, share in (("corrected", 1.0), ("plain", 0.0)):
            interval = resplit_interval(drawn, test_per_train=share)
            found[name] += not interval.low <= 0 <= interval.high
    assert found["corrected"] < 0.07 * 400 < 0.2 * 400 < found["plain"]
    with pytest.raises(ValueError, match="at least two"):
        resplit_interval([0.1], test_per_train=0.25)


def test_a_training_that_only_one_variant_has_is_left_out_of_the_difference(
    tested: list[Outcome],
) -> None:
    fewer = [o for o in tested if (o.variant, o.split) != ("v1", 2)]
    (row,) = difference_rows(fewer, n=50)
    assert row["trainings"] == 2
    assert difference_rows([o for o in tested if o.variant == "v1"], n=50) == []


def test_other_images_under_the_same_split_are_refused(tested: list[Outcome]) -> None:
    changed = [
        one(o.variant, o.split, o.crop_seed, 0.1, given_N=o.given_N[::-1].copy())
        if o.variant == "v1"
        else o
        for o in tested
    ]
    with pytest.raises(ValueError, match="same images"):
        difference_rows(changed, n=10)


def test_one_trial_is_the_plain_paired_interval() -> None:
    rng = np.random.default_rng(0)
    true = rng.random(60)
    a, b = true + 0.1 * rng.standard_normal(60), true + 0.3 * rng.standard_normal(60)
    groups = np.repeat(np.arange(20), 3)
    plain = paired_interval(srocc, a, b, true, groups, n=200)
    assert (
        mean_paired_interval(srocc, [(a, b)] * 3, true, groups, n=200) == plain
    )  # nothing is won by repeating
    with pytest.raises(ValueError, match="at least one"):
        mean_paired_interval(srocc, [], true)


def test_subsets_are_columns(tested: list[Outcome]) -> None:
    first, _ = subset_rows(tested)
    assert list(first) == ["variant", "all", "blur", "jpeg"]
    assert 0 < first["blur"] <= 1


def test_the_matrix_of_data_sets_has_holes_where_nothing_was_tested() -> None:
    tests = [
        one("proposed", 0, 0, 0.1),
        one("proposed", 0, 0, 0.3, tested_on="csiq"),
        one("proposed", 0, 0, 0.1, trained_on="csiq", tested_on="csiq"),
    ]
    rows = run_rows(tests)
    first, second = cross_rows(rows)
    assert (first["trained_on"], first["live"]) == ("live", rows[0]["srocc"])
    assert second == {"trained_on": "csiq", "live": None, "csiq": rows[2]["srocc"]}
