"""Agreement of predicted with given scores, with intervals over scenes rather than images.

Images of one scene or reference are not independent, so intervals resample those groups. What
cannot be computed (constant or non-finite predictions, too few images) is nan with a note; it is
never left out of a table or replaced by a number.

Shape suffixes: N images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike

from dri_iqa.seeds import Purpose, generator

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap interval. `valid` of `resamples` gave a number; the others were constant."""

    estimate: float
    low: float
    high: float
    level: float
    resamples: int
    valid: int


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4)), or None with the reason in `note`."""

    parameters: tuple[float, float, float, float] | None
    note: str

    def __call__(self, pred: ArrayLike) -> np.ndarray:
        """Predictions on the scale of the given scores; unchanged where the fit failed."""
        pred_N = np.asarray(pred, dtype=np.float64)
        return pred_N if self.parameters is None else _logistic(pred_N, self.parameters)


def srocc(pred: ArrayLike, true: ArrayLike) -> float:
    """Spearman rank correlation with average ranks (paper Eq. 7, which holds without ties only).

    Args:
        pred, true: N numbers each.

    Returns:
        -1..1, or nan where `undefined` gives a reason.

    Raises:
        ValueError: different lengths.
    """
    pred_N, true_N = _pair(pred, true)
    if undefined(pred_N, true_N):
        return float("nan")
    return _pearson(scipy.stats.rankdata(pred_N), scipy.stats.rankdata(true_N))


def plcc(pred: ArrayLike, true: ArrayLike) -> float:
    """Pearson linear correlation of the raw predictions (paper Eq. 8); nan where undefined."""
    pred_N, true_N = _pair(pred, true)
    if undefined(pred_N, true_N):
        return float("nan")
    return _pearson(pred_N, true_N)


def plcc_fit(pred: ArrayLike, true: ArrayLike) -> float:
    """Pearson correlation after the 4-parameter logistic fit (VQEG).

    Where the fit fails, this is the raw `plcc`, with a RuntimeWarning that says so.
    """
    pred_N, true_N = _pair(pred, true)
    if undefined(pred_N, true_N):
        return float("nan")
    fit = logistic_fit(pred_N, true_N)
    if fit.parameters is None:
        warnings.warn(f"{fit.note}; raw PLCC returned", RuntimeWarning, stacklevel=2)
    return _pearson(fit(pred_N), true_N)


def krocc(pred: ArrayLike, true: ArrayLike) -> float:
    """Kendall rank correlation, tau-b (ties accounted for); nan where undefined."""
    pred_N, true_N = _pair(pred, true)
    if undefined(pred_N, true_N):
        return float("nan")
    result: Any = scipy.stats.kendalltau(pred_N, true_N)
    return float(result.statistic)


def rmse(pred: ArrayLike, true: ArrayLike) -> float:
    """Root mean squared error of the raw predictions in the units given; nan where not finite."""
    pred_N, true_N = _pair(pred, true)
    if not len(pred_N) or not (np.isfinite(pred_N).all() and np.isfinite(true_N).all()):
        return float("nan")
    return float(np.sqrt(np.mean((pred_N - true_N) ** 2)))


def undefined(pred: ArrayLike, true: ArrayLike) -> str:
    """Why correlations of these numbers are undefined, or an empty string."""
    pred_N, true_N = _pair(pred, true)
    bad = int((~np.isfinite(pred_N)).sum())
    if bad:
        return f"{bad} of {len(pred_N)} predictions are not finite"
    if not np.isfinite(true_N).all():
        return f"{int((~np.isfinite(true_N)).sum())} of {len(true_N)} scores are not finite"
    if len(pred_N) < 2:
        return f"{len(pred_N)} image(s) are too few"
    if np.ptp(pred_N) == 0:
        return "predictions are constant"
    if np.ptp(true_N) == 0:
        return "scores are constant"
    return ""


def logistic_fit(pred: ArrayLike, true: ArrayLike) -> LogisticFit:
    """Least-squares fit of the 4-parameter logistic from predictions to given scores.

    Started at (max, min, mean, std / 4) as in IQA-PyTorch's correlation_coefficient, with the ends
    swapped where the relation falls. A fit that did not converge, or that is worse than a straight
    line by more than rounding, is refused with a note.
    """
    pred_N, true_N = _pair(pred, true)
    if reason := undefined(pred_N, true_N):
        return LogisticFit(parameters=None, note=f"no logistic fit: {reason}")
    if len(pred_N) < 5:
        return LogisticFit(parameters=None, note="no logistic fit: fewer than 5 images")
    centre, spread = pred_N.mean(), pred_N.std()
    x_N = (pred_N - centre) / spread  # keeps the problem well-conditioned on any scale
    ends = (true_N.max(), true_N.min())
    if _pearson(pred_N, true_N) < 0:
        ends = (ends[1], ends[0])
    found = scipy.optimize.least_squares(
        lambda b: _logistic(x_N, b) - true_N,
        x0=(*ends, 0.0, 0.25),
        method="lm",
        x_scale=(np.ptp(true_N), np.ptp(true_N), 1.0, 0.25),
        max_nfev=5000,
    )
    b1, b2, b3, b4 = (float(value) for value in found.x)
    fitted_N = _logistic(x_N, (b1, b2, b3, b4))
    if not found.success or not np.isfinite(fitted_N).all() or np.ptp(fitted_N) == 0:
        return LogisticFit(parameters=None, note="the logistic fit did not converge")
    if abs(_pearson(fitted_N, true_N)) < abs(_pearson(pred_N, true_N)) - 1e-3:
        return LogisticFit(parameters=None, note="the logistic fit is worse than a straight line")
    parameters = (b1, b2, b3 * spread + centre, b4 * spread)
    return LogisticFit(parameters=parameters, note="")


def bootstrap_interval(
    metric: Metric,
    pred: ArrayLike,
    true: ArrayLike,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a metric over resampled groups.

    Args:
        metric: e.g. `srocc`.
        groups: N scene or reference ids; None lets every image be its own group.
        seed: the same seed gives the same resamples, whatever the metric.
        n: resamples.
        level: coverage, between 0 and 1.

    Returns:
        The metric on all images with the interval; nan bounds where fewer than half of the
        resamples gave a number.
    """
    pred_N, true_N = _pair(pred, true)
    values = [
        metric(pred_N[index_M], true_N[index_M])
        for index_M in _resamples(_group_indices(groups, len(pred_N)), seed, n)
    ]
    return _interval(metric(pred_N, true_N), values, level)


