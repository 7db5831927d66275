"""Search over lambda, learning rate and temperature."""

from __future__ import annotations

from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.search import known_trials, search
from pipelines.runtime.trials import METRIC


def tune(job: Job, inputs: Inputs) -> Result:
    """Run the search; returns the best trial's `changes` and a row a trial."""
    before = known_trials(job.output, job.name)
    if before:
        job.console.say(f"    goes on with {len(before)} trial(s) that a killed search had begun")
    with job.console.progress("trials") as meter:
        result = search(
            job.config,
            inputs,
            job.plan,
            name=f"{job.name}",
            journal=job.journal.name,
            tracker=job.tracker,
            key=job.name,
            meter=meter,
        )
    job.tracker.json(job.name, result, "search.json")
    show_trials(job, result)
    return result


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
