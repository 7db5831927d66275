"""Search with Ray Tune: Optuna suggests, an objective is run for every suggestion, ASHA stops losers.

The objective (`objective`, in the real job) reports an epoch at a time. What the trials reported is kept as JSON; a
search that was killed replays it, goes on with the trials that were running, and unpickles nothing.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from dri_iqa import storage
from dri_iqa.config import to_dict
from pipelines.runtime.cluster import TRIAL_CPUS, ClusterError
from pipelines.runtime.config import JobConfig
from pipelines.runtime.console import Meter
from pipelines.runtime.fit import Result
from pipelines.runtime.suggestions import Suggestions
from pipelines.runtime.tracking import Tracker
from pipelines.runtime.trial import Objective, run_trial
from pipelines.runtime.trials import METRIC, TrialLog, TrialReport, summary


def search(
    config: JobConfig,
    objective: Objective,
    *,
    concurrent: int,
    name: str,
    tracker: Tracker,
    key: str,
    meter: Meter,
) -> Result:
    """Find lambda, learning rate and temperature.

    Args:
        config: the job; `config.search` says what is searched and with which budget.
        objective: what a trial does; pickled to where it runs.
        concurrent: trials at a time.
        name: folder of the search below `<output>/search`.
        tracker: where each trial gets a nested run.
        key: key of the parent run.
        meter: shows progress.

    Returns:
        `changes` (dotted key -> value of the best trial), `best` and `trials` (rows of plain data), `seconds` that
        this process has searched, and `work_seconds`, those of them that the objective reported as work.

    Raises:
        ClusterError: there is no cluster (`cluster=none`).
        RuntimeError: no trial got as far as one epoch.
    """
    check_cluster()
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault(
        "TUNE_DISABLE_SIGINT_HANDLER", "1"
    )  # an interrupt ends the job, not just the search
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the report is ours
    started = time.monotonic()
    log = TrialLog(_log_uri(config.output, name))
    report = TrialReport(log, tracker, key, meter, config)
    scratch = storage.join(search_folder(config.output, name), "tune")
    trial = tune.with_parameters(
        run_trial, config=to_dict(config), objective=objective, replay=log.replay()
    )
    try:
        tune.Tuner(
            tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=config.search.trials,
                max_concurrent_trials=concurrent,
                search_alg=Suggestions(
                    config.search.space,
                    seed=config.seed,
                    metric=METRIC,
                    first=log.points() or first_point(config),
                    told=log.begin,
                ),
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    # One more than the budget: a trial that reaches it ends by itself instead of being killed.
                    max_t=config.search.epochs + 1,
                    grace_period=config.search.grace_epochs,
                    reduction_factor=config.search.reduction,
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[report],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        ).fit()
    finally:
        storage.delete(scratch)
    trials = [summary(name, found, config.search.epochs) for name, found in log.trials.items()]
    done = [found for found in trials if found[METRIC] is not None]
    if not done:
        errors = [found["error"] for found in trials if found["error"]]
        raise RuntimeError(
            f"no trial finished an epoch; the first error: {(errors or ['none'])[0]}"
        )
    if report.ended < config.search.trials:
        raise RuntimeError(
            f"the search ended after {report.ended} of {config.search.trials} trials"
        )
    best = max(done, key=lambda found: (not found["stopped_early"], found[METRIC]))
    return {
        "changes": best["changes"],
        "best": best,
        "trials": trials,
        "seconds": time.monotonic() - started,
        "work_seconds": report.work_seconds,
    }


def check_cluster() -> None:
    """Raises: ClusterError: there is no cluster (`cluster=none`)."""
    if not ray.is_initialized():
        raise ClusterError("a search needs a cluster\nuse cluster=local, or search=none")


def search_folder(output: str, name: str) -> str:
    """Where a search keeps what it needs."""
    return storage.join(output, "search", name)


def known_trials(output: str, name: str) -> list[dict[str, float]]:
    """The values of the trials that an earlier run of this search has begun."""
    return TrialLog(_log_uri(output, name)).points()


def first_point(config: JobConfig) -> list[dict[str, float]]:
    """The configured values are the first trial, where the space holds them."""
    values = to_dict(config)
    point: dict[str, Any] = {}
    for dimension in config.search.space.values():
        node: Any = values
        for part in dimension.key.split("."):
            node = node[part]
        inside = (
            node in dimension.choices
            if dimension.choices
            else node is not None and (dimension.low or 0) <= node <= (dimension.high or 0)
        )
        if not inside:
            return []
        point[dimension.key] = node
    return [point]


def _log_uri(output: str, name: str) -> str:
    return storage.join(search_folder(output, name), "trials.json")
