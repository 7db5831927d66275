"""Judging what the nodes of a cluster answered (`node_report`): a finding a check, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dri_iqa import storage
from pipelines.runtime.node_report import Report

FREE_BYTES = 1_000_000_000
"""Less free disk than this ends the job."""
FULL = 0.95
"""Beyond this share Ray no longer spills objects to a disk."""
SHARED_BYTES = 64_000_000
"""Shared memory that collectives and loaders want besides the object store."""
SKEW_S = 5.0
"""Clocks further apart make times in logs and tracking useless."""
BROKEN_SKEW_S = 300.0
"""Clocks further apart end the job: object stores refuse requests that are signed 15 minutes off."""

State = Literal["ok", "warning", "failed"]
ADVICE = {
    "nodes": "see `ray status`, and that node's logs under /tmp/ray/session_latest/logs",
    "versions": "run one image on all nodes, or install constraints.txt on each",
    "store": "name an output that every node reaches (s3://..., a shared folder); give all nodes the AWS variables",
    "MLflow": "make tracking.uri an address that workers reach too: 127.0.0.1 is another machine there",
    "model": "change the configuration: `--help` says what each key is",
    "State API": "start the head with its dashboard (ray[default])",
    "disk": "remove old Ray sessions and checkpoints, or give the nodes a larger disk",
    "shared memory": "give containers more: --shm-size, or an emptyDir with medium: Memory on /dev/shm",
    "clocks": "synchronise the nodes' clocks (chrony, or the provider's time service)",
    "weights": "put the file where every node reads it, or set the key to none, random or pretrained",
    "precision": "set it to fp32, which is many times as fast there",
    "data": "correct the path, or mount it on every node",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: a row of the table."""

    check: str
    where: str
    state: State
    found: str
    do: str = ""


def judge(
    answers: dict[str, Report], silent: dict[str, str], own: dict[str, str] | None = None
) -> list[Finding]:
    """Findings on what the nodes answered.

    Args:
        answers: node -> its report; at least one.
        silent: node -> why it gave none.
        own: the driver's versions; None on this machine's own Ray, whose nodes cannot differ.
    """
    findings = []
    if silent:
        why = next(iter(silent.values()))
        findings.append(_failed("nodes", silent, why))
    if own is not None:
        if not silent:
            findings.append(_fine("nodes", answers, f"{len(answers)} answered"))
        agreed = ", ".join(f"{name} {version}" for name, version in own.items())
        findings.append(
            _each("versions", answers, lambda it: _differs(it["versions"], own), agreed)
        )
        findings.append(_clocks(answers))
    said = {"store": "read and written", "MLflow": "reached", "State API": "reached"}
    for check, fine in said.items():
        if any(check in answer for answer in answers.values()):
            findings.append(_each(check, answers, lambda it, c=check: it.get(c), fine))
    findings.append(_disk(answers))
    findings.append(_shared_memory(answers))
    if any("precision" in answer for answer in answers.values()):
        findings.append(_slower("precision", answers, lambda it: it.get("precision"), "bf16"))
    for check in ("weights", "data"):
        findings.append(_each(check, answers, lambda it, c=check: it[c], "what is named is there"))
    return findings


def _fine(check: str, nodes: dict[str, Any], found: str) -> Finding:
    return Finding(check=check, where=_names(nodes), state="ok", found=found)


def _failed(check: str, nodes: dict[str, Any], found: str, state: State = "failed") -> Finding:
    found = storage.redact(found)
    return Finding(check=check, where=_names(nodes), state=state, found=found, do=ADVICE[check])


def _names(nodes: dict[str, Any]) -> str:
    names = sorted(nodes)
    return names[0] if len(names) == 1 else f"{len(names)} nodes ({names[0]}, ...)"


def _each(
    check: str, answers: dict[str, Report], problem: Callable[[Report], str | None], fine: str
) -> Finding:
    """A check that every node passes or fails by itself; the first reason stands for all."""
    bad = {name: why for name, answer in answers.items() if (why := problem(answer))}
    return _failed(check, bad, next(iter(bad.values()))) if bad else _fine(check, answers, fine)


def _slower(
    check: str, answers: dict[str, Report], problem: Callable[[Report], str | None], fine: str
) -> Finding:
    """The same for what ends no job, and costs it time."""
    finding = _each(check, answers, problem, fine)
    return replace(finding, state="warning") if finding.state == "failed" else finding


def _differs(theirs: dict[str, str], own: dict[str, str]) -> str | None:
    pairs = [(name, theirs[name], version) for name, version in own.items()]
    return "; ".join(f"{name} {there}, here {here}" for name, there, here in pairs if there != here)


def _clocks(answers: dict[str, Report]) -> Finding:
    name = max(answers, key=lambda node: abs(answers[node]["ahead"]))
    ahead = answers[name]["ahead"]
    if abs(ahead) <= SKEW_S:
        return _fine("clocks", answers, f"within {abs(ahead):.1f} s of the driver's")
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the driver's"
    return _failed("clocks", {name: ahead}, found, _state(abs(ahead) > BROKEN_SKEW_S))


def _disk(answers: dict[str, Report]) -> Finding:
    def used(disk: dict[str, int]) -> float:
        return 1 - disk["free"] / disk["total"]

    def order(pair: tuple[dict[str, int], str]) -> tuple[bool, bool, int]:
        free = pair[0]["free"]
        return free >= FREE_BYTES, used(pair[0]) < FULL, free

    worst = min(
        ((disk, name) for name, answer in answers.items() for disk in answer["disks"]), key=order
    )
    enough, roomy, free = order(worst)
    found = f"{free / 1e9:.1f} GB free, {used(worst[0]):.0%} used"
    if enough and roomy:
        return _fine("disk", answers, f"at least {found}")
    return _failed("disk", {worst[1]: worst[0]}, found, _state(not enough))


def _shared_memory(answers: dict[str, Report]) -> Finding:
    def small(answer: Report) -> str | None:
        space, store = answer["shared_memory"], answer.get("store_bytes", 0)
        if space["total"] >= store and space["free"] >= SHARED_BYTES:
            return None
        of = f"{space['free'] / 1e9:.2f} of {space['total'] / 1e9:.2f} GB free"
        return f"{of}, Ray's object store takes {store / 1e9:.2f} GB and goes to the slower disk"

    return _slower("shared memory", answers, small, "enough")


def _state(broken: bool) -> State:
    return "failed" if broken else "warning"
