"""Processes and nodes that are lost in the middle of a training: it goes on, and ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.conftest import Pretraining, outcome
from tests.faults.machines import checkpoints, kill
from tests.pipelines import jobs

pytestmark = pytest.mark.ray
TRAIN_WORKER, DATA_TASK = "ray::RayTrainWorker", "ray::Map"


def test_degradation_runs_where_it_is_offered(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    """Seen while a data process is killed: it is replaced, no sample is lost or doubled."""
    machines, seen = pretraining.machines, []

    def lose_a_data_process() -> None:
        (plain,) = [node for node in machines.nodes if not machines.offers(node)]
        assert not machines.on(plain, DATA_TASK)
        found = machines.processes(DATA_TASK)
        assert found, "a data process"
        seen.append(found)
        kill(random.Random(0).choice(found))

    ended = pretraining.disturbed(tmp_path / "runs", lose_a_data_process)
    assert ended.code == 0, ended.text
    assert seen
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_killed_training_worker_is_replaced(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    def lose_a_rank() -> None:
        workers = pretraining.machines.processes(TRAIN_WORKER)
        assert len(workers) == 2
        kill(workers[1])

    ended = pretraining.disturbed(tmp_path / "runs", lose_a_rank)
    assert ended.code == 0, ended.text
    assert "resumed from the checkpoint" in ended.text
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_node_that_is_lost_with_all_that_ran_on_it(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    machines = pretraining.machines

    def lose_a_node() -> None:
        machines.lose(next(node for node in machines.nodes if machines.on(node, TRAIN_WORKER)))

    ended = pretraining.disturbed(tmp_path / "runs", lose_a_node)
    assert ended.code == 0, ended.text
    assert "resumed from the checkpoint" in ended.text
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_killed_driver_started_again(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    jobs.run_and_kill(
        "pretrain",
        f"output={output}",
        *pretraining.arguments,
        when=lambda: checkpoints(output) >= 2,
        log=tmp_path / "log",
        variables=pretraining.machines.variables,
    )
    said = pretraining.run(output)
    assert "resumed from the checkpoint" in said
    assert outcome(output) == undisturbed