def paired_interval(
    metric: Metric,
    pred_a: ArrayLike,
    pred_b: ArrayLike,
    true: ArrayLike,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Interval of metric(a) - metric(b) with both computed on the same resamples.

    Far narrower than the difference of two separate intervals, as scenes that are hard are hard
    for both. An interval that lies above 0 says that a is better on such scenes.
    """
    return mean_paired_interval(
        metric, [(pred_a, pred_b)], true, groups, seed=seed, n=n, level=level
    )


def mean_paired_interval(
    metric: Metric,
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    true: ArrayLike,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Interval of metric(a) - metric(b), averaged over several trainings of both on one split.

    It says how far the mean depends on the scenes that happened to be tested, for these trainings;
    what another split would change is in `resplit_interval`.

    Args:
        metric: e.g. `srocc`.
        pairs: (predictions of a, predictions of b) of each training, N each.
        true: N given scores.
        groups: N scene or reference ids; None lets every image be its own group.
        seed: of the resamples, which all trainings share.
        n: resamples.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: no pair, or different lengths.
    """
    if not pairs:
        raise ValueError("pairs: got none, expected at least one")
    checked = [(_pair(a, true)[0], *_pair(b, true)) for a, b in pairs]
    size = len(checked[0][2])

    def mean(index_M: np.ndarray) -> float:
        found = [
            metric(a[index_M], t[index_M]) - metric(b[index_M], t[index_M]) for a, b, t in checked
        ]
        return float(np.mean(found))

    values = [mean(index_M) for index_M in _resamples(_group_indices(groups, size), seed, n)]
    return _interval(mean(np.arange(size)), values, level)


def resplit_interval(
    difference_K: ArrayLike, *, test_per_train: float, level: float = 0.95
) -> Interval:
    """Interval of a mean difference over random splits of one data set.

    The splits share images, so their differences are no independent trials, and the plain t-test
    finds far too much significant. Corrected resampled t-test: variance (1/K + test/train) s^2
    (Nadeau and Bengio 2003, "Inference for the Generalization Error", Machine Learning 52, section 3).

    Args:
        difference_K: one difference of each split, at least two.
        test_per_train: tested images per image that was trained on.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: fewer than two splits.
    """
    found_K = np.asarray(difference_K, dtype=np.float64)
    count = len(found_K)
    if count < 2:
        raise ValueError(f"differences of {count} split(s), expected at least two")
    deviation = found_K.std(ddof=1) * math.sqrt(1 / count + test_per_train)
    half = float(scipy.stats.t.ppf((1 + level) / 2, count - 1)) * float(deviation)
    mean = float(found_K.mean())
    valid = int(np.isfinite(found_K).sum())
    return Interval(
        estimate=mean, low=mean - half, high=mean + half, level=level, resamples=count, valid=valid
    )


def evaluate_table(
    pred: ArrayLike,
    true: ArrayLike,
    groups: Sequence[Any] | np.ndarray | None = None,
    subsets: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    n: int = 1000,
) -> list[dict[str, Any]]:
    """All metrics over all images and over each subset, as plain rows.

    Args:
        pred, true: N numbers each, both higher = better.
        groups: N scene or reference ids, the units of the bootstrap.
        subsets: N names, e.g. distortion types.
        n: resamples of each interval; 0 leaves intervals out (nan).

    Returns:
        Rows with subset ("all" first, then by name), images, groups, srocc, srocc_low, srocc_high,
        plcc, plcc_low, plcc_high, plcc_fit, krocc, rmse and note (empty where all is well).
    """
    pred_N, true_N = _pair(pred, true)
    group_N = np.arange(len(pred_N)) if groups is None else np.asarray(groups)
    rows = [_row("all", pred_N, true_N, group_N, seed, n)]
    if subsets is not None:
        subset_N = np.asarray([str(item) for item in subsets])
        _same_length(subset_N, pred_N, "subsets")
        for name in sorted(set(subset_N.tolist())):
            here = subset_N == name
            rows.append(_row(name, pred_N[here], true_N[here], group_N[here], seed, n))
    return rows


def _row(
    subset: str, pred_N: np.ndarray, true_N: np.ndarray, group_N: np.ndarray, seed: int, n: int
) -> dict[str, Any]:
    fit = logistic_fit(pred_N, true_N)
    reason = undefined(pred_N, true_N)
    notes = [reason or (f"{fit.note}; raw PLCC shown" if fit.note else "")]
    row: dict[str, Any] = {
        "subset": subset,
        "images": len(pred_N),
        "groups": len(np.unique(group_N)),
    }
    for name, metric in (("srocc", srocc), ("plcc", plcc)):
        interval = bootstrap_interval(metric, pred_N, true_N, group_N, seed=seed, n=n)
        row |= {name: interval.estimate}
        row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        if not reason and interval.valid < interval.resamples:
            notes.append(f"{name}: {interval.resamples - interval.valid} resamples were constant")
    row["plcc_fit"] = plcc(fit(pred_N), true_N)
    row["krocc"] = krocc(pred_N, true_N)
    row["rmse"] = rmse(pred_N, true_N)
    row["note"] = "; ".join(note for note in notes if note)
    return row


def _pair(pred: ArrayLike, true: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pred_N = np.asarray(pred, dtype=np.float64).reshape(-1)
    true_N = np.asarray(true, dtype=np.float64).reshape(-1)
    _same_length(pred_N, true_N, "predictions")
    return pred_N, true_N


def _same_length(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    if len(got) != len(expected):
        raise ValueError(f"{what}: got {len(got)} values, expected {len(expected)}")


def _pearson(a_N: np.ndarray, b_N: np.ndarray) -> float:
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    # Scaled first, so that tiny or huge numbers neither vanish nor overflow when squared.
    a_N, b_N = a_N / np.abs(a_N).max(), b_N / np.abs(b_N).max()
    value = float(a_N @ b_N / np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return min(1.0, max(-1.0, value))


def _logistic(x_N: np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    b4 = b[3] if abs(b[3]) > 1e-12 else 1e-12
    return b[1] + (b[0] - b[1]) * scipy.special.expit((x_N - b[2]) / b4)


def _group_indices(groups: Sequence[Any] | np.ndarray | None, count: int) -> list[np.ndarray]:
    if groups is None:
        return [np.array([index]) for index in range(count)]
    group_N = np.asarray(groups)
    _same_length(group_N, np.empty(count), "groups")
    _, code_N = np.unique(group_N, return_inverse=True)
    order = np.argsort(code_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(code_N[order])) + 1)


def _resamples(members: list[np.ndarray], seed: int, n: int) -> list[np.ndarray]:
    if not members:
        return []
    rng = generator(seed, Purpose.BOOTSTRAP, len(members))
    picks = rng.integers(0, len(members), size=(n, len(members)))
    return [np.concatenate([members[group] for group in pick]) for pick in picks]


def _interval(estimate: float, values: list[float], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1")
    value_R = np.asarray(values, dtype=np.float64)
    valid_R = value_R[np.isfinite(value_R)]
    low = high = float("nan")
    if len(valid_R) and 2 * len(valid_R) >= len(value_R):
        low, high = (float(q) for q in np.quantile(valid_R, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        resamples=len(value_R),
        valid=len(valid_R),
    )
