"""Search over lambda, learning rate and temperature."""

from __future__ import annotations

from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.runtime.console import duration
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.leftovers import held, left_behind
from pipelines.runtime.objective import Trainings
from pipelines.runtime.search import check_cluster, known_trials, search, search_folder
from pipelines.runtime.trials import METRIC
from pipelines.search_report import report_search


def tune(job: Job, inputs: Inputs) -> Result:
    """Run the search; returns the best trial's `changes`, a row a trial, what the search took and what it left."""
    check_cluster()
    before = known_trials(job.output, job.name)
    if before:
        job.console.say(f"    goes on with {len(before)} trial(s) that a killed search had begun")
    folder, there = search_folder(job.output, job.name), held()
    trainings = Trainings(inputs, job.plan, folder=folder, journal=job.journal.name, key=job.name)
    with trainings, job.console.progress("trials") as meter:
        result = search(
            job.config,
            trainings.objective,
            concurrent=job.plan.concurrent_trials,
            name=job.name,
            tracker=job.tracker,
            key=job.name,
            meter=meter,
        )
        result["work_seconds"] += trainings.shared_seconds()
    trainings.delete_checkpoints()
    result["left"] = left_behind(
        there, folders=[trainings.checkpoints], checkpoints=trainings.checkpoints
    )
    show_trials(job, result)
    show_end(job, result)
    report_search(job, result)
    return result


def show_end(job: Job, result: Result) -> None:
    """What the search cost beyond its trainings, and whether anything of it is left on the cluster."""
    took, work = result["seconds"], result["work_seconds"]
    if work:
        job.console.say(
            f"    the search took {duration(took)}: {took / work:.2f} times the bare trainings ({duration(work)})"
        )
        job.tracker.metrics(
            job.name, {"search_seconds": took, "search_seconds_over_trainings": took / work}
        )
    if not result["left"]:
        job.console.say(
            "    nothing is left of it: no placement group, actor or temporary checkpoint"
        )
    for line in result["left"]:
        job.console.say(f"    error: the search left behind {line}")


def show_trials(job: Job, result: Result) -> None:
    """The table of trials."""
    dials = [dimension.key for dimension in job.config.search.space.values()]
    rows = [
        [
            trial["trial"],
            *[f"{trial['changes'].get(dial, float('nan')):.4g}" for dial in dials],
            trial["epochs"],
            "failed" if trial[METRIC] is None else f"{trial[METRIC]:.3f}",
            "yes" if trial["stopped_early"] else "",
            "<- best" if trial is result["best"] or trial == result["best"] else "",
        ]
        for trial in result["trials"]
    ]
    names = list(job.config.search.space)
    job.console.table("Search", ["trial", *names, "epochs", METRIC, "stopped early", ""], rows)


def steps(job: Job) -> None:
    """The job: data, stage 1 at the configured temperature, search."""
    job.console.steps = 3
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        inputs = Inputs(**data["inputs"])
        if job.config.search.stage1_epochs is None:
            job.step("stage1", "stage 1: pre-train the extractor", lambda: pretrain(job, inputs))
        job.step("search", "search", lambda: tune(job, inputs))


if __name__ == "__main__":
    main("tune", steps)
