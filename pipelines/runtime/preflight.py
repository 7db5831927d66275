"""What would end a job in an hour, said before anything is trained.

Every node answers one task (`node_report`), the answers are judged (`findings`), a row a check. Failures end the job,
warnings let it go on. What has no meaning on a Ray of this machine's own (versions, clocks) is not judged there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import state as GLOBAL_STATE
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dri_iqa import storage
from pipelines.runtime.capacity import settle
from pipelines.runtime.cluster import ClusterError, Plan, is_attached
from pipelines.runtime.config import JobConfig
from pipelines.runtime.console import Console
from pipelines.runtime.findings import ADVICE, Finding, judge
from pipelines.runtime.mlflow_server import has_begun, tracking_uri, unreachable
from pipelines.runtime.needs import (
    bf16_wanted,
    data_needed,
    hub_problem,
    model_problem,
    stale_data,
    weights_needed,
)
from pipelines.runtime.node_report import Questions, Report, report, versions

ANSWER_S = 90.0
"""How long nodes have to answer; a store that refuses connections is tried for about ten seconds."""


class PreflightError(ValueError):
    """The job cannot succeed as things are; two lines: the first reason, and what to do."""


def preflight(
    config: JobConfig,
    directory: str,
    totals: dict[str, float],
    console: Console,
    *,
    table: bool = False,
) -> Plan:
    """Inspect, show what was found, and plan what the job takes.

    Args:
        config: of the job; its output is absolute.
        directory: the job's folder or URI.
        totals: resources of the cluster that is connected.
        console: gets one line if all is fine, one more a warning, the table if something failed.
        table: show the table in any case.

    Raises:
        PreflightError: a check failed.
    """
    plan, findings = inspect(config, directory, totals, console.say)
    failed = [finding for finding in findings if finding.state == "failed"]
    warnings = [finding for finding in findings if finding.state == "warning"]
    if failed or table:
        rows = [[f.check, f.where, f.state, f.found, f.do] for f in findings]
        console.table("Preflight", ["check", "where", "state", "found", "what to do"], rows)
    if failed or plan is None:
        first, more = failed[0], len(failed) - 1
        also = f" (and {more} more, see the table)" if more else ""
        raise PreflightError(f"{first.check}: {first.found}{also}\n{first.do}")
    console.say(f"preflight {len(findings)} checks, {len(warnings) or 'no'} warning(s)")
    for finding in warnings:
        console.say(f"    {finding.check}, {finding.where}: {finding.found}; {finding.do}")
    return plan


def inspect(
    config: JobConfig, directory: str, totals: dict[str, float], say: Callable[[str], None]
) -> tuple[Plan | None, list[Finding]]:
    """The plan (None where the cluster is too small for it) and a finding a check."""
    plan = None
    try:
        plan = settle(config, totals, say)
        findings = [Finding(check="resources", where="cluster", state="ok", found=str(plan))]
    except ClusterError as error:
        findings = [_failure("resources", "cluster", str(error))]
    if problem := hub_problem(config):
        findings.append(_failure("weights", "driver", problem))
    if problem := model_problem(config):
        findings.append(_failure("model", "driver", problem))
    if problem := stale_data(directory):
        findings.append(_failure("data", "driver", problem))
    store = storage.join(directory, ".tmp-preflight")
    questions = Questions(
        store=store,
        token=uuid.uuid4().hex,
        mlflow=_server(config, directory),
        weights=weights_needed(config),
        data=data_needed(config, directory),
        bf16=bf16_wanted(config),
    )
    storage.write_bytes(storage.join(store, "driver"), questions.token.encode())
    try:
        if ray.is_initialized():
            answers, silent = _ask(questions)
        else:
            scratch = "." if storage.is_remote(store) else store
            answers = {"this process": report(questions, "this", scratch, state_api=False)}
            silent = {}
    finally:
        storage.delete(store)
    own = versions() if is_attached(config.cluster) else None
    return plan, findings + judge(answers, silent, own)


def _ask(questions: Questions) -> tuple[dict[str, Report], dict[str, str]]:
    """The report of every node, and why a node gave none."""
    leaving = GLOBAL_STATE.get_draining_nodes()  # they take no more work
    nodes = {_name(node): node for node in _alive() if node["NodeID"] not in leaving}
    working = [name for name, node in nodes.items() if node["Resources"].get("CPU")]
    asker = (working or list(nodes))[0]
    task = ray.remote(num_cpus=0, max_retries=0)(report)
    pending: dict[Any, str] = {}
    for name, node in nodes.items():
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        scratch = node["RayletSocketName"].rpartition("/sockets/")[0]
        answer = task.options(scheduling_strategy=place).remote(
            questions, node["NodeID"], scratch, name == asker
        )
        pending[answer] = name
    answers: dict[str, Report] = {}
    silent: dict[str, str] = {}
    deadline = time.monotonic() + ANSWER_S
    while pending and (left := deadline - time.monotonic()) > 0:
        for answer in ray.wait(list(pending), num_returns=1, timeout=left)[0]:
            arrived, name = time.time(), pending.pop(answer)
            try:
                found = ray.get(answer)
            except RayError as error:
                if nodes[name]["NodeID"] in {node["NodeID"] for node in _alive()}:
                    silent[name] = f"cannot run a task: {str(error).strip().splitlines()[-1]}"
                continue  # a node that is gone by now is no node of this job
            storage.add_retries(found["retries"])
            found["ahead"] = found["clock"] - arrived
            found["store_bytes"] = nodes[name]["Resources"].get("object_store_memory", 0)
            answers[name] = found
    for answer, name in pending.items():
        ray.cancel(answer, force=True)
        silent[name] = f"no answer within {ANSWER_S:.0f} s"
    return answers, silent


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"


def _server(config: JobConfig, directory: str) -> str | None:
    """The address that nodes ask; none where an outage must not stop a job that has begun."""
    if config.tracking.kind != "server":
        return None
    uri = tracking_uri(config.tracking, config.output)
    return None if has_begun(config.tracking, directory) and unreachable(uri) else uri


def _failure(check: str, where: str, problem: str) -> Finding:
    found, _, do = problem.partition("\n")
    return Finding(check=check, where=where, state="failed", found=found, do=do or ADVICE[check])
