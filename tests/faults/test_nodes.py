"""What a cluster of several nodes is for: the main job on it, and a training that shrinks and grows with it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.conftest import Pretraining, outcome
from tests.faults.machines import BATCH_MAKER, DATA_TASK, STREAM, Machines, standing_still
from tests.pipelines import jobs

pytestmark = pytest.mark.ray
COUNTS = ("epoch", "negatives_deg", "negatives_qual", "queue_age", "queue_fill", "skipped_steps")
LOSSES = ("loss", "loss_deg", "loss_qual")


def test_a_training_shrinks_and_grows_with_the_cluster(
    pretraining: Pretraining, undisturbed, resume_times: dict[str, float], tmp_path: Path
) -> None:
    """The global batches stay what they were, and so do every epoch's losses, up to the order of additions."""
    machines, output = pretraining.machines, tmp_path / "runs"
    # a node holds one worker and one data process
    settings = ("cluster.min_workers=1", "cluster.resize_s=5", "cluster.cpus_per_worker=0.6")
    quick = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}

    def shrink() -> None:
        kept = one_that_degrades(machines)
        for node in [node for node in machines.nodes if node is not kept]:
            machines.lose(node)

    def grow() -> None:
        machines.add(degrade=False)
        machines.add(degrade=True)

    with pretraining.start(output, tmp_path / "log", *settings, **quick) as job:
        job.goes_on()
        _, resume_times["two of three nodes are lost"] = job.recovers(shrink, workers=1)
        with standing_still(machines.processes(STREAM)):
            _, resume_times["two nodes come"] = job.recovers(grow)
        job.wait(lambda: machines.on(machines.nodes[-1], DATA_TASK))
        assert job.ends() == 0, job.text
    assert "1 to 2 training worker(s)" in job.text
    rows, expected = outcome(output)[1], undisturbed[1]
    # how many keys a view is compared with tells which samples came, and in which order
    for names, tolerance in ((COUNTS, 1e-12), (LOSSES, 0.01)):
        figures, wanted = ([[row[name] for name in names] for row in of] for of in (rows, expected))
        np.testing.assert_allclose(figures, wanted, rtol=tolerance)


def test_the_main_job_on_several_nodes(pretraining: Pretraining, tmp_path: Path) -> None:
    """A head without CPUs, and degradation only where it is offered, also while a node comes that offers it."""
    machines, output = pretraining.machines, tmp_path / "runs"
    machines.lose(one_that_degrades(machines))
    settings = (
        *pretraining.data,
        "cluster=attached",
        "cluster.degrade_resource=1",
        "cluster.data_processes=2",
        "search=none",
        "stage1.optim.batch_size=8",
        "stage1.optim.epochs=20",
        "stage1.probe.epochs=null",
        "stage2.optim.epochs=2",
        "stage2.val_crops=1",
        "stage2.probe_images=9",
        "evaluate.crops=2",
        "evaluate.bootstrap=20",
    )
    degraded: list[Any] = []

    def look() -> None:
        degraded.extend(node for node in machines.nodes if machines.on(node, DATA_TASK))

    with ThreadPoolExecutor(1) as beside:
        job = beside.submit(
            jobs.run, "full", f"output={output}", *settings, variables=machines.variables
        )
        while not (job.done() or machines.processes(BATCH_MAKER)):
            look()
            time.sleep(0.3)
        # The stream wants more than its process can do as soon as that one does nothing.
        with standing_still(machines.processes(BATCH_MAKER)):
            machines.add(degrade=True)
            while not (job.done() or machines.on(machines.nodes[-1], DATA_TASK)):
                time.sleep(0.3)
        while not job.done():
            look()
            time.sleep(1)
    answer = job.result()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert jobs.summary(output)["version"]["version"] == "1"
    assert "version 1 is the champion" in answer.stdout
    assert machines.nodes[-1] in degraded, "the node that came helps"
    assert all(machines.offers(node) for node in degraded)


def one_that_degrades(machines: Machines) -> Any:
    return next(node for node in machines.nodes if machines.offers(node))
