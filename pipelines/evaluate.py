"""Evaluation: a protocol's splits, seeds and variants trained and tested, with honest statistics and their cost."""

from __future__ import annotations

from dri_iqa import storage
from pipelines.cost import estimate, show_cost
from pipelines.ingest import ingest
from pipelines.protocol import (
    Grid,
    check_protocol,
    facts,
    failure_rows,
    make_grid,
    score_all,
    tables,
    train_all,
)
from pipelines.protocol_report import publish, show
from pipelines.runtime.failures import TrainingError
from pipelines.runtime.fit import Result
from pipelines.runtime.job import Job, main


def steps(job: Job) -> None:
    """The table of contents."""
    protocol = job.config.protocol
    check_protocol(job.config)
    job.console.say(f"job       {job.name}\nprotocol  {protocol.name}\noutput    {job.directory}")
    if storage.exists(job.summary_uri) and not job.config.dry_run:
        job.console.say("finished before: nothing is trained or tested again")
        show(job, storage.read_json(job.summary_uri))
        job.catch_up()
        return
    pilots = protocol.estimate or job.config.dry_run
    job.console.steps = 1 + pilots + (0 if job.config.dry_run else 4)
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        grid = make_grid(job, data)
        if pilots:
            cost = job.step("estimate", "what it will cost: pilots", lambda: estimate(job, grid))
            show_cost(job, cost)
        if not job.config.dry_run:
            run(job, grid)


def run(job: Job, grid: Grid) -> Result:
    """Everything that trains and tests, then the report; a protocol with failed trainings reports and fails.

    Raises:
        TrainingError: trainings that failed, after everything else was done.
    """
    trained, failures = train_all(job, grid)
    failed = failure_rows(failures)
    result: Result = {"facts": facts(grid), "failures": failed}
    if any(cell.trained_on == grid.main for cell in trained):
        outcomes = score_all(job, grid, trained)
        job.console.headline("tables and report")
        result["tables"] = tables(job, grid, outcomes)
        result["report"] = publish(job, grid, trained, result)
        show(job, result)
    if failed:
        raise TrainingError(
            f"{len(failed)} training(s) failed: {failed[0]['run']}: {failed[0]['error']}\n"
            "start the same command again to try them once more; what is done stays done"
        )
    storage.write_json(job.summary_uri, result)
    return result


if __name__ == "__main__":
    main("evaluate", steps)
