"""The one training loop: it drives both stages and owns what they share.

A stage says what one step's losses are and what it must save; the loop owns devices, precision, clipping, the
schedule, checkpoints, resume and reporting. It runs on every worker of a Ray Train group.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device
from torch import Tensor, nn

from dri_iqa.config import OptimConfig
from dri_iqa.seeds import Purpose, seed_of
from dri_iqa.stages.base import Stage
from pipelines.runtime.journal import JournalWriter

Metrics = dict[str, float]
Upload = Callable[[Checkpoint, str], Checkpoint]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PROGRESS_S = 1.0
# torch 2.15 renamed the switch, and warns about the old name.
NO_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass(kw_only=True)
class Training:
    """What the loop needs to know about one run."""

    stage: Stage
    """What is trained."""
    stream: Callable[[int, int], Iterator[dict[str, np.ndarray]]]
    """Batches of this rank for the steps start..stop-1."""
    steps_per_epoch: int
    optim: OptimConfig
    seed: int
    validate: Callable[[Stage], Metrics] | None = None
    """Metrics on the validation part, computed by rank 0 after each epoch."""
    key: str = ""
    """The run's key in the journal."""
    journal: JournalWriter = field(default_factory=lambda: JournalWriter(None))
    upload: Upload | None = None
    """How a checkpoint gets to where it is kept; None leaves it to Ray Train."""


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def train(training: Training) -> list[Metrics]:
    """Train to the end, from the last checkpoint if there is one; returns one row of metrics per epoch.

    Raises:
        TrainingError: too many steps with a non-finite loss, or a checkpoint that does not match its digest.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    optim, stage = training.optim, training.stage.to(device)
    optimizer = torch.optim.Adam(
        stage.parameter_groups(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
    )
    base_rates = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    progress = _restore(stage, optimizer, scaler)
    model: nn.Module = stage
    if world > 1:
        # Queues and metadata are kept equal by the stage itself; broadcasting them each step would only cost.
        switch: dict[str, Any] = {NO_SYNC: False}
        model = nn.parallel.DistributedDataParallel(stage, **switch)

    total = training.steps_per_epoch * optim.epochs
    if rank == 0 and progress.step:
        training.journal.post(
            run=training.key, say=f"resumed from the checkpoint at step {progress.step} of {total}"
        )
    clock = _Clock()
    for batch in clock.waiting(training.stream(progress.step, total)):
        epoch, index = divmod(progress.step, training.steps_per_epoch)
        _set_rates(optimizer, base_rates, optim, epoch, index / training.steps_per_epoch)
        torch.manual_seed(seed_of(training.seed, Purpose.DROPOUT, epoch, index, rank))
        tensors = {
            name: torch.from_numpy(np.array(array)).to(device) for name, array in batch.items()
        }
        metrics = _step(model, stage, optimizer, scaler, tensors, optim, world)
        if metrics is None:
            progress.skipped += 1
            if progress.skipped > optim.max_non_finite:
                raise TrainingError(
                    f"{progress.skipped} steps with a non-finite loss, the last at epoch {epoch} step {index}"
                    f" (images {tensors['image_id_B'].tolist() if 'image_id_B' in tensors else 'unknown'})\n"
                    "lower the learning rate, or use precision=fp32"
                )
        else:
            for name, value in metrics.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.count += 1
        progress.step += 1
        end_of_epoch = progress.step % training.steps_per_epoch == 0
        if rank == 0 and clock.due(PROGRESS_S):
            training.journal.post(
                run=training.key, done=progress.step, total=total, note=f"epoch {epoch + 1}"
            )
        if end_of_epoch:
            row = _finish_epoch(training, stage, progress, clock, epoch, rank, world)
            if rank == 0:
                training.journal.post(
                    run=training.key, done=progress.step, total=total, epoch=epoch + 1, metrics=row
                )
        elif not optim.checkpoint_steps or progress.step % optim.checkpoint_steps:
            continue
        _report(stage, optimizer, scaler, progress, rank, training.upload)
    return progress.history


def learning_rate(optim: OptimConfig, base: float, epoch: int, share: float = 0.0) -> float:
    """Cosine annealing stepped once an epoch (paper 4.2), after an optional linear warm-up.

    Args:
        base: the group's rate before `lr_scale`.
        epoch: 0-based.
        share: part of the epoch that is done; only the warm-up uses it.
    """
    peak = base * optim.lr_scale
    if epoch < optim.warmup_epochs:
        return peak * (epoch + share + 1e-3) / optim.warmup_epochs
    floor = min(optim.eta_min, peak)
    t_max = optim.t_max or optim.epochs
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(epoch, t_max) / t_max)) / 2


def _set_rates(
    optimizer: torch.optim.Optimizer,
    bases: list[float],
    optim: OptimConfig,
    epoch: int,
    share: float,
) -> None:
    # Rates always come from the configuration, never from a checkpoint: a search may have changed them.
    for group, base in zip(optimizer.param_groups, bases, strict=True):
        group["lr"] = learning_rate(optim, base, epoch, share)


def _step(
    model: nn.Module,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: dict[str, Tensor],
    optim: OptimConfig,
    world: int,
) -> Metrics | None:
    """One optimisation step; None where some rank's loss was not finite and the step was left out."""
    device_type = next(iter(batch.values())).device.type
    dtype = PRECISIONS[optim.precision]
    with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
        loss, metrics = model(batch)
    finite = torch.isfinite(loss.detach()).to(torch.int32)
    if world > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite:
        return None
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    row = {"loss": float(loss.detach())} | {name: float(value) for name, value in metrics.items()}
    if optim.clip_norm is not None:
        scaler.unscale_(optimizer)
        row["grad_norm"] = float(nn.utils.clip_grad_norm_(stage.parameters(), optim.clip_norm))
    scaler.step(optimizer)
    scaler.update()
    stage.after_step()
    return row


