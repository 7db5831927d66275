"""A cluster of several nodes on this machine: a head without CPUs, and workers that can be lost and come back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

TRAIN_WORKER, DATA_TASK, STREAM = "ray::RayTrainWorker", "ray::Map", "ray::SplitCoordinator"
"""Titles of processes: a rank, one that degrades, and the one that hands a rank its batches."""
WORKERS = 3
STORE_BYTES = 120_000_000


class Machines:
    """A running cluster.

    Args:
        clock: a library that shifts the time of day of every process that loads it; None leaves the time alone.
        clock_folder: where that library looks for when to do so.
        workers: nodes of one CPU; all but the first offer the resource `degrade`.
    """

    def __init__(self, clock: Path | None, clock_folder: Path, workers: int = WORKERS) -> None:
        # Ray Train looks more often than every two seconds whether its workers live, and for notices to leave.
        self.variables = {
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
        }
        if clock is not None:
            self.variables |= {"LD_PRELOAD": str(clock), "CLOCK_FOLDER": str(clock_folder)}
        with self._environment():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": True,
                    "dashboard_port": 0,
                    "object_store_memory": STORE_BYTES,
                },
            )
        self.nodes: list[Any] = []
        self._leaving: list[Any] = []
        for number in range(workers):
            self.add(degrade=number > 0)
        self._cluster.wait_for_nodes()
        self.address = self._cluster.address
        self.variables["RAY_ADDRESS"] = self.address

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Processes that are started in the block inherit the jobs' variables, but for the address."""
        with pytest.MonkeyPatch.context() as patch:
            for name in self.variables.keys() - {"RAY_ADDRESS"}:
                patch.setenv(name, self.variables[name])
            yield

    def add(self, *, degrade: bool) -> None:
        """One more node."""
        resources = {"degrade": 1} if degrade else {}
        with self._environment():
            node = self._cluster.add_node(
                num_cpus=1, resources=resources, object_store_memory=STORE_BYTES
            )
        self.nodes.append(node)

    def lose(self, node: Any) -> None:
        """SIGKILL a node with all that runs on it."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: int) -> None:
        """Tell Ray that a node will be taken away, as a cloud's notice of preemption does."""
        accepted, reason = GcsClient(address=self.address).drain_node(
            node.node_id,
            DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "taken back",
            int(1000 * (time.time() + seconds)),
        )
        assert accepted, reason
        self._leaving.append(node)
        self.nodes.remove(node)

    @staticmethod
    def offers(node: Any) -> bool:
        """Whether a node offers `degrade`."""
        return "degrade" in node.get_resource_and_label_spec().resources

    def take_away(self) -> None:
        """Lose the nodes that were told to leave."""
        while self._leaving:
            self._cluster.remove_node(self._leaving.pop(), allow_graceful=False)

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's processes whose title begins so, on all nodes."""
        return [one for node in (*self.nodes, *self._leaving) for one in self.on(node, title)]

    def on(self, node: Any, title: str) -> list[psutil.Process]:
        """Ray's processes of a node whose title begins so."""
        found = []
        for raylet in self.raylets(node):
            for process in raylet.children(recursive=True):
                try:
                    if " ".join(process.cmdline()).startswith(title):
                        found.append(process)
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
        return found

    @staticmethod
    def raylets(node: Any) -> list[psutil.Process]:
        """The processes that a node is."""
        return [
            psutil.Process(info.process.pid)
            for info in node.all_processes.get("raylet", [])
            if info.process.poll() is None
        ]

    def close(self) -> None:
        """End exactly what was started here."""
        self._cluster.shutdown()


@contextmanager
def standing_still(processes: list[psutil.Process]) -> Iterator[None]:
    """In the block they do nothing, so that what happens meanwhile does not depend on how fast the machine is."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def kill(process: psutil.Process) -> None:
    """SIGKILL, without a word."""
    os.kill(process.pid, signal.SIGKILL)
