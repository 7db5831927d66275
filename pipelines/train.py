"""Stage 2: the score predictor, helped by the guided restoration network."""

from __future__ import annotations

from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.runtime.config import replace_keys
from pipelines.runtime.fit import Inputs, train_spec
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.training import run_stage


def train(job: Job, inputs: Inputs, pretrained: Result | None, changes: dict[str, float]) -> Result:
    """Train at the job's full budget, with what the search found."""
    config = replace_keys(job.config, changes)
    return run_stage(job, train_spec(config, inputs, job.plan.workers, pretrained), "stage2")


def steps(job: Job) -> None:
    """The job: data, stage 1, stage 2, with the values as configured."""
    job.console.steps = 3
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        inputs = Inputs(**data["inputs"])
        first = None
        if job.config.stage2.variant != "maniqa":
            first = job.step(
                "stage1", "stage 1: pre-train the extractor", lambda: pretrain(job, inputs)
            )
        second = job.step(
            "stage2", "stage 2: train the predictor", lambda: train(job, inputs, first, {})
        )
    job.console.table(
        "Stage 2", ["what", "value"], [["bundle", second["uri"]], ["sha256", second["sha256"]]]
    )


if __name__ == "__main__":
    main("train", steps)
