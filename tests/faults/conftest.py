from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.machines import Machines
from tests.pipelines import jobs
from tests.pipelines.test_without_cluster import photographs

# Of four steps, for all that happens to one training: on a fast machine some twenty steps for each fault.
EPOCHS = 44
DATA = ("data=csv", "data.clean.name=folder", "data.rows_per_shard=8")
SETTINGS = (
    "cluster=attached",
    "cluster.workers=2",
    # a node holds both workers and a data process, so it never matters which node holds what
    "cluster.cpus_per_worker=0.3",
    "cluster.degrade_resource=1",
    *DATA,
    "stage1.optim.batch_size=8",
    f"stage1.optim.epochs={EPOCHS}",
    "stage1.optim.t_max=300",  # so that a shorter training begins as this one does
    "stage1.optim.checkpoint_steps=4",
    "stage1.optim.preemption_steps=2",
    "stage1.probe.epochs=null",
)
PATIENCE_S = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--resume-times",
        metavar="FILE",
        help="write the seconds that it took to go on after each fault, as JSON",
    )


class Running:
    """A job with few pictures in a process of its own, watched from outside. A context manager."""

    def __init__(
        self, job: str, arguments: tuple[str, ...], output: Path, log: Path, variables: dict
    ) -> None:
        self.output, self._log = output, log
        self.begun = time.monotonic()
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(jobs.ROOT / "pipelines" / f"{job}.py"),
                    f"output={output}",
                    *arguments,
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=jobs.ROOT,
                env=jobs.environment() | variables,
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def step(self) -> int:
        """Of its newest checkpoint; 0 where there is none."""
        found = self.output.glob("checkpoints/*/step_*")
        return max((int(path.name.removeprefix("step_")) for path in found), default=0)

    def resumed(self) -> list[tuple[int, int]]:
        """The steps it has resumed from, and with how many workers each time."""
        pattern = r"resumed from the checkpoint at step (\d+) of \d+ on (\d+) worker"
        return [(int(step), int(workers)) for step, workers in re.findall(pattern, self.text)]

    def wait(self, what: Callable[[], object]) -> None:
        """Until something is so, while the training runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.2)

    def goes_on(self) -> None:
        """Wait for two more checkpoints: Ray Train has then taken note of one."""
        reached = self.step() + 4
        self.wait(lambda: self.step() > reached)

    def recovers(self, fault: Callable[[], None], workers: int = 2) -> tuple[int, float]:
        """Do something after which it starts again, on so many workers.

        Returns:
            The step it resumed from, and the seconds until a checkpoint beyond those from before.
        """
        before, begun = len(self.resumed()), time.monotonic()
        fault()
        self.wait(lambda: any(found == workers for _, found in self.resumed()[before:]))
        return self.resumed()[-1][0], self.passes(begun)

    def passes(self, begun: float) -> float:
        """Seconds from `begun` to a checkpoint that is newer than all there are."""
        reached = self.step()
        self.wait(lambda: self.step() > reached)
        return time.monotonic() - begun

    def ends(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=PATIENCE_S)


class Pretraining:
    """The same command for every fault."""

    def __init__(self, photos: Path, machines: Machines) -> None:
        self.machines = machines
        roots = (f"data.root={photos / 'scored'}", f"data.clean.root={photos / 'clean'}")
        self.data = (*roots, *DATA)
        self.arguments = (*roots, *SETTINGS)

    def start(
        self, output: Path, log: Path, *more: str, job: str = "pretrain", **variables: str
    ) -> Running:
        """On the cluster; `job` may be one that does more after it."""
        arguments, environment = (*self.arguments, *more), self.machines.variables | variables
        return Running(job, arguments, output, log, environment)


def outcome(output: Path) -> tuple[str, list[dict]]:
    """Digest of the final weights, and the figures of every epoch."""
    (found,) = output.glob("models/pretrain-*/result.json")
    result = json.loads(found.read_text())
    return result["sha256"], result["history"]


@pytest.fixture(scope="package")
def clock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of certain names in it shift the cluster's time of day."""
    return tmp_path_factory.mktemp("clock")


@pytest.fixture(scope="package")
def shifted_clock(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A library that shifts the time of day of every process that loads it; None where it cannot be compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    target = tmp_path_factory.mktemp("library") / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"], check=True
    )
    return target


@pytest.fixture(scope="package")
def machines(shifted_clock: Path | None, clock_folder: Path) -> Iterator[Machines]:
    started = Machines(shifted_clock, clock_folder)
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
    folder = tmp_path_factory.mktemp("undisturbed")
    with pretraining.start(folder / "runs", folder / "log") as job:
        assert job.ends() == 0, job.text
    return outcome(folder / "runs")


@pytest.fixture(scope="package")
def resume_times(request: pytest.FixtureRequest) -> Iterator[dict[str, float]]:
    """Fault -> seconds until training went on; written where `--resume-times` says."""
    times: dict[str, float] = {}
    yield times
    if file := request.config.getoption("--resume-times", default=None):
        commit = ["git", "rev-parse", "--short", "HEAD"]
        answer = subprocess.run(commit, capture_output=True, text=True, cwd=jobs.ROOT)
        made = {
            "commit": answer.stdout.strip(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[2], 1),
            "seconds": {name: round(value, 1) for name, value in times.items()},
        }
        Path(file).write_text(json.dumps(made, indent=2) + "\n")
