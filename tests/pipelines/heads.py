"""A Ray head that takes jobs by `ray job submit`, and what is left on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.pipelines import jobs

# What is not gone when a job has ended: placement groups that are not removed, and actors of ours that are alive.
# Ray Data keeps detached actors of its own for the life of the cluster.
LEFT = """
import ray
from ray.util.state import list_actors, list_placement_groups
ray.init(log_to_driver=False)
groups = [group.placement_group_id for group in list_placement_groups() if group.state != "REMOVED"]
alive = {actor.class_name.partition("(")[0] for actor in list_actors(filters=[("state", "=", "ALIVE")])}
ours = alive & {"_Records", "Claims", "ImplicitFunc", "TrainController", "RayTrainWorker", "MapWorker"}
print("LEFT", len(groups), sorted(ours))
"""
NOTHING_LEFT = "LEFT 0 []"
# Chains run only where a node offers `degrade`, as this one does.
DEGRADE = "cluster.degrade_resource=0.4"


class Head:
    """A running head; jobs are sent to it from the project's root.

    Args:
        variables: the environment of a shell that talks to it.
        folder: where it may write.
    """

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self.variables, self._folder = variables, folder

    def submit(
        self, *options: str, entrypoint: tuple[str, ...], timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit <options> -- <entrypoint>`, to its end."""
        return subprocess.run(
            ["ray", "job", "submit", *options, "--", *entrypoint],
            capture_output=True,
            text=True,
            cwd=jobs.ROOT,
            env=self.variables,
            timeout=timeout,
            check=False,
        )

    def left(self) -> str:
        """Placement groups and actors that jobs left, in a line; `NOTHING_LEFT` where there are none."""
        script = self._folder / "left.py"
        script.write_text(LEFT)
        answer = self.submit(entrypoint=("python", str(script)), timeout=120)
        found = [line for line in answer.stdout.splitlines() if line.startswith("LEFT")]
        return found[0] if found else answer.stdout + answer.stderr


@contextlib.contextmanager
def head(folder: Path) -> Iterator[Head]:
    """Start a head with two CPUs and token authentication; it ends with the block."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment = jobs.environment() | token
    dashboard = _free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--num-cpus=2"),
                '--resources={"degrade": 1}',
                "--port=0",
                "--include-dashboard=true",
                f"--dashboard-port={dashboard}",
                f"--temp-dir={tempfile.mkdtemp(prefix='head-')}",  # its sockets want a short path
                "--object-store-memory=300000000",
            ],
            cwd=jobs.ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait(process, address, folder / "log")
        yield Head(environment | {"RAY_ADDRESS": address}, folder)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and wants a token
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


def _free_port() -> int:
    # Ray's client server wants a port outside the range of its workers.
    for port in range(20100, 20200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")
