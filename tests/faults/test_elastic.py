"""What a cluster of several nodes is for: the main job on it, while it shrinks and grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.conftest import Pretraining, outcome
from tests.faults.machines import DATA_TASK, STREAM, Machines, standing_still
from tests.pipelines import jobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]  # two stages, and two starts anew
COUNTS = ("epoch", "negatives_deg", "negatives_qual", "queue_age", "queue_fill", "skipped_steps")
EPOCHS = 24  # of four steps
LOSSES = ("loss", "loss_deg", "loss_qual")
SETTINGS = (
    "cluster.min_workers=1",
    "cluster.resize_s=5",
    "cluster.cpus_per_worker=0.6",  # a node holds one worker and one data process
    "search=none",
    f"stage1.optim.epochs={EPOCHS}",
    "stage2.optim.epochs=2",
    "stage2.val_crops=1",
    "stage2.probe_images=9",
    "evaluate.crops=2",
    "evaluate.bootstrap=20",
)


def test_the_main_job_on_a_cluster_that_shrinks_and_grows(
    pretraining: Pretraining, undisturbed, resume_times: dict[str, float], tmp_path: Path
) -> None:
    """A head without CPUs, three nodes of which two are lost in stage 1, and two that come.

    Global batches stay what they were, and so do every epoch's losses, up to the order of additions. Degradation
    runs only where it is offered, also by a node that came.
    """
    machines, output = pretraining.machines, tmp_path / "runs"
    quick = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    degraded: list[Any] = []

    def shrink() -> None:
        kept = one_that_degrades(machines)
        for node in [node for node in machines.nodes if node is not kept]:
            machines.lose(node)

    def grow() -> None:
        machines.add(degrade=False)
        machines.add(degrade=True)

    def the_last_one_helps() -> bool:
        degraded.extend(node for node in machines.nodes if machines.on(node, DATA_TASK))
        return machines.nodes[-1] in degraded

    with pretraining.start(output, tmp_path / "log", *SETTINGS, job="full", **quick) as job:
        job.goes_on()
        the_last_one_helps()
        _, resume_times["two of three nodes are lost"] = job.recovers(shrink, workers=1)
        with standing_still(machines.processes(STREAM)):
            _, resume_times["two nodes come"] = job.recovers(grow)
        job.wait(the_last_one_helps)
        assert job.ends() == 0, job.text
    assert "1 to 2 training worker(s)" in job.text
    assert "version 1 is the champion" in job.text
    assert jobs.summary(output)["version"]["version"] == "1"
    assert all(machines.offers(node) for node in degraded)
    rows, expected = outcome(output)[1], undisturbed[1][:EPOCHS]
    # how many keys a view is compared with tells which samples came, and in which order
    for names, tolerance in ((COUNTS, 1e-12), (LOSSES, 0.01)):
        figures, wanted = ([[row[name] for name in names] for row in of] for of in (rows, expected))
        np.testing.assert_allclose(figures, wanted, rtol=tolerance)


def one_that_degrades(machines: Machines) -> Any:
    return next(node for node in machines.nodes if machines.offers(node))
