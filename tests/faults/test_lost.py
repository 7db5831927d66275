"""One training to which everything happens: processes, nodes, the disk and the driver are lost, and the clock jumps.

Each time it goes on, and it ends as if nothing had happened. The last module of this folder by its name: timers of
Ray's daemons stand still for minutes once the clock was set back, and whatever starts on the cluster waits for them.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.conftest import Pretraining, Running, outcome
from tests.faults.machines import DATA_TASK, STREAM, TRAIN_WORKER, Machines, kill, standing_still

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
]  # of the first test, to which it all happens
FAILURES = 2
"""What a rank and a node that are lost use up; a node that leaves with notice must not count."""
NOTICE_S = 12


@dataclass
class Story:
    """What was seen on the way."""

    output: Path
    data_nodes: list[bool] = field(default_factory=list)
    """Of every data process: whether its node offers `degrade`."""
    resumed: dict[str, int] = field(default_factory=dict)
    """Fault -> the step from which training went on."""
    reached: dict[str, int] = field(default_factory=dict)
    """Fault -> the newest checkpoint when it came."""
    full_disk: tuple[int, str] = (0, "")
    """Exit code, and what was said."""
    code: int | None = None
    seconds: float = 0.0
    """From the first command to the end of the last, by a clock that nobody sets."""


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file system of 2 GB, which takes memory as it fills; None where none can be mounted."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def story(
    pretraining: Pretraining,
    small_disk: Path | None,
    clock_folder: Path,
    resume_times: dict[str, float],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """From the first command to the end of the last."""
    machines, logs = pretraining.machines, tmp_path_factory.mktemp("logs")
    output = (small_disk or logs) / "runs"
    seen, begun = Story(output), time.monotonic()

    def happens(job: Running, name: str, fault: Callable[[], None]) -> None:
        job.goes_on()
        seen.reached[name] = job.step()
        seen.resumed[name], resume_times[name] = job.recovers(fault)

    limits = (f"cluster.max_failures={FAILURES}", "cluster.max_preemptions=1")
    with pretraining.start(output, logs / "1", *limits) as job:
        job.goes_on()
        resume_times["a data process is killed"] = lose_a_data_process(job, machines, seen)
        happens(job, "a rank is killed", lambda: lose_a_rank(machines))
        happens(job, "a node is lost", lambda: lose_a_node(machines))
        happens(job, "a node leaves with notice", lambda: notice(job, machines))
        machines.take_away()
        if small_disk:
            job.goes_on()
            filler = small_disk / "filler"
            fill(filler)
            seen.full_disk = job.ends(), job.text
            filler.unlink()
    with pretraining.start(output, logs / "2") as job:
        again = goes_on_again(job)
        if small_disk:
            seen.resumed["the disk was full"], resume_times["the disk was full"] = again
        job.goes_on()
        seen.reached["the driver is killed"] = job.step()
    with pretraining.start(output, logs / "3") as job:
        again = goes_on_again(job)
        seen.resumed["the driver is killed"], resume_times["the driver is killed"] = again
        with jumping_clock(clock_folder):
            seen.code = job.ends()
        assert seen.code == 0, job.text
    seen.seconds = time.monotonic() - begun
    return seen


def lose_a_data_process(job: Running, machines: Machines, seen: Story) -> float:
    """Seconds until another process is in its place."""
    before = {process.pid for process in machines.processes(DATA_TASK)}
    for node in machines.nodes:
        found = machines.on(node, DATA_TASK)
        seen.data_nodes += [machines.offers(node)] * len(found)
    assert before, "a data process"
    begun = time.monotonic()
    lost = random.Random(0).choice(machines.processes(DATA_TASK))
    kill(lost)
    job.wait(lambda: {process.pid for process in machines.processes(DATA_TASK)} - before)
    return time.monotonic() - begun


def lose_a_rank(machines: Machines) -> None:
    workers = machines.processes(TRAIN_WORKER)
    assert len(workers) == 2
    kill(workers[1])


def lose_a_node(machines: Machines) -> None:
    node = next(node for node in machines.nodes if machines.on(node, TRAIN_WORKER))
    machines.lose(node)
    machines.add(degrade=machines.offers(node))


def notice(job: Running, machines: Machines) -> None:
    node = next(node for node in machines.nodes if machines.on(node, TRAIN_WORKER))
    machines.drain(node, NOTICE_S)
    gone = time.monotonic() + NOTICE_S
    job.wait(lambda: "a node is about to be taken away: checkpoint at step" in job.text)
    with standing_still(machines.processes(STREAM)):
        machines.add(degrade=machines.offers(node))
        job.wait(lambda: time.monotonic() > gone)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextlib.contextmanager
def jumping_clock(folder: Path) -> Iterator[None]:
    """Set back an hour, and a second later set a day ahead; right again after the block."""
    try:
        (folder / "back").touch()
        time.sleep(1)
        (folder / "ahead").touch()
        yield
    finally:
        for name in ("back", "ahead"):
            (folder / name).unlink(missing_ok=True)


def goes_on_again(job: Running) -> tuple[int, float]:
    """The same command: the step it resumed from, and seconds from its start to a new checkpoint."""
    job.wait(job.resumed)
    return job.resumed()[0][0], job.passes(job.begun)


def test_it_ends_as_if_nothing_had_happened(story: Story, undisturbed) -> None:
    """Weights and every epoch's figures, bit by bit: no sample is lost or doubled."""
    assert story.code == 0
    assert outcome(story.output) == undisturbed


def test_degradation_runs_where_it_is_offered(story: Story) -> None:
    assert story.data_nodes
    assert all(story.data_nodes)


@pytest.mark.parametrize(
    "fault", ["a rank is killed", "a node is lost", "a node leaves with notice"]
)
def test_it_goes_on_from_a_checkpoint_of_shortly_before(story: Story, fault: str) -> None:
    """One that was being taken, or of which Ray Train had not taken note, may be lost."""
    assert story.reached[fault] - 8 <= story.resumed[fault]


def test_a_node_that_is_told_to_leave(story: Story) -> None:
    """A checkpoint within the notice, and the rest of the training elsewhere."""
    assert story.resumed["a node leaves with notice"] > story.reached["a node leaves with notice"]


def test_a_killed_driver_started_again(story: Story) -> None:
    fault = "the driver is killed"
    assert story.reached[fault] - 8 <= story.resumed[fault]


def test_a_full_disk(story: Story, small_disk: Path | None) -> None:
    """The rank that writes fails with its own words; with room again the same command goes on.

    It was one failure too many: the lost rank and the lost node were all that were allowed, and the node that left
    with notice was none.
    """
    if small_disk is None:
        pytest.skip("no small file system can be mounted here")
    code, text = story.full_disk
    assert code == 2, text
    assert "error: cannot write" in text
    assert "No space left on device" in text
    assert "Traceback" not in text
    assert story.resumed["the disk was full"] > story.resumed["a node leaves with notice"]


def test_a_clock_that_is_set_back_and_forward(story: Story, shifted_clock: Path | None) -> None:
    """In every process of the job and of the cluster: an hour back, then a day ahead, while it trains."""
    if shifted_clock is None:
        pytest.skip("no C compiler to shift clocks with")
    (result,) = story.output.glob("models/pretrain-*/result.json")
    taken = json.loads(result.read_text())["seconds"]
    assert 0 < taken < story.seconds, "durations are not taken from it"
    (spool,) = story.output.glob("jobs/*/tracking/*/records.jsonl")
    times = [json.loads(line)["time"] for line in spool.read_text().splitlines()]
    assert max(times) - min(times) > 80_000_000, "it was set, in milliseconds"
