"""Search with Ray Tune: every trial is a training run of its own (nested Ray Train), losers are stopped by ASHA.

Stage 1 depends on the temperature only, so it is trained once per temperature and shared: by trials at the same
time, by trials later on, and by the final training. What the trials reported is kept as JSON; a search that was
killed replays it, goes on with the trials that were running from their checkpoints, and unpickles nothing.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from dri_iqa import storage
from dri_iqa.config import OptimConfig, from_dict, to_dict
from pipelines.runtime.claims import Claims
from pipelines.runtime.cluster import TRIAL_CPUS, ClusterError, Plan
from pipelines.runtime.config import JobConfig, digest, replace_keys
from pipelines.runtime.console import Meter
from pipelines.runtime.fit import Inputs, Result, RunSpec, finished, fit, pretrain_spec, train_spec
from pipelines.runtime.suggestions import Suggestions
from pipelines.runtime.tracking import Tracker
from pipelines.runtime.trials import METRIC, TrialLog, TrialReport, summary, trial_key


def search(
    config: JobConfig,
    inputs: Inputs,
    plan: Plan,
    *,
    name: str,
    journal: str,
    tracker: Tracker,
    key: str,
    meter: Meter,
) -> Result:
    """Find lambda, learning rate and temperature.

    Args:
        config: the job; `config.search` says what is searched and with which budget.
        inputs: ingested data.
        plan: resources of one run, and how many trials at a time.
        name: folder of the search below `<output>/search`.
        journal: name of the journal.
        tracker: where each trial gets a nested run.
        key: key of the parent run.
        meter: shows progress.

    Returns:
        `changes` (dotted key -> value of the best trial), `best` and `trials` (rows of plain data).

    Raises:
        ClusterError: there is no cluster (`cluster=none`).
        RuntimeError: no trial got as far as one epoch.
    """
    if not ray.is_initialized():
        raise ClusterError("a search needs a cluster\nuse cluster=local, or search=none")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault(
        "TUNE_DISABLE_SIGINT_HANDLER", "1"
    )  # an interrupt ends the job, not just the search
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the report is ours
    folder = storage.join(config.output, "search", name)
    log = TrialLog(_log_uri(config.output, name))
    report = TrialReport(log, tracker, key, meter, config)
    claims: Any = ray.remote(num_cpus=0)(Claims).remote()
    scratch = storage.join(folder, "tune")
    trial = tune.with_parameters(
        _trial,
        config=to_dict(config),
        inputs=asdict(inputs),
        plan=asdict(plan),
        journal=journal,
        key=key,
        claims=claims,
        replay=log.replay(),
    )
    try:
        tune.Tuner(
            tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=config.search.trials,
                max_concurrent_trials=plan.concurrent_trials,
                search_alg=Suggestions(
                    config.search.space,
                    seed=config.seed,
                    metric=METRIC,
                    first=log.points() or first_point(config),
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
        ray.kill(claims)
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
    return {"changes": best["changes"], "best": best, "trials": trials}


def known_trials(output: str, name: str) -> list[dict[str, float]]:
    """The values of the trials that an earlier run of this search has begun."""
    return TrialLog(_log_uri(output, name)).points()


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


def _trial(
    changes: dict[str, float],
    *,
    config: dict[str, Any],
    inputs: dict[str, Any],
    plan: dict[str, Any],
    journal: str,
    key: str,
    claims: Any,
    replay: dict[str, dict[str, Any]],
) -> None:
    before = replay.get(digest(changes), {"rows": [], "ended": False})
    for row in before["rows"]:
        tune.report(row)
    if before["ended"]:
        return
    job = trial_config(from_dict(JobConfig, config), changes)
    resources = Plan(**plan)
    data = Inputs(**inputs)
    threads = max(1, resources.threads // resources.concurrent_trials)
    pretrained: Any = None
    if job.stage2.variant != "maniqa":
        pretrained = _shared_stage1(
            pretrain_spec(job, data, resources.workers),
            resources,
            job.output,
            threads,
            claims,
            digest(changes),
        )
    result = fit(
        train_spec(job, data, resources.workers, pretrained),
        resources,
        job.output,
        journal=journal,
        key=trial_key(key, changes),
        threads=threads,
        callbacks=[TuneReportCallback()],
    )
    # Killed between the last epoch and Tune's record of it, the run had nothing left to report by itself.
    tune.report(result["history"][-1])


def _shared_stage1(
    spec: RunSpec, plan: Plan, output: str, threads: int, claims: Any, owner: str
) -> Result:
    """Stage 1 as described: found trained, trained here, or waited for while another trial trains it."""
    while True:
        if done := finished(spec, output):
            return done
        if ray.get(claims.claim.remote(spec.name, owner)):
            try:
                return fit(spec, plan, output, threads=threads)
            finally:
                ray.get(claims.release.remote(spec.name))
        time.sleep(1)


def _log_uri(output: str, name: str) -> str:
    return storage.join(output, "search", name, "trials.json")
