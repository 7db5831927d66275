from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.machines import Machines, checkpoints
from tests.pipelines import jobs
from tests.pipelines.test_without_cluster import photographs

SETTINGS = (
    "cluster=attached",
    "cluster.workers=2",
    "cluster.degrade_resource=1",
    "data=csv",
    "data.clean.name=folder",
    "data.rows_per_shard=8",
    "stage1.optim.batch_size=8",
    "stage1.optim.epochs=12",
    "stage1.optim.checkpoint_steps=4",
    "stage1.probe.epochs=null",
)


@dataclass
class Ended:
    """A job that was disturbed, and went on to its end."""

    code: int
    text: str


class Pretraining:
    """Stage 1 of a few pictures on a cluster: the same command for every fault."""

    def __init__(self, photos: Path, machines: Machines) -> None:
        self.machines = machines
        roots = (f"data.root={photos / 'scored'}", f"data.clean.root={photos / 'clean'}")
        self.arguments = (*roots, *SETTINGS)

    def run(self, output: Path, *more: str) -> str:
        """To its end; what it said."""
        answer = jobs.run(
            "pretrain",
            f"output={output}",
            *self.arguments,
            *more,
            variables=self.machines.variables,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def disturbed(
        self,
        output: Path,
        fault: Callable[[], None],
        *more: str,
        log: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> Ended:
        """Do something to it when it has taken two checkpoints, and wait for its end."""
        log = log or output.with_suffix(".log")
        with log.open("w") as stream:
            process = subprocess.Popen(
                [
                    sys.executable,
                    str(jobs.ROOT / "pipelines" / "pretrain.py"),
                    f"output={output}",
                    *self.arguments,
                    *more,
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=jobs.ROOT,
                env=jobs.environment() | (variables or self.machines.variables),
            )
            try:
                deadline = time.monotonic() + 180
                while checkpoints(output) < 2:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
                fault()
                code = process.wait(timeout=300)
            finally:
                process.kill()
                process.wait()
        return Ended(code, log.read_text())


def outcome(output: Path) -> tuple[str, list[dict]]:
    """Digest of the final weights, and the figures of every epoch."""
    (found,) = output.glob("models/pretrain-*/result.json")
    result = json.loads(found.read_text())
    return result["sha256"], result["history"]


@pytest.fixture(scope="package")
def machines() -> Iterator[Machines]:
    started = Machines()
    yield started
    started.close()


@pytest.fixture(scope="package")
def pretraining(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    photos = tmp_path_factory.mktemp("photos")
    photographs(photos, clean=34)  # three of them are held out: four steps an epoch
    return Pretraining(photos, machines)


@pytest.fixture(scope="package")
def undisturbed(
    pretraining: Pretraining, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[dict]]:
    output = tmp_path_factory.mktemp("undisturbed") / "runs"
    pretraining.run(output)
    return outcome(output)
