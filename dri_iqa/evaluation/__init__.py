"""How good the scores are: metrics with intervals here, pictures and pages in `figures`, `report`.

Only the metrics are imported with the package; drawing needs matplotlib and is imported by name.
"""

from __future__ import annotations

from dri_iqa.evaluation.metrics import (
    Interval,
    LogisticFit,
    bootstrap_interval,
    evaluate_table,
    krocc,
    logistic_fit,
    mean_paired_interval,
    paired_interval,
    plcc,
    plcc_fit,
    resplit_interval,
    rmse,
    srocc,
)

__all__ = [
    "Interval",
    "LogisticFit",
    "bootstrap_interval",
    "evaluate_table",
    "krocc",
    "logistic_fit",
    "mean_paired_interval",
    "paired_interval",
    "plcc",
    "plcc_fit",
    "resplit_interval",
    "rmse",
    "srocc",
]