def _finish_epoch(
    training: Training,
    stage: Stage,
    progress: Progress,
    clock: _Clock,
    epoch: int,
    rank: int,
    world: int,
) -> Metrics:
    row = {name: value / max(progress.count, 1) for name, value in sorted(progress.sums.items())}
    if world > 1:
        names = sorted(row)
        device = next(stage.parameters()).device
        sums = torch.tensor([row[name] for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        row = {name: float(value) / world for name, value in zip(names, sums, strict=True)}
    row["skipped_steps"] = float(progress.skipped)
    row["lr_scale_now"] = learning_rate(training.optim, 1.0, epoch)
    if training.validate is not None and rank == 0:
        stage.eval()
        with torch.no_grad():
            row |= training.validate(stage)
        stage.train()
    # Speed is for people: it is not part of the history, which must not depend on how often a run was resumed.
    timing = clock.epoch(training.steps_per_epoch)
    progress.history.append({"epoch": float(epoch + 1)} | row)
    progress.sums, progress.count = {}, 0
    return row | timing


def _report(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    rank: int,
    upload: Upload | None,
) -> None:
    """Checkpoint on rank 0; a barrier that every rank passes equally often."""
    latest = dict(progress.history[-1]) if progress.history else {"epoch": 0.0}
    if rank != 0:
        ray.train.report(latest)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        torch.save(
            {
                "stage": stage.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "progress": vars(progress),
            },
            state,
        )
        digest = hashlib.sha256(state.read_bytes()).hexdigest()
        (Path(folder) / "state.json").write_text(
            json.dumps({"sha256": digest, "step": progress.step})
        )
        ray.train.report(
            latest,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step_{progress.step:08d}",
            checkpoint_upload_fn=upload,
        )


def _restore(
    stage: Stage, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        file = Path(folder) / "state.pt"
        expected = json.loads((Path(folder) / "state.json").read_text())["sha256"]
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise TrainingError(
                f"checkpoint {checkpoint.path} does not match its digest\nremove it to resume from the one before"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
    stage.load_state_dict(state["stage"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


class _Clock:
    """Where the time goes: waiting for data, and everything else."""

    def __init__(self) -> None:
        self._epoch = self._posted = time.monotonic()
        self._waited = 0.0

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            begun = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - begun
            yield batch

    def due(self, interval: float) -> bool:
        now = time.monotonic()
        if now - self._posted < interval:
            return False
        self._posted = now
        return True

    def epoch(self, steps: int) -> Metrics:
        now = time.monotonic()
        seconds = max(now - self._epoch, 1e-9)
        row = {
            "seconds": seconds,
            "steps_per_second": steps / seconds,
            "data_wait_share": min(1.0, self._waited / seconds),
        }
        self._epoch, self._waited = now, 0.0
        return row
