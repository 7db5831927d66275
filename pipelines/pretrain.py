"""Stage 1: contrastive pre-training of the dual quality / degradation representation."""

from __future__ import annotations

from pipelines.ingest import ingest
from pipelines.runtime.fit import Inputs, pretrain_spec
from pipelines.runtime.job import Job, Result, main
from pipelines.runtime.training import run_stage


def pretrain(job: Job, inputs: Inputs) -> Result:
    """Train the extractor at the job's full budget, or find it trained."""
    return run_stage(job, pretrain_spec(job.config, inputs, job.plan.workers), "stage1")


def steps(job: Job) -> None:
    """The job: data, then stage 1."""
    job.console.steps = 2
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        result = job.step(
            "stage1",
            "stage 1: pre-train the extractor",
            lambda: pretrain(job, Inputs(**data["inputs"])),
        )
    rows = [["extractor", result["uri"]], ["sha256", result["sha256"]]]
    last = result["history"][-1]
    rows += [[name, f"{last[name]:.3f}"] for name in last if name.startswith(("loss_", "probe_"))]
    job.console.table("Stage 1", ["what", "value"], rows)


if __name__ == "__main__":
    main("pretrain", steps)
