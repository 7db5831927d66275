"""Checkpoints: what a run needs to go on as if nothing had happened, verified before it is trusted.

A checkpoint is a folder with `state.pt` (tensors and plain data, read with `weights_only`) and
`state.json` (its digest and the step).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.runtime.failures import TrainingError
from pipelines.runtime.step import Optimisation

STATE, DIGEST = "state.pt", "state.json"


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of the open epoch's metrics, on this rank."""
    count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def write(
    folder: Path,
    work: Optimisation,
    progress: Progress,
    sums: list[dict[str, float]],
    identity: dict[str, Any],
) -> None:
    """Write a checkpoint into an empty folder.

    Args:
        folder: local.
        work: stage (both encoders, queues), optimiser, scaler, averaged and best weights.
        progress: position and history.
        sums: the open epoch's, of every rank.
        identity: plain data that decides the run's result; compared when it resumes.
    """
    state = {
        "stage": work.stage.state_dict(),
        "optimizer": work.optimizer.state_dict(),
        "scaler": work.scaler.state_dict(),
        "average": work.average.state_dict() if work.average is not None else {},
        "best": work.best.state_dict() if work.best is not None else {},
        "progress": vars(progress) | {"sums": sums},
        "identity": identity,
    }
    torch.save(state, folder / STATE)
    with (folder / STATE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / DIGEST).write_text(json.dumps({"sha256": digest, "step": progress.step}))


def read(folder: Path, work: Optimisation, rank: int, identity: dict[str, Any]) -> Progress:
    """Load a checkpoint into the stage and everything that trains it.

    The open epoch's sums go back to their ranks; among another number of ranks than before they are
    shared out evenly, which leaves the epoch's mean as it is.

    Raises:
        TrainingError: bytes that are not what was written, or a checkpoint of another run: another
            architecture, setting or data manifest. Names the first value that differs.
    """
    expected = json.loads((folder / DIGEST).read_text())["sha256"]
    with (folder / STATE).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise TrainingError(
                f"the checkpoint in {folder} does not match its digest\n"
                "remove it to resume from the one before"
            )
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    _compare(state["identity"], identity)
    work.stage.load_state_dict(state["stage"])
    work.optimizer.load_state_dict(state["optimizer"])
    work.scaler.load_state_dict(state["scaler"])
    if work.average is not None:
        work.average.load_state_dict(state["average"])
    if work.best is not None:
        work.best.load_state_dict(state["best"])
    shares = state["progress"].pop("sums")
    if len(shares) == work.world:
        sums = shares[rank]
    else:
        sums = {name: sum(s[name] for s in shares) / len(shares) for name in shares[0]}
    return Progress(**state["progress"], sums=sums)


def _compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    before, now = _flat(found), _flat(wanted)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise TrainingError(
                f"the checkpoint belongs to another run: {key} is {before.get(key)!r} there and "
                f"{now.get(key)!r} here\nuse the settings and the data of that run, or another output"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
