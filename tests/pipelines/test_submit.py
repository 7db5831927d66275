"""The same job under `ray job submit`, against a head that this test starts and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.pipelines import jobs

pytestmark = pytest.mark.ray

REST = (jobs.BRIEF[0], *jobs.BRIEF[2:])
# What is submitted in either way. A search of one trial leaves what a search can leave. The second job takes stage 1
# from the first and trains stage 2 on two workers; tests/faults has what befalls those in stage 1.
WAYS = (
    (("--working-dir", "."), ("search.trials=1", "stage2.optim.epochs=2"), 1),
    (
        (),
        (
            "search.trials=0",
            "stage2.optim.epochs=1",
            "cluster.workers=2",
            "cluster.cpus_per_worker=0.5",
        ),
        2,
    ),
)


def free_port() -> int:
    # Ray's client server wants a port outside the range of its workers.
    for port in range(20100, 20200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head started in the project's root; yields the environment of a shell that talks to it."""
    folder = tmp_path_factory.mktemp("head")
    environment = jobs.environment() | {"HOME": str(folder), "RAY_AUTH_MODE": "token"}
    subprocess.run(
        ["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True
    )
    dashboard = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "ray",
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
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
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
                break
            except urllib.error.HTTPError:
                break  # it answers, and wants a token
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield environment | {"RAY_ADDRESS": address}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def submit(
    head: dict[str, str], *options: str, arguments: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", *options, "--", "python", "pipelines/full.py", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=jobs.ROOT, env=head, timeout=900, check=False
    )


def test_both_ways_of_submitting_register_a_version(head: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "runs"
    for before, (options, settings, workers) in enumerate(WAYS):
        # Chains run only where a node offers `degrade`, as this one does.
        arguments = (f"output={output}", *REST, *settings, "cluster.degrade_resource=0.4")
        answer = submit(head, *options, arguments=arguments)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert f"{workers} training worker(s)" in answer.stdout
        client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
        versions = client.search_model_versions("name = 'dri-iqa'")
        assert len(versions) == before + 1
        champion = client.get_model_version_by_alias("dri-iqa", "champion")
        decided = client.get_model_version("dri-iqa", str(before + 1)).tags["decision"]
        assert decided == ("champion" if int(champion.version) == before + 1 else "candidate")


def test_a_failing_job_has_an_exit_code(head: dict[str, str], tmp_path: Path) -> None:
    answer = submit(
        head, "--working-dir", ".", arguments=(f"output={tmp_path}", "stage1.optm.lr=1")
    )
    assert answer.returncode != 0
    assert "did you mean stage1.optim.lr?" in answer.stdout + answer.stderr


LEFT = """
import ray
from ray.util.state import list_actors, list_placement_groups
ray.init(log_to_driver=False)
groups = [group.placement_group_id for group in list_placement_groups() if group.state != "REMOVED"]
alive = {actor.class_name.partition("(")[0] for actor in list_actors(filters=[("state", "=", "ALIVE")])}
# Ray Data keeps detached actors of its own for the life of the cluster.
ours = alive & {"_Records", "Claims", "ImplicitFunc", "TrainController", "RayTrainWorker", "MapWorker"}
print("LEFT", len(groups), sorted(ours))
"""


def test_nothing_is_left_on_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    command = ["ray", "job", "submit", "--", "python", str(script)]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=jobs.ROOT, env=head, timeout=120, check=False
    )
    assert "LEFT 0 []" in answer.stdout, answer.stdout + answer.stderr
