"""MLflow's outages: training goes on, and afterwards every metric of every step is there once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.pipelines import jobs
from tests.pipelines.test_without_cluster import SETTINGS, photographs
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.mlflow_server import MlflowServer

EPOCHS = 40
TRAINING = (*SETTINGS, f"stage1.optim.epochs={EPOCHS}", "stage1.optim.log_steps=1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.kill()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("photos")
    photographs(folder)
    return f"data.root={folder / 'scored'}", f"data.clean.root={folder / 'clean'}"


def runs(address: str, experiment: str) -> dict[str, Run]:
    """All runs of an experiment by name, which is unique."""
    client = MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    listed = client.search_runs([found.experiment_id])
    named = {run.data.tags["dri_iqa.key"].partition("/")[2] or "job": run for run in listed}
    assert len(named) == len(listed), "a run was made twice"
    return named


def all_is_there_once(address: str, experiment: str, *, killed: bool) -> None:
    """What stage 1 logs an epoch and a step, and the artifacts of stage and job.

    What a killed job had measured in its last half second (speeds, figures of single steps) is in no checkpoint and
    may be missing; the epochs' metrics never are.
    """
    found = runs(address, experiment)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    client, stage1 = MlflowClient(tracking_uri=address), found["stage1"]
    steps = list(range(1, EPOCHS + 1))  # of one step each
    file = client.download_artifacts(stage1.info.run_id, "history.json")
    rows = json.loads(Path(file).read_text())
    assert [row["epoch"] for row in rows] == steps
    assert {"loss", "step/loss", "epoch", "data_wait_share"} <= {*stage1.data.metrics}
    for name in stage1.data.metrics:
        history = client.get_metric_history(stage1.info.run_id, name)
        if killed:  # what it took with it came last, from the history
            history.sort(key=lambda row: row.step)
        there = [row.step for row in history]
        assert there == sorted(set(there)), f"{name} in order, once"
        if name in rows[0] or not killed:
            assert there == steps, name
        if name in rows[0]:
            assert [row.value for row in history] == [row[name] for row in rows]
    assert stage1.data.params["stage1.optim.epochs"] == str(EPOCHS)
    assert stage1.data.tags["sha256"]
    artifacts = {item.path for item in client.list_artifacts(found["job"].info.run_id)}
    assert {"config.yaml", "versions.json", "inputs.json"} <= artifacts


def test_killed_server_killed_job_and_neither_stops_training_nor_loses_a_metric(
    server: MlflowServer, roots: tuple[str, str], tmp_path: Path
) -> None:
    output, log = tmp_path / "runs", tmp_path / "log"
    credentials = server.address.replace("://", "://somebody:s3cr3t-word@")
    command = (f"output={output}", *roots, *TRAINING, "tracking=server")
    command += (f"tracking.uri={credentials}", "tracking.experiment=outage")

    def checkpoint() -> int:
        steps = output.glob("checkpoints/pretrain-*/step_*")
        return max((int(path.name.removeprefix("step_")) for path in steps), default=0)

    went_down_at = 0

    def trained_on_without_it() -> bool:
        nonlocal went_down_at
        if not went_down_at:
            if "stage1" in runs(server.address, "outage") and checkpoint():
                server.kill()
                went_down_at = checkpoint()
            return False
        return "MLflow does not answer since" in log.read_text() and checkpoint() > went_down_at + 2

    jobs.run_and_kill("pretrain", *command, when=trained_on_without_it, log=log)
    assert went_down_at < EPOCHS

    answer = jobs.run("pretrain", *command)  # the server is still down
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "resumed from the checkpoint" in answer.stdout
    said = answer.stdout.replace("\n", " ")
    assert said.count("MLflow does not answer since") == 2, "when it began, and at the end"
    (spool,) = output.glob("jobs/*/tracking/*")
    assert f"kept in {spool}" in said
    kept = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
    assert b"step/loss" in kept
    assert b"s3cr3t-word" not in kept + (log.read_text() + answer.stdout + answer.stderr).encode()

    server.start()
    stale = runs(server.address, "outage")
    assert {run.info.status for run in stale.values()} == {"RUNNING"}
    answer = jobs.run("pretrain", *command)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "done before" in answer.stdout
    all_is_there_once(server.address, "outage", killed=True)
    assert not any((spool / "files").rglob("*"))


def test_answers_that_are_lost_and_a_server_that_comes_back(
    server: MlflowServer, roots: tuple[str, str], tmp_path: Path
) -> None:
    """A proxy before the server: it cuts answers to requests that were carried out, goes, and comes back."""
    proxy = FaultyProxy(server.address, rate=0.0, kinds=("cut", "503"))
    port = urlsplit(proxy.endpoint).port
    assert port
    command = ["pretrain", f"output={tmp_path / 'runs'}", *roots, *TRAINING, "tracking=server"]
    command += [f"tracking.uri={proxy.endpoint}", "tracking.experiment=flaky"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(jobs.ROOT / "pipelines" / f"{command[0]}.py"), *command[1:]],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=jobs.environment(),
        )
        try:
            wait(lambda: "stage1" in runs(server.address, "flaky"), process, log)
            proxy.close()
            wait(lambda: "MLflow does not answer since" in log.read_text(), process, log)
            proxy = FaultyProxy(server.address, rate=0.15, seed=1, kinds=("cut", "503"), port=port)
            assert process.wait(timeout=120) == 0, log.read_text()
            assert proxy.faults
            assert "MLflow answers again after" in log.read_text()
            proxy.rate = 0.0
            answer = jobs.run(*command)  # delivers what the last lost answers may have left
            assert answer.returncode == 0, answer.stdout + answer.stderr
        finally:
            process.kill()
            process.wait()
            proxy.close()
    all_is_there_once(server.address, "flaky", killed=False)


def wait(until: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
