"""A cluster of several nodes on this machine: a head without CPUs, and workers that can be lost and come back."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.pipelines import jobs

WORKERS = 3
STORE_BYTES = 120_000_000


class Machines:
    """A running cluster.

    Args:
        workers: nodes of one CPU; all but the first offer the resource `degrade`.
    """

    def __init__(self, workers: int = WORKERS) -> None:
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
        self.variables = {
            "RAY_ADDRESS": self._cluster.address,
            # Ray Train looks more often than every two seconds whether its workers live.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        }

    def add(self, *, degrade: bool) -> None:
        """One more node."""
        resources = {"degrade": 1} if degrade else {}
        self.nodes.append(
            self._cluster.add_node(num_cpus=1, resources=resources, object_store_memory=STORE_BYTES)
        )

    def lose(self, node: Any) -> None:
        """SIGKILL a node with all that runs on it, and bring another one like it."""
        degrade = self.offers(node)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self.add(degrade=degrade)

    def drain(self, node: Any, seconds: int) -> None:
        """Tell Ray that a node will be taken away, as a cloud's notice of preemption does, and bring another."""
        degrade = self.offers(node)
        command = ["ray", "drain-node", f"--address={self._cluster.address}"]
        command += [f"--node-id={node.node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=taken back", f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(command, check=True, capture_output=True, env=jobs.environment(), timeout=60)
        self.add(degrade=degrade)
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
        return [one for node in self.nodes for one in self.on(node, title)]

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


def kill(process: psutil.Process) -> None:
    """SIGKILL, without a word."""
    os.kill(process.pid, signal.SIGKILL)


def checkpoints(output: Path) -> int:
    """How many a training has taken; two have been noted by Ray Train when there are two."""
    return len(list(output.glob("checkpoints/*/step_*")))
