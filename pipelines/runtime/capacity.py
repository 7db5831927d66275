"""Whether a cluster can hold a job, part by part, and waiting for nodes that an autoscaler brings.

Sums are not enough: four GPUs on four nodes never hold one worker that asks for four, and Ray would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.runtime.cluster import ClusterError, Plan, fewest_workers, plan_resources
from pipelines.runtime.config import ClusterConfig, JobConfig

Resources = dict[str, float]
TINY = 1e-9
"""Resources are added up in floating point."""
ENOUGH = 1_000_000
"""How many parts that ask for nothing a node holds."""


def settle(config: JobConfig, totals: Resources, say: Callable[[str], None]) -> Plan:
    """The job's plan on the cluster as it is, or as it is once the autoscaler has brought what is missing.

    Raises:
        ClusterError: it does not fit, and did not within `cluster.wait_s`.
    """
    cluster, trials = config.cluster, trainings(config)
    try:
        return _fit(cluster, totals, trials)
    except ClusterError as error:
        if not (cluster.wait_s and ray.is_initialized()):
            raise
        reason, _, advice = str(error).partition("\n")
    say(f"waiting up to {cluster.wait_s:.0f} s for nodes: {reason}")
    # A placement group that waits is what an autoscaler provides for; it ends with this job, however that ends.
    group = placement_group(parts(cluster), strategy="PACK")
    try:
        if not group.wait(cluster.wait_s):
            raise ClusterError(f"{reason}, and no nodes came in {cluster.wait_s:.0f} s\n{advice}")
    finally:
        remove_placement_group(group)
    now = {name: float(amount) for name, amount in ray.cluster_resources().items()}
    return _fit(cluster, now, trials)


def trainings(config: JobConfig) -> int:
    """How many trainings the job may have at the same time."""
    if config.job == "evaluate":
        protocol = config.protocol
        return protocol.splits * len(protocol.seeds) * len(protocol.variants)
    return min(config.search.trials, config.search.concurrent or config.search.trials)


def parts(config: ClusterConfig) -> list[Resources]:
    """What each training worker that there must be and one data task ask of a node."""
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    task = {"CPU": config.cpus_per_data_task, "degrade": config.degrade_resource}
    asked = [worker] * fewest_workers(config) + [task]
    return [{name: amount for name, amount in part.items() if amount} for part in asked]


def check_parts(config: ClusterConfig, nodes: Sequence[Resources]) -> None:
    """Whether some node holds each part.

    Raises:
        ClusterError: one line with what is asked for and what the best node has, one with what to change.
    """
    *workers, task = parts(config)
    worker = workers[0]
    room = sum(_copies(worker, node) for node in nodes)
    if room < len(workers):
        raise ClusterError(
            f"{len(workers)} worker(s) x {_words(worker)} are asked for, the nodes hold {room}: "
            f"{'; '.join(sorted({_words(_only(node)) for node in nodes}))}\n"
            "a worker must fit into one node: lower cluster.cpus_per_worker or cluster.gpus_per_worker, or use "
            "larger nodes"
        )
    if not any(_copies(task, node) for node in nodes):
        raise ClusterError(
            f"no node holds a data task of {_words(task)}\n"
            "start CPU nodes with --resources='{\"degrade\": N}', or lower cluster.degrade_resource"
        )


def _fit(config: ClusterConfig, totals: Resources, trials: int) -> Plan:
    plan = plan_resources(config, totals, trials)
    if ray.is_initialized():
        check_parts(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    return plan


def _copies(part: Resources, node: Resources) -> int:
    """How many of a part a node holds."""
    copies = (int((node.get(name, 0.0) + TINY) // amount) for name, amount in part.items())
    return min(copies, default=ENOUGH)


def _only(node: Resources) -> Resources:
    return {name: node[name] for name in ("CPU", "GPU", "degrade") if node.get(name)}


def _words(resources: Resources) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
