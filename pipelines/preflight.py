"""The checks that every job begins with, by themselves: nodes, store, tracking, space, clocks, weights, data."""

from __future__ import annotations

from pipelines.runtime.job import Job, main


def steps(job: Job) -> None:
    """The job: check what the main job with the same settings would need, show it, train nothing."""
    with job.attach(table=True):
        pass


if __name__ == "__main__":
    main("preflight", steps)
