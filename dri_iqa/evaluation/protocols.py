"""What a protocol's many trainings say together: means over splits, paired differences, a matrix of data sets.

A protocol tests each variant on several splits, with several training seeds and several seeds of the
test crops (paper 4.2: 10 splits, 5 seeds). Figures are first averaged over the crop seeds of one
training, which are no independent trials; spread and medians are over trainings.

Shape suffixes: N test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dri_iqa.evaluation.metrics import (
    Interval,
    evaluate_table,
    mean_paired_interval,
    plcc,
    resplit_interval,
    srocc,
)

Row = dict[str, Any]
FIGURES = ("srocc", "plcc", "plcc_fit", "krocc", "rmse")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trained model's predictions on one test part; all arrays in one order, higher = better."""

    variant: str
    trained_on: str
    tested_on: str
    split: int
    seed: int
    """Of the training."""
    crop_seed: int
    predicted_N: np.ndarray
    given_N: np.ndarray
    group_N: np.ndarray
    """Scene or reference of each image: what intervals resample."""
    subset_N: np.ndarray
    """Distortion type or subset of each image."""
    trained_images: int
    """Images of the training and validation parts."""

    @property
    def training(self) -> tuple[int, int]:
        """(split, seed): what a paired comparison pairs."""
        return self.split, self.seed


def run_rows(tested: Sequence[Outcome]) -> list[Row]:
    """One row for every test: who was trained on what, tested with which crops, and all figures."""
    rows = []
    for one in tested:
        (figures,) = evaluate_table(one.predicted_N, one.given_N, one.group_N, n=0)
        row = {
            name: getattr(one, name)
            for name in ("variant", "trained_on", "tested_on", "split", "seed", "crop_seed")
        }
        row |= {name: figures[name] for name in ("images", "groups", *FIGURES, "note")}
        rows.append(row)
    return rows


def variant_rows(rows: Sequence[Row]) -> list[Row]:
    """One row for every variant, in order of appearance: mean, median and deviation over trainings.

    Args:
        rows: of `run_rows`, of one data set.

    Returns:
        variant, trainings, splits; `srocc`, `srocc_median`, `srocc_std`, `srocc_crops` (deviation over the
        crop seeds of a training, averaged), the same for plcc; means of the others.
    """
    found = []
    for variant in _order(rows, "variant"):
        mine = [row for row in rows if row["variant"] == variant]
        by_training = _by_training(mine)
        summary: Row = {
            "variant": variant,
            "trainings": len(by_training),
            "splits": len({split for split, _ in by_training}),
        }
        for name in ("srocc", "plcc"):
            means = np.array(
                [np.mean([row[name] for row in part]) for part in by_training.values()]
            )
            inside = [np.std([row[name] for row in part]) for part in by_training.values()]
            summary |= {
                name: float(means.mean()),
                f"{name}_median": float(np.median(means)),
                f"{name}_std": float(means.std(ddof=1)) if len(means) > 1 else None,
                f"{name}_crops": float(np.mean(inside)),
            }
        for name in FIGURES[2:]:
            summary[name] = float(np.mean([row[name] for row in mine]))
        found.append(summary)
    return found


def subset_rows(tested: Sequence[Outcome]) -> list[Row]:
    """Mean SROCC by variant (rows) and subset (columns); one column for each subset that has at least
    two images in every test.
    """
    found = []
    for variant in dict.fromkeys(one.variant for one in tested):
        tables = [
            evaluate_table(one.predicted_N, one.given_N, one.group_N, one.subset_N, n=0)
            for one in tested
            if one.variant == variant
        ]
        names = dict.fromkeys(row["subset"] for table in tables for row in table)
        row: Row = {"variant": variant}
        for name in names:
            values = [line["srocc"] for table in tables for line in table if line["subset"] == name]
            row[name] = float(np.mean(values)) if len(values) == len(tables) else None
        found.append(row)
    return found


