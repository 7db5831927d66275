"""Running jobs as a person does: in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
# Every step does its real work on a part of the sample, with budgets that only show that it runs.
BRIEF = (
    "data.limit=120",
    "search.trials=2",
    "search.epochs=2",
    "stage1.optim.epochs=4",
    "stage1.optim.log_steps=20",
    "stage1.probe.images=9",
    "stage2.optim.epochs=3",
    "stage2.val_crops=1",
    "stage2.probe_images=9",
    "evaluate.crops=5",
    "evaluate.bootstrap=50",
)


def environment() -> dict[str, str]:
    """What a shell without any Ray or MLflow of its own would give."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "DRI_IQA_MODEL")) or name == "RAY_AUTH_MODE"
    }
    scripts = str(Path(sys.executable).parent)
    return kept | {"PATH": f"{scripts}:{kept['PATH']}", "PYTHONUNBUFFERED": "1"}


def run(
    job: str,
    *arguments: str,
    timeout: float = 600,
    cwd: Path = ROOT,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python pipelines/<job>.py` to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / f"{job}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment() | (variables or {}),
        timeout=timeout,
        check=False,
    )


def run_and_kill(
    job: str,
    *arguments: str,
    when: Callable[[], bool],
    log: Path,
    timeout: float = 300,
    variables: dict[str, str] | None = None,
) -> list[psutil.Process]:
    """Start a job and SIGKILL its driver as soon as `when` holds; returns the processes that it had started."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "pipelines" / f"{job}.py"), *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment() | (variables or {}),
        )
        deadline = time.monotonic() + timeout
        try:
            while not when():
                assert process.poll() is None, (
                    f"the job ended before it was killed:\n{log.read_text()}"
                )
                assert time.monotonic() < deadline, (
                    f"nothing to kill after {timeout} s:\n{log.read_text()}"
                )
                time.sleep(0.05)
        finally:
            running = process.poll() is None
            others = psutil.Process(process.pid).children(recursive=True) if running else []
            process.send_signal(signal.SIGKILL)
            process.wait()
    return others


def end_by_themselves(processes: list[psutil.Process], timeout: float = 60) -> bool:
    """Whether all end in time; one that only waits for its exit code to be read has ended."""
    deadline = time.monotonic() + timeout
    while any(map(_runs, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def summary(output: Path) -> dict:
    """What a finished main job left."""
    (found,) = output.glob("jobs/*/finished.json")
    return json.loads(found.read_text())
