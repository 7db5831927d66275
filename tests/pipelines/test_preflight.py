"""The preflight on a cluster of two nodes, a head without CPUs and a worker that offers `degrade`; later of three."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.runtime import config as configuration
from pipelines.runtime.capacity import settle
from pipelines.runtime.cluster import ClusterError, connect
from pipelines.runtime.findings import Finding
from pipelines.runtime.preflight import inspect
from tests.pipelines import jobs

pytestmark = pytest.mark.ray
STORE = 80_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes that this test starts and ends; this process is connected to them as a job is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(jobs.ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "include_dashboard": True, "object_store_memory": STORE}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", nodes.address)
        try:
            nodes.add_node(num_cpus=2, resources={"degrade": 1}, object_store_memory=STORE)
            nodes.wait_for_nodes()
            with connect(configuration.compose("full", []).cluster):
                yield nodes
        finally:
            nodes.shutdown()


def found(directory: Path | str, *overrides: str) -> dict[str, Finding]:
    config = configuration.compose("full", list(overrides))
    findings = inspect(config, str(directory), ray.cluster_resources(), print)[1]
    assert len(findings) == len({finding.check for finding in findings})
    return {finding.check: finding for finding in findings}


def failed(directory: Path | str, *overrides: str) -> Finding:
    """The one check that fails."""
    (bad,) = [
        finding for finding in found(directory, *overrides).values() if finding.state == "failed"
    ]
    assert bad.do
    return bad


def test_all_is_well(cluster: Cluster, tmp_path: Path) -> None:
    findings = found(tmp_path, "cluster.degrade_resource=0.5")
    assert set(findings) == {
        "resources", "nodes", "versions", "clocks", "store", "State API", "disk", "shared memory",
        "weights", "data",
    }  # fmt: skip
    assert "failed" not in {finding.state for finding in findings.values()}
    assert findings["nodes"].found == "2 answered"
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.parametrize(
    ("overrides", "check", "said"),
    [
        (["cluster.gpus_per_worker=1"], "resources", "not enough GPUs: 1 worker(s) x 1"),
        (["cluster.degrade_resource=2"], "resources", "2 of the resource 'degrade', the cluster has 1"),
        (["tracking=server", "tracking.uri=http://127.0.0.1:9"], "MLflow", "refused"),
        (["model.backbone.weights=/nowhere/vit.safetensors"], "weights", "/nowhere/vit.safetensors"),
        (["data=csv", "data.root=/nowhere"], "data", "data.root: /nowhere does not exist"),
    ],
)  # fmt: skip
def test_each_failure_is_told_apart(
    cluster: Cluster, tmp_path: Path, overrides: list[str], check: str, said: str
) -> None:
    finding = failed(tmp_path, *overrides)
    assert finding.check == check
    assert said in finding.found


def test_a_store_that_only_the_driver_has(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # `~` is one folder here, another on the nodes
    finding = failed("~/job")
    assert (finding.check, finding.where[:7]) == ("store", "2 nodes")
    assert "no folder that all nodes share" in finding.found


def job(name: str, cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return jobs.run(name, *arguments, variables={"RAY_ADDRESS": cluster.address}, timeout=120)


def test_it_is_a_command(cluster: Cluster, tmp_path: Path) -> None:
    answer = job("preflight", cluster, f"output={tmp_path}", "cluster.degrade_resource=0.5")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "clocks" in answer.stdout
    assert "preflight 10 checks, " in answer.stdout
    assert not (tmp_path / "mlflow.db").exists()


def test_a_job_ends_before_anything_is_done(cluster: Cluster, tmp_path: Path) -> None:
    weights = f"model.backbone.weights={tmp_path / 'no.safetensors'}"
    answer = job("full", cluster, f"output={tmp_path}", "cluster.gpus_per_worker=1", weights)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert "error: resources: not enough GPUs" in answer.stderr
    assert "(and 1 more, see the table)" in answer.stderr
    cells = [line.split("│") for line in answer.stdout.splitlines() if line.count("│") > 4]
    columns = ["".join(map(str.strip, column)) for column in zip(*cells, strict=True)]
    assert any("no.safetensors" in column for column in columns), "however the table wraps it"
    assert not (tmp_path / "data").exists()


def test_nodes_that_an_autoscaler_brings_are_waited_for(cluster: Cluster) -> None:
    def plan(wait_s: int) -> float:
        overrides = ["cluster.gpus_per_worker=1", f"cluster.wait_s={wait_s}"]
        config = configuration.compose("full", overrides)
        return settle(config, ray.cluster_resources(), said.append).total_gpus

    said: list[str] = []
    with pytest.raises(ClusterError, match="no nodes came in 1 s"):
        plan(1)
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(plan, 60)
        while len(said) < 2:  # once for each call
            time.sleep(0.05)
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)
        assert waiting.result() == 1
    assert said[-1].startswith("waiting up to 60 s for nodes: not enough GPUs")
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}


def test_a_head_without_its_dashboard(cluster: Cluster, tmp_path: Path) -> None:
    cluster.head_node.kill_dashboard()  # the last test: nothing of it comes back
    assert failed(tmp_path).check == "State API"
