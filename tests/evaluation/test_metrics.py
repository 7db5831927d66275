"""Metrics against scipy and brute force; intervals over groups; nothing undefined is hidden."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dri_iqa.evaluation import (
    bootstrap_interval,
    evaluate_table,
    krocc,
    logistic_fit,
    paired_interval,
    plcc,
    plcc_fit,
    rmse,
    srocc,
)


def sample(seed: int, count: int = 60, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true_N = rng.normal(size=count)
    pred_N = true_N + rng.normal(size=count)
    return (np.round(pred_N), np.round(true_N)) if ties else (pred_N, true_N)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_correlations_equal_scipy(seed: int, ties: bool) -> None:
    pred_N, true_N = sample(seed, ties=ties)
    assert srocc(pred_N, true_N) == pytest.approx(stats.spearmanr(pred_N, true_N)[0], abs=1e-12)
    assert plcc(pred_N, true_N) == pytest.approx(stats.pearsonr(pred_N, true_N)[0], abs=1e-12)
    assert krocc(pred_N, true_N) == pytest.approx(stats.kendalltau(pred_N, true_N)[0], abs=1e-12)


def test_kendall_with_ties_by_brute_force() -> None:
    pred_N, true_N = sample(1, 30, ties=True)
    concordant = ties_p = ties_t = pairs = 0
    for i, j in itertools.combinations(range(30), 2):
        dp, dt = np.sign(pred_N[i] - pred_N[j]), np.sign(true_N[i] - true_N[j])
        concordant += dp * dt
        ties_p += dp == 0
        ties_t += dt == 0
        pairs += 1
    expected = concordant / math.sqrt((pairs - ties_p) * (pairs - ties_t))
    assert krocc(pred_N, true_N) == pytest.approx(expected)


def test_without_ties_spearman_is_the_papers_equation_7() -> None:
    pred_N, true_N = sample(2, 40)
    difference_N = np.argsort(np.argsort(pred_N)) - np.argsort(np.argsort(true_N))
    expected = 1 - 6 * (difference_N**2).sum() / (40 * (40**2 - 1))
    assert srocc(pred_N, true_N) == pytest.approx(expected)


def test_scale_does_not_matter_even_at_the_ends_of_the_number_range() -> None:
    pred_N, true_N = sample(3)
    assert plcc(pred_N * 1e-200, true_N * 1e200) == pytest.approx(plcc(pred_N, true_N))
    assert plcc(-pred_N, true_N) == pytest.approx(-plcc(pred_N, true_N))
    assert plcc(true_N, true_N) == 1.0


def test_rmse() -> None:
    assert rmse([1.0, 2.0], [1.0, 4.0]) == pytest.approx(math.sqrt(2))
    assert math.isnan(rmse([1.0, math.nan], [1.0, 4.0]))


@pytest.mark.parametrize("metric", [srocc, plcc, krocc, plcc_fit])
@pytest.mark.parametrize(
    ("pred", "true"),
    [
        ([1.0] * 6, [1, 2, 3, 4, 5, 6]),
        ([1, 2, 3, 4, 5, 6], [2.0] * 6),
        ([1, 2, 3, math.nan, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([1, 2, 3, math.inf, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([1.0], [1.0]),
        ([], []),
    ],
)
def test_undefined_is_nan_without_a_warning(metric, pred, true) -> None:
    assert math.isnan(metric(pred, true))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 3 values, expected 2"):
        srocc([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="groups: got 1 values, expected 3"):
        bootstrap_interval(srocc, [1, 2, 3], [1, 2, 3], ["a"])


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("b4", [0.08, -0.08])
def test_logistic_fit_recovers_known_parameters(factor: float, b4: float) -> None:
    x_N = np.linspace(0, 1, 80) * factor
    b = (90.0, 12.0, 0.45 * factor, abs(b4) * factor)
    sign = np.sign(b4)
    y_N = b[1] + (b[0] - b[1]) / (1 + np.exp(-sign * (x_N - b[2]) / b[3]))
    fit = logistic_fit(x_N, y_N)
    assert fit.parameters is not None
    assert fit(x_N) == pytest.approx(y_N, abs=1e-4)
    low, high = sorted(fit.parameters[:2])
    assert (low, high) == pytest.approx((12.0, 90.0), rel=1e-4)
    assert fit.parameters[2] == pytest.approx(b[2], rel=1e-4)
    assert abs(fit.parameters[3]) == pytest.approx(b[3], rel=1e-4)
    assert plcc_fit(x_N, y_N) == pytest.approx(1.0)
    assert abs(plcc(x_N, y_N)) < 0.99


def test_logistic_fit_is_no_worse_than_raw_on_noise() -> None:
    for seed in range(20):
        pred_N, true_N = sample(seed)
        if logistic_fit(pred_N, true_N).parameters is not None:
            assert plcc_fit(pred_N, true_N) >= plcc(pred_N, true_N) - 1e-3


def test_failed_fit_falls_back_openly() -> None:
    pred, true = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    with pytest.warns(RuntimeWarning, match="fewer than 5 images; raw PLCC returned"):
        assert plcc_fit(pred, true) == pytest.approx(plcc(pred, true))
    (row,) = evaluate_table(pred, true, n=0)
    assert row["plcc_fit"] == pytest.approx(row["plcc"])
    assert "raw PLCC shown" in row["note"]


def test_bootstrap_equals_a_brute_force_over_the_same_resamples() -> None:
    from dri_iqa.seeds import Purpose, generator

    pred_N, true_N = sample(5, 24)
    groups = [f"scene{index // 4}" for index in range(24)]
    found = bootstrap_interval(plcc, pred_N, true_N, groups, seed=3, n=200, level=0.9)
    picks = generator(3, Purpose.BOOTSTRAP, 6).integers(0, 6, size=(200, 6))
    values = []
    for pick in picks:
        index = [4 * group + member for group in pick for member in range(4)]
        values.append(stats.pearsonr(pred_N[index], true_N[index])[0])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
    assert (found.resamples, found.valid) == (200, 200)
    assert found.estimate == pytest.approx(plcc(pred_N, true_N))


def test_images_of_one_scene_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(0)
    scene_true, scene_pred = rng.normal(size=12), rng.normal(size=12)
    true_N = np.repeat(scene_true, 30) + rng.normal(size=360) * 0.01
    pred_N = np.repeat(scene_true + scene_pred, 30) + rng.normal(size=360) * 0.01
    scenes = bootstrap_interval(srocc, pred_N, true_N, np.repeat(np.arange(12), 30), n=300)
    images = bootstrap_interval(srocc, pred_N, true_N, n=300)
    assert scenes.high - scenes.low > 3 * (images.high - images.low)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.6, 0
    for trial in range(120):
        pair = rng.multivariate_normal([0, 0], [[1, truth], [truth, 1]], size=60)
        found = bootstrap_interval(plcc, pair[:, 0], pair[:, 1], seed=trial, n=200)
        covered += found.low <= truth <= found.high
    assert 0.87 <= covered / 120 <= 1.0


def test_paired_interval_is_narrow_and_signed() -> None:
    rng = np.random.default_rng(1)
    true_N = rng.normal(size=150)
    shared_N = true_N + rng.normal(size=150)
    better_N, worse_N = shared_N + 0.1 * rng.normal(size=150), shared_N + rng.normal(size=150)
    found = paired_interval(srocc, better_N, worse_N, true_N, n=400)
    assert found.low > 0
    assert found.estimate == pytest.approx(srocc(better_N, true_N) - srocc(worse_N, true_N))
    a, b = (bootstrap_interval(srocc, p, true_N, n=400) for p in (better_N, worse_N))
    assert found.high - found.low < (a.high - a.low) + (b.high - b.low)
    equal = paired_interval(srocc, better_N, better_N, true_N, n=50)
    assert (equal.low, equal.estimate, equal.high) == (0.0, 0.0, 0.0)


def test_table_has_all_images_first_then_each_subset() -> None:
    pred_N, true_N = sample(7, 90)
    groups, subsets = np.arange(90) // 3, ["blur", "jpeg", "noise"] * 30
    rows = evaluate_table(pred_N, true_N, groups, subsets, n=100)
    assert [row["subset"] for row in rows] == ["all", "blur", "jpeg", "noise"]
    assert [row["images"] for row in rows] == [90, 30, 30, 30]
    assert [row["groups"] for row in rows] == [30, 30, 30, 30]
    jpeg = rows[2]
    assert jpeg["srocc"] == pytest.approx(srocc(pred_N[1::3], true_N[1::3]))
    assert jpeg["rmse"] == pytest.approx(rmse(pred_N[1::3], true_N[1::3]))
    assert jpeg["srocc_low"] < jpeg["srocc"] < jpeg["srocc_high"]
    assert rows == evaluate_table(pred_N, true_N, groups, subsets, n=100)


def test_table_reports_what_is_undefined() -> None:
    pred_N, true_N = sample(8, 20)
    pred_N[:5] = 1.0
    pred_N[5] = np.nan
    rows = evaluate_table(pred_N, true_N, None, ["flat"] * 5 + ["bad"] * 5 + ["good"] * 10, n=50)
    by_name = {row["subset"]: row for row in rows}
    assert by_name["flat"]["note"] == "predictions are constant"
    assert by_name["bad"]["note"] == "1 of 5 predictions are not finite"
    assert by_name["all"]["note"] == "1 of 20 predictions are not finite"
    assert math.isnan(by_name["all"]["srocc"])
    assert by_name["all"]["images"] == 20
    assert math.isfinite(by_name["good"]["srocc"])


def test_resamples_without_a_value_are_counted() -> None:
    pred, true = [1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]
    found = bootstrap_interval(srocc, pred, true, n=400)
    # All four draws miss the last image with probability (3/4)^4, or hit only it with (1/4)^4.
    assert found.valid / 400 == pytest.approx(1 - 0.316 - 0.004, abs=0.08)
    (row,) = evaluate_table(pred, true, n=400)
    assert "resamples were constant" in row["note"]
