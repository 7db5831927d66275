"""What a trial of the real search does: stage 1 at its temperature, once for all trials, and stage 2 in short.

Every trial is a training run of its own (nested Ray Train). Stage 1 depends on the temperature only, so it is trained
once per temperature and shared: by trials at the same time, by trials later on, and by the final training.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from dri_iqa import storage
from pipelines.runtime.claims import Claims
from pipelines.runtime.cluster import Plan, beside_the_driver
from pipelines.runtime.config import JobConfig, digest
from pipelines.runtime.fit import Inputs, Result, RunSpec, finished, fit, pretrain_spec, train_spec
from pipelines.runtime.trials import trial_key


class Trainings:
    """The trainings of one search; `objective` is what `search` calls for each trial.

    Args:
        inputs: ingested data.
        plan: resources of one run, and how many trials at a time.
        folder: URI for the trials' checkpoints.
        journal: name of the journal.
        key: key of the parent run.
    """

    def __init__(self, inputs: Inputs, plan: Plan, *, folder: str, journal: str, key: str) -> None:
        self.checkpoints = storage.join(folder, "checkpoints")
        self._claims: Any = beside_the_driver(Claims)
        self.objective = partial(
            _train,
            inputs=asdict(inputs),
            plan=asdict(plan),
            checkpoints=self.checkpoints,
            journal=journal,
            key=key,
            claims=self._claims,
        )

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self._claims)

    def shared_seconds(self) -> float:
        """What training stage 1 has taken in this search."""
        return ray.get(self._claims.seconds.remote())

    def delete_checkpoints(self) -> None:
        """Of stage 2 of the trials: what stopped ones have left, or finished ones no longer need."""
        storage.delete(self.checkpoints)


def _train(
    job: JobConfig,
    changes: dict[str, float],
    *,
    inputs: dict[str, Any],
    plan: dict[str, Any],
    checkpoints: str,
    journal: str,
    key: str,
    claims: Any,
) -> None:
    resources, data = Plan(**plan), Inputs(**inputs)
    threads = max(1, resources.threads // resources.concurrent_trials)
    pretrained: Result | None = None
    if job.stage2.variant != "maniqa":
        first = pretrain_spec(job, data, resources.workers)
        pretrained = _shared_stage1(first, resources, job.output, threads, claims, digest(changes))
    result = fit(
        train_spec(job, data, resources.workers, pretrained),
        resources,
        job.output,
        checkpoints=checkpoints,
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
            seconds = 0.0
            try:
                done = fit(spec, plan, output, threads=threads)
                seconds = done["seconds"]
                return done
            finally:
                ray.get(claims.release.remote(spec.name, seconds))
        time.sleep(1)
