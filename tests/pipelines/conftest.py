from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipelines import jobs
from tests.pipelines.heads import DEGRADE, head
from tests.servers.mlflow_server import MlflowServer


@dataclass
class Finished:
    """A finished run of the main job on the built-in sample, submitted to a cluster of its own."""

    output: Path
    answer: subprocess.CompletedProcess[str]
    settings: tuple[str, ...]
    """What another run of the same job is told, but for its output."""
    left: str
    """What it left on the cluster."""

    @property
    def summary(self) -> dict:
        return jobs.summary(self.output)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    output = tmp_path_factory.mktemp("finished") / "runs"
    settings = (*jobs.BRIEF, "model.companion.images=40")
    command = ("python", "pipelines/full.py", f"output={output}", *settings, DEGRADE)
    with head(tmp_path_factory.mktemp("head")) as cluster:
        answer = cluster.submit(entrypoint=command)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return Finished(output, answer, settings, cluster.left())


@pytest.fixture(scope="module")
def registry_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server."""
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started.address
    started.kill()


@pytest.fixture
def client(registry_server: str) -> MlflowClient:
    return MlflowClient(tracking_uri=registry_server, registry_uri=registry_server)
