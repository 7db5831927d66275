"""What a search must not leave behind: placement groups, actors, temporary checkpoints. Looked for, not trusted."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from dri_iqa import storage

PATIENCE_S = 30.0
"""How long Ray may take to clear away what belonged to a trial that was stopped."""
AT_MOST = 10_000
"""Rows that the State API gives."""


def scratch_prefix(checkpoints: str) -> str:
    """How temporary folders of checkpoints on a node's disk are called.

    Args:
        checkpoints: URI of the folder that they are meant for; all runs below it share the name.
    """
    return f"checkpoint-{hashlib.sha256(checkpoints.encode()).hexdigest()[:12]}-"


def held() -> dict[str, str]:
    """Placement groups and actors of this job that exist now: id -> what it is.

    Actors of other namespaces are left out: Ray Data keeps some of its own there for the cluster's whole life.

    Raises:
        RayStateApiException: the State API does not answer.
    """
    context = ray.get_runtime_context()
    job = context.get_job_id()
    # without an address Ray looks for clusters on this machine, and refuses where there are several
    where: dict[str, Any] = {"address": context.gcs_address, "limit": AT_MOST}
    groups: Any = list_placement_groups(filters=[("state", "!=", "REMOVED")], **where)
    own: Any = [("job_id", "=", job), ("ray_namespace", "=", context.namespace)]
    actors: Any = list_actors(filters=[*own, ("state", "!=", "DEAD")], **where)
    found = {
        group.placement_group_id: f"placement group {group.placement_group_id} ({group.state})"
        for group in groups
        if group.creator_job_id == job
    }
    return found | {actor.actor_id: f"actor {actor.class_name} ({actor.state})" for actor in actors}


def left_behind(
    before: dict[str, str],
    *,
    folders: list[str],
    checkpoints: str,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """What is there that was not there before; waits for Ray to clear away, and clears the nodes' disks itself.

    Args:
        before: what was `held` before.
        folders: URIs that must hold no file any more.
        checkpoints: URI of the folder that temporary checkpoints on nodes were meant for.
        patience_s: how long to wait for Ray.

    Returns:
        A line for each; empty if all is as it should be.
    """
    deadline = time.monotonic() + patience_s
    try:
        while (new := held().keys() - before.keys()) and time.monotonic() < deadline:
            time.sleep(0.5)
        now = held()
        found = sorted(now[one] for one in new & now.keys())
    except RayStateApiException as error:
        found = [f"unknown: Ray's State API does not answer ({str(error).splitlines()[0]})"]
    found += [f"files in {uri}" for uri in folders if storage.list_files(uri)]
    return found + _on_nodes(scratch_prefix(checkpoints))


def _on_nodes(prefix: str) -> list[str]:
    """Delete the temporary folders of killed workers, on every node; says which could not be."""
    sweep = ray.remote(num_cpus=0, max_retries=0)(_sweep)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = {
        node["NodeManagerHostname"]: sweep.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(prefix)
        for node in nodes
    }
    found = []
    for name, answer in answers.items():
        try:
            found += [
                f"{folder} on {name}: {why}"
                for folder, why in ray.get(answer, timeout=PATIENCE_S).items()
            ]
        except RayError as error:
            found.append(f"unknown: {name} does not answer ({type(error).__name__})")
    return found


def _sweep(prefix: str) -> dict[str, str]:
    kept = {}
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass  # somebody else was faster
        except OSError as error:
            kept[str(folder)] = str(error)
    return kept
