"""A training stage as a step of a job: progress on the console, a nested run in MLflow, the result as plain data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dri_iqa import storage
from pipelines.runtime.cluster import Plan
from pipelines.runtime.console import Meter
from pipelines.runtime.fit import Result, RunSpec, fit
from pipelines.runtime.job import Job, brief, mendable
from pipelines.runtime.streams import STEPS_PER_TASK
from pipelines.runtime.tracking import PICTURES


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a job, and the nested run that it gets in MLflow."""

    spec: RunSpec
    name: str
    """The nested run's name and the metrics' key below the job's."""
    parent: str | None = None
    """Name of the nested run it belongs to; None is the job itself."""
    untrained: bool = False
    """Also keep the model as it is before the first step, and tell its parts."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A training that did not end well."""

    error: Exception
    attempts: int


def run_stage(job: Job, spec: RunSpec, name: str) -> Result:
    """Train one stage at full budget.

    Args:
        job: connected.
        spec: what to train.
        name: `stage1` or `stage2`; the nested run's name and the metrics' key.
    """
    run = Run(spec=spec, name=name, untrained=spec.stage == "train")
    (outcome,) = run_stages(job, [run], name)
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def run_stages(
    job: Job, runs: Sequence[Run], what: str, *, attempts: int = 1, output: str | None = None
) -> list[Result | Failure]:
    """Train all, as many at a time as the plan says; what was trained before is found.

    Args:
        job: connected.
        runs: any number.
        what: name of the progress.
        attempts: times that a run is tried before it counts as failed; what a person must mend (a
            wrong value) is not tried again.
        output: where results go; None takes the job's.

    Returns:
        A result or a failure for every run, in their order.
    """
    at_once = max(1, min(job.plan.concurrent_trials, len(runs)))
    threads = max(1, job.plan.threads // at_once)
    with job.console.progress(what) as meter:
        watched = _Watch(job, runs, meter)

        def train(run: Run) -> Result | Failure:
            for attempt in range(1, attempts + 1):
                try:
                    return fit(
                        run.spec,
                        job.plan,
                        output or job.output,
                        journal=job.journal.name,
                        key=watched.key(run),
                        threads=threads,
                        untrained=run.untrained,
                    )
                except Exception as error:
                    if attempt == attempts or mendable(error) is not None:
                        return Failure(error=error, attempts=attempt)
                    job.console.say(f"    {run.name} failed ({brief(error)}), tried again")
            raise AssertionError("unreachable")

        with job.journal.watch(watched):
            outcomes = _map(train, runs, at_once)
    for run, outcome in zip(runs, outcomes, strict=True):
        watched.close(run, outcome)
    return outcomes


def _map(
    train: Callable[[Run], Result | Failure], runs: Sequence[Run], at_once: int
) -> list[Result | Failure]:
    if at_once == 1:  # in the main thread, where Ray Train hears an interrupt
        return [train(run) for run in runs]
    pool = ThreadPoolExecutor(at_once)
    try:
        return list(pool.map(train, runs))
    finally:  # after an interrupt nothing waits: the trainings end with the cluster's connection
        pool.shutdown(wait=False, cancel_futures=True)


class _Watch:
    """What the runs report on their way: progress, MLflow."""

    def __init__(self, job: Job, runs: Sequence[Run], meter: Meter) -> None:
        self._job, self._meter = job, meter
        self._runs = {self.key(run): run for run in runs}
        self._share = dict.fromkeys(self._runs, 0.0)
        for key, run in self._runs.items():
            parent = f"{job.name}/{run.parent}" if run.parent else job.name
            job.tracker.run(key, run.name, parent=parent, params=run.spec.config)
            if advice := store_advice(run.spec, job.plan):
                job.console.say(f"    {advice}")

    def key(self, run: Run) -> str:
        """In the journal and in MLflow."""
        return f"{self._job.name}/{run.name}"

    def __call__(self, record: dict[str, Any]) -> None:
        key = record["run"]
        if key not in self._runs:
            return
        job, several = self._job, len(self._runs) > 1
        name = f"{self._runs[key].name} " if several else ""
        if "say" in record:
            job.console.say(f"    {name}{record['say']}")
        elif "parts" in record:
            columns = ["part", "state", "parameters", "MAC per crop"]
            job.console.table("What trains", columns, record["parts"])
            job.tracker.json(key, [columns, *record["parts"]], "parts.json")
        elif "figures" in record:
            job.tracker.metrics(
                key, {f"step/{k}": v for k, v in record["figures"].items()}, record["step"]
            )
        else:
            note = f"{name}{record.get('note', '')}"
            if metrics := record.get("metrics"):
                job.tracker.epoch(key, record["epoch"], metrics)
                note = f"{name}epoch {record['epoch']}: " + _brief(metrics)
            self._share[key] = record["done"] / record["total"]
            self._meter.update(sum(self._share.values()), len(self._share), note)

    def close(self, run: Run, outcome: Result | Failure) -> None:
        """The run's end in MLflow."""
        key, tracker = self.key(run), self._job.tracker
        if isinstance(outcome, Failure):
            tracker.tags(key, {"error": brief(outcome.error)})
            tracker.end(key, "FAILED")
            return
        # what a killed run could not deliver, or another job has trained
        for row in outcome["history"]:
            tracker.epoch(key, int(row["epoch"]), row)
        tracker.tags(key, {"weights": outcome["uri"], "sha256": outcome["sha256"]})
        tracker.json(key, outcome["history"], "history.json")
        with tempfile.TemporaryDirectory() as folder:
            for path in fetch_pictures(outcome, Path(folder)):
                tracker.file(key, str(path), PICTURES)
        tracker.end(key)


def store_advice(spec: RunSpec, plan: Plan) -> str | None:
    """What to say where Ray's object store is too small for batches to be made ahead: half the speed was measured."""
    # Pixels of a row: four views, or those with an image and its reference.
    images = {"pretrain": 4, "train": 6}[spec.stage]
    batch = spec.config["stage1" if spec.stage == "pretrain" else "stage2"]["optim"]["batch_size"]
    task = STEPS_PER_TASK * batch * images * 3 * spec.config["model"]["crop"] ** 2
    if not plan.object_store_bytes or plan.object_store_bytes >= 2 * task:
        return None
    return (
        f"a task of batches takes {task / 1e6:.0f} MB, Ray's object store has "
        f"{plan.object_store_bytes / 1e6:.0f} MB: cluster.object_store_mb={8 * task / 1e6:.0f} holds eight of them"
    )


def fetch_pictures(result: Result, folder: Path) -> list[Path]:
    """Local copies of what a run's workers drew, sorted by name."""
    place = storage.join(result["uri"].rpartition("/")[0], PICTURES)
    copies = []
    for uri in storage.list_files(place, suffix=".png"):
        copies.append(folder / uri.rpartition("/")[2])
        copies[-1].write_bytes(storage.read_bytes(uri))
    return copies


def _brief(metrics: dict[str, float]) -> str:
    shown = [
        name
        for name in ("loss", "val_srocc", "val_psnr_input", "val_psnr_restored", "data_wait_share")
        if name in metrics
    ]
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in shown)
