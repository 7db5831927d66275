"""A Ray that a job starts for itself is not to be seen from other machines."""

from __future__ import annotations

import psutil
import pytest
import ray

from pipelines.runtime import config as configuration
from pipelines.runtime.cluster import connect

pytestmark = pytest.mark.ray


def abs_of(number: int) -> int:
    return abs(number)


def test_nothing_listens_beyond_loopback() -> None:
    config = configuration.compose("full", ["cluster=local"]).cluster
    with connect(config):
        ray.get(ray.remote(num_cpus=0)(abs_of).remote(-1))  # a worker is up
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            (connection.laddr.ip, process.name())
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
