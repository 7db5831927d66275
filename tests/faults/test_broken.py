"""What breaks although nothing is lost: a full disk, a loss that is no number, a clock that jumps, a notice to go."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Pretraining, outcome
from tests.faults.test_lost import TRAIN_WORKER
from tests.pipelines import jobs

pytestmark = pytest.mark.ray


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 GB, which takes memory as it fills."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(place)], capture_output=True
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
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    ended = pretraining.disturbed(
        output, fill, "cluster.max_failures=0", log=small_disk.parent / "log"
    )
    assert ended.code == 2, ended.text
    assert "error: cannot write" in ended.text
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
    assert answer.returncode == 2, answer.stdout
    assert "the loss is not finite (images " in answer.stderr
    assert "lower the learning rate" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "resumed" not in answer.stdout


@pytest.fixture(scope="module")
def shifted_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the time of day of every process that loads it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to shift clocks with")
    target = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"], check=True
    )
    return target


def test_a_clock_that_is_set_back_and_forward(
    pretraining: Pretraining, undisturbed, shifted_clock: Path, tmp_path: Path
) -> None:
    """In every process of the job and of its Ray: an hour back, then a day ahead, while it trains."""
    folder, output = tmp_path / "clock", tmp_path / "runs"
    folder.mkdir()

    def jump() -> None:
        (folder / "back").touch()
        time.sleep(1)
        (folder / "ahead").touch()

    ended = pretraining.disturbed(
        output,
        jump,
        "cluster=local",
        "cluster.degrade_resource=0",
        variables={"LD_PRELOAD": str(shifted_clock), "CLOCK_FOLDER": str(folder)},
    )
    assert ended.code == 0, ended.text
    assert outcome(output) == undisturbed
    (result,) = output.glob("models/pretrain-*/result.json")
    assert 0 < json.loads(result.read_text())["seconds"] < 600, "durations are not taken from it"
    (spool,) = output.glob("jobs/*/tracking/*/records.jsonl")
    times = [json.loads(line)["time"] for line in spool.read_text().splitlines()]
    assert max(times) - min(times) > 80_000_000, "it was set, in milliseconds"


def test_a_node_that_is_told_to_leave(
    pretraining: Pretraining, undisturbed, tmp_path: Path
) -> None:
    """A checkpoint within the notice, and the rest of the training elsewhere."""
    machines = pretraining.machines

    def notice() -> None:
        node = next(node for node in machines.nodes if machines.on(node, TRAIN_WORKER))
        machines.drain(node, seconds=40)

    ended = pretraining.disturbed(tmp_path / "runs", notice)
    machines.take_away()
    assert ended.code == 0, ended.text
    assert outcome(tmp_path / "runs") == undisturbed
