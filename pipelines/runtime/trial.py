"""One trial of a search, in a process of its own: replay what it has reported, then run the objective.

Light, because every trial is a new process: whatever an objective needs, it imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from dri_iqa.config import OptimConfig, from_dict
from pipelines.runtime.config import JobConfig, digest, replace_keys

Objective = Callable[[JobConfig, dict[str, float]], None]
"""Runs a trial in a process of its own: gets the trial's configuration and its values, and calls `tune.report` with
`epoch`, `val_srocc` and, where it is known, `seconds` of work so far."""


def run_trial(
    changes: dict[str, float],
    *,
    config: dict[str, Any],
    objective: Objective,
    replay: dict[str, dict[str, Any]],
) -> None:
    """What Tune calls: `changes` are the trial's values, `replay` what trials of a killed search had reported."""
    before = replay.get(digest(changes), {"rows": [], "ended": False})
    for row in before["rows"]:
        tune.report(row)
    if not before["ended"]:
        objective(trial_config(from_dict(JobConfig, config), changes), changes)


def trial_config(config: JobConfig, changes: dict[str, float]) -> JobConfig:
    """The job's configuration with a trial's values and a trial's budget: the final training in miniature."""
    budget = _shortened(config.stage2.optim, "stage2", config.search.epochs)
    budget["stage2.probe_images"] = 0  # nobody asks a trial's bundle to explain itself
    if config.search.stage1_epochs is not None:
        budget |= _shortened(config.stage1.optim, "stage1", config.search.stage1_epochs)
    if config.search.max_images is not None:
        budget["stage2.max_images"] = config.search.max_images
    return replace_keys(config, budget | changes)


def _shortened(optim: OptimConfig, stage: str, epochs: int) -> dict[str, Any]:
    """Fewer epochs under the same curve: a cosine cut off early would favour rates that are too small."""
    t_max = optim.t_max and max(1, round(optim.t_max * epochs / optim.epochs))
    return {f"{stage}.optim.epochs": epochs, f"{stage}.optim.t_max": t_max}
