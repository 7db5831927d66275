"""An objective for a search that costs nothing and whose optimum is known; light, because every trial imports it."""

from __future__ import annotations

import math

from ray import tune

from pipelines.runtime.config import Dimension, JobConfig

TOP = {
    "stage2.lambda_perceptual": 3e-3,
    "stage2.optim.lr_scale": 2.0,
    "stage1.moco.temperature": 0.1,
}
"""Where it is 1."""


def height(space: dict[str, Dimension], values: dict[str, float]) -> float:
    """Falls off with the distance from the top, as a share of the searched ranges' logarithms."""
    away = 0.0
    for dial in space.values():
        assert dial.low
        assert dial.high
        away += (math.log(values[dial.key] / TOP[dial.key]) / math.log(dial.high / dial.low)) ** 2
    return math.exp(-5 * away)


def hill(job: JobConfig, changes: dict[str, float]) -> None:
    """Climb: every epoch comes closer to the height at the trial's values, which it reads where a training would."""
    found = {
        "stage2.lambda_perceptual": job.stage2.lambda_perceptual,
        "stage2.optim.lr_scale": job.stage2.optim.lr_scale,
        "stage1.moco.temperature": job.stage1.moco.temperature,
    }
    assert changes == found
    there = height(job.search.space, found)
    for epoch in range(1, job.search.epochs + 1):
        score = there * (1 - 0.5 ** (3 * epoch))
        tune.report({"epoch": epoch, "val_srocc": score, "seconds": 0.1})
