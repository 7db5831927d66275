"""What breaks although nothing is lost: a full disk, a loss that is no number, a clock that jumps, a notice to go."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Pretraining, outcome
from tests.faults.test_lost import TRAIN_WORKER
from tests.pipelines import jobs

pytestmark = pytest.mark.ray


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(pretraining: Pretraining, undisturbed, small_disk: Path) -> None:
    """The rank that writes fails with its own words; with room again the same command goes on."""
    output, filler = small_disk / "runs", small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    ended = pretraining.disturbed(
        output, fill, "cluster.max_failures=0", log=small_disk.parent / "log"
    )
    assert ended.code == 1, ended.text
    assert "No space left on device" in ended.text
    assert "Traceback" not in ended.text
    filler.unlink()
    said = pretraining.run(output)
    assert "resumed from the checkpoint" in said
    assert outcome(output) == undisturbed


def test_a_loss_that_is_no_number(pretraining: Pretraining, tmp_path: Path) -> None:
    """Every rank raises, the images are named, and nothing is tried again that would fail again."""
    answer = jobs.run(
        "pretrain",
        f"output={tmp_path / 'runs'}",
        *pretraining.arguments,
        "stage1.optim.lr=1e30",
        variables=pretraining.machines.variables,
    )
    assert answer.returncode == 1, answer.stdout
    assert "the loss is not finite (images " in answer.stderr
    assert "lower the learning rate" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "resumed" not in answer.stdout


JUMPING = """
import time
real, begun = time.time, time.monotonic()
time.time = lambda: real() + (0, -3600, 86400)[min(int((time.monotonic() - begun) / 6), 2)]
time.time_ns = lambda: int(time.time() * 1e9)
"""


def test_a_clock_that_is_set_back_and_forward(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    """In every Python process of the job: an hour back after six seconds, a day ahead after twelve."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    answer = jobs.run(
        "pretrain",
        f"output={tmp_path / 'runs'}",
        *pretraining.arguments,
        "cluster=local",
        "cluster.degrade_resource=0",
        "cluster.cpus_per_worker=0.5",
        variables={"PYTHONPATH": str(tmp_path)},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert outcome(tmp_path / "runs") == undisturbed


def test_a_node_that_is_told_to_leave(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    """A checkpoint within the notice, and the rest of the training elsewhere."""
    machines = pretraining.machines

    def notice() -> None:
        node = next(node for node in machines.nodes if machines.on(node, TRAIN_WORKER))
        machines.drain(node, seconds=40)

    ended = pretraining.disturbed(tmp_path / "runs", notice)
    assert ended.code == 0, ended.text
    assert outcome(tmp_path / "runs") == undisturbed