def difference_rows(
    tested: Sequence[Outcome], *, seed: int = 0, n: int = 1000, level: float = 0.95
) -> list[Row]:
    """Every pair of variants on the trainings that both have: the later minus the earlier one.

    Predictions are averaged over the crop seeds first, differences over the seeds of a split.
    Intervals: over several splits `resplit_interval`, which holds what other splits and trainings
    would change; of one split `mean_paired_interval`, over scenes.

    Args:
        tested: of one data set.
        seed: of the resamples.
        n: resamples.
        level: coverage of the intervals.

    Returns:
        difference ("proposed - v3"), trainings, splits, better_in (trainings with a higher SROCC), and
        for srocc and plcc the mean with `_low` and `_high`.

    Raises:
        ValueError: variants that were not tested on the same images.
    """
    names = list(dict.fromkeys(one.variant for one in tested))
    mean = {name: _mean_predictions([o for o in tested if o.variant == name]) for name in names}
    found = []
    for place, later in enumerate(names):
        for earlier in reversed(names[:place]):
            common = [key for key in mean[later] if key in mean[earlier]]
            if not common:
                continue
            pairs = [(mean[later][key], mean[earlier][key]) for key in common]
            if not all(np.array_equal(a.given_N, b.given_N) for a, b in pairs):
                raise ValueError(f"{later} and {earlier} were not tested on the same images")
            better = sum(_gain(srocc, a, b) > 0 for a, b in pairs)
            row: Row = {"difference": f"{later} - {earlier}", "trainings": len(common)}
            row |= {"splits": len({a.split for a, _ in pairs}), "better_in": better}
            metrics: dict[str, Callable[..., float]] = {"srocc": srocc, "plcc": plcc}
            for name, metric in metrics.items():
                interval = _difference(metric, pairs, seed=seed, n=n, level=level)
                row |= {name: interval.estimate}
                row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
            found.append(row)
    return found


def _gain(metric: Callable[..., float], a: Outcome, b: Outcome) -> float:
    return metric(a.predicted_N, a.given_N) - metric(b.predicted_N, b.given_N)


def _difference(
    metric: Callable[..., float],
    pairs: Sequence[tuple[Outcome, Outcome]],
    *,
    seed: int,
    n: int,
    level: float,
) -> Interval:
    by_split: dict[int, list[float]] = {}
    for a, b in pairs:
        by_split.setdefault(a.split, []).append(_gain(metric, a, b))
    if len(by_split) > 1:
        share = np.mean([len(a.given_N) / a.trained_images for a, _ in pairs])
        means_K = [float(np.mean(gains)) for gains in by_split.values()]
        return resplit_interval(means_K, test_per_train=float(share), level=level)
    first, _ = pairs[0]
    predicted = [(a.predicted_N, b.predicted_N) for a, b in pairs]
    return mean_paired_interval(
        metric, predicted, first.given_N, first.group_N, seed=seed, n=n, level=level
    )


def cross_rows(rows: Sequence[Row], figure: str = "srocc") -> list[Row]:
    """Trained on (rows) against tested on (columns): means of one figure over everything else."""
    columns = _order(rows, "tested_on")
    found = []
    for source in _order(rows, "trained_on"):
        row: Row = {"trained_on": source}
        for target in columns:
            values = [
                one[figure]
                for one in rows
                if (one["trained_on"], one["tested_on"]) == (source, target)
            ]
            row[target] = float(np.mean(values)) if values else None
        found.append(row)
    return found


def _mean_predictions(tested: Sequence[Outcome]) -> dict[tuple[int, int], Outcome]:
    """By training, with predictions averaged over the crop seeds."""
    parts: dict[tuple[int, int], list[Outcome]] = {}
    for one in tested:
        parts.setdefault(one.training, []).append(one)
    return {
        key: Outcome(
            **{
                **vars(part[0]),
                "predicted_N": np.mean([one.predicted_N for one in part], axis=0),
            }
        )
        for key, part in parts.items()
    }


def _by_training(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    parts: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        parts.setdefault((row["split"], row["seed"]), []).append(row)
    return parts


def _order(rows: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(str(row[name]) for row in rows))
