"""The one training loop: it drives both stages and owns what they share.

A stage says what one step's losses are and what it must save; the loop owns the order of things:
batches, steps (step.py), rates (rates.py), checkpoints (snapshots.py), times (clock.py), reports,
resume. It runs on every worker of a group, under Ray Train or without a cluster (host.py).
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dri_iqa.config import OptimConfig
from dri_iqa.seeds import Purpose, seed_of
from dri_iqa.stages.average import WeightAverage
from dri_iqa.stages.base import Stage
from dri_iqa.stages.selection import BestWeights
from pipelines.runtime import snapshots
from pipelines.runtime.clock import Clock, told
from pipelines.runtime.failures import EveryRankError
from pipelines.runtime.host import Host
from pipelines.runtime.journal import JournalWriter
from pipelines.runtime.rates import learning_rate, set_rates
from pipelines.runtime.snapshots import Progress
from pipelines.runtime.step import Metrics, Optimisation

PROGRESS_S = 1.0
# torch 2.15 renamed the switch, and warns about the old name.
NO_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    else "broadcast_buffers"
)


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
    identity: dict[str, Any] = field(default_factory=dict)
    """Plain data that decides the result: a checkpoint in which it differs is refused."""
    validate: Callable[[Stage, int], Metrics] | None = None
    """Metrics of the stage after an epoch (1-based), computed by rank 0."""
    best: BestWeights | None = None
    """Keeps the weights of the epoch that validation likes best; None keeps the last."""
    image_names: Callable[[Sequence[int]], list[str]] | None = None
    """Names of images by the ids of a batch, for messages."""
    on_step: Callable[[int, Metrics], None] | None = None
    """Gets every step's metrics, for curves."""
    key: str = ""
    """The run's key in the journal."""
    journal: JournalWriter = field(default_factory=lambda: JournalWriter(None))


def train(training: Training, host: Host) -> list[Metrics]:
    """Train to the end, from the last checkpoint if there is one; returns one row of metrics per epoch.

    Raises:
        TrainingError: too many steps with a non-finite loss, or a checkpoint that is damaged or of
            another run.
    """
    with host.latest() as folder:
        if folder is None:
            _begin(training, host)
        work = _set_up(training, host)
        progress = Progress()
        if folder:
            progress = snapshots.read(folder, work, host.rank, training.identity)
    optim, per_epoch = training.optim, training.steps_per_epoch
    total = per_epoch * optim.epochs
    if host.rank == 0 and progress.step:
        training.journal.post(
            run=training.key,
            say=f"resumed from the checkpoint at step {progress.step} of {total} "
            f"on {host.world} worker(s)",
        )
    bases = [group["lr"] for group in training.stage.parameter_groups()]
    clock = Clock()
    for arrays in clock.waiting(training.stream(progress.step, total)):
        epoch, index = divmod(progress.step, per_epoch)
        set_rates(work.optimizer, bases, optim, epoch, index / per_epoch)
        torch.manual_seed(seed_of(training.seed, Purpose.DROPOUT, epoch, index, host.rank))
        batch = _to_device(arrays, host.device, optim.channels_last)
        metrics = work.step(batch)
        clock.step(host.world * len(batch["image_id_B"]))
        _account(training, host, progress, metrics, batch)
        progress.step += 1
        if host.rank == 0:
            _tell(training, progress, metrics, clock, total)
        if progress.step % per_epoch == 0:
            norms = work.gradient_norms(batch)
            _finish_epoch(training, host, work, progress, clock, norms)
        leaving = _preempted(training, host, progress)
        if leaving or _checkpoint_due(training, progress):
            last = progress.step == total
            _save(training, host, work, progress, clock, wait=leaving or last)
    if work.average is not None:
        work.average.copy_to(work.stage)
    if work.best is not None and work.best.epoch:
        work.best.restore()
        kept = f"{work.best.metric} {work.best.value:.3f}"
        training.journal.post(
            run=training.key, say=f"the weights of epoch {work.best.epoch} are kept ({kept})"
        )
    return progress.history


def _begin(training: Training, host: Host) -> None:
    """What the stage wants to know of its data before the first step."""
    stage, layout = training.stage.to(host.device), training.optim.channels_last

    def say(line: str) -> None:
        if host.rank == 0:
            training.journal.post(run=training.key, say=line)

    def batches() -> Iterator[dict[str, Tensor]]:
        count = training.steps_per_epoch
        for arrays in told(
            training.stream(0, count), count, "before the first step", "batches", say
        ):
            yield _to_device(arrays, host.device, layout)

    def add(sums: Tensor) -> None:
        if host.world > 1:
            dist.all_reduce(sums)

    if line := stage.begin(batches, add):
        say(line)


def _set_up(training: Training, host: Host) -> Optimisation:
    optim, stage = training.optim, training.stage.to(host.device)
    if optim.channels_last:
        stage = stage.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if optim.compile:
        for network in stage.networks():
            network.compile()
    optimizer = torch.optim.Adam(
        stage.parameter_groups(),
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,  # four times as fast for the small presets' hundreds of small tensors on a CPU
    )
    model: nn.Module = stage
    if host.world > 1:
        # Queues and metadata are kept equal by the stage itself; broadcasting them each step would only cost.
        switch: dict[str, Any] = {NO_SYNC: False}
        model = nn.parallel.DistributedDataParallel(stage, **switch)
    return Optimisation(
        model=model,
        stage=stage,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(host.device.type, enabled=optim.precision == "fp16"),
        average=WeightAverage(stage, optim.ema) if optim.ema is not None else None,
        best=training.best,
        config=optim,
        world=host.world,
        tell=lambda line: training.journal.post(run=training.key, say=line),
    )


def _to_device(
    arrays: dict[str, np.ndarray], device: torch.device, channels_last: bool
) -> dict[str, Tensor]:
    batch = {
        name: torch.from_numpy(np.array(array)).to(device, non_blocking=True)
        for name, array in arrays.items()
    }
    if channels_last:
        batch = {
            name: rows.to(memory_format=torch.channels_last) if rows.ndim == 4 else rows
            for name, rows in batch.items()
        }
    return batch


def _account(
    training: Training,
    host: Host,
    progress: Progress,
    metrics: Metrics | None,
    batch: dict[str, Tensor],
) -> None:
    """Add a step to the epoch's sums, or count it as left out."""
    if metrics is not None:
        for name, value in metrics.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.count += 1
        if training.on_step is not None:
            training.on_step(progress.step, metrics)
        return
    progress.skipped += 1
    names = _names(training, host, batch["image_id_B"])
    epoch, index = divmod(progress.step, training.steps_per_epoch)
    where = f"epoch {epoch + 1} step {index + 1}: the loss is not finite (images {names})"
    if progress.skipped > training.optim.max_non_finite:
        raise EveryRankError(
            f"{where}; {progress.skipped} steps were left out, optim.max_non_finite allows "
            f"{training.optim.max_non_finite}\nlower the learning rate, or use precision=fp32"
        )
    training.journal.post(run=training.key, say=f"left out {where}")


def _names(training: Training, host: Host, image_B: Tensor) -> str:
    """The images of all ranks' batches."""
    found = [image for part in _gather(host, image_B.tolist()) for image in part]
    names = training.image_names(found) if training.image_names else map(str, found)
    return ", ".join(names)


def _gather(host: Host, value: Any) -> list[Any]:
    """Every rank's plain data, in rank order."""
    if host.world == 1:
        return [value]
    values: list[Any] = [None] * host.world
    dist.all_gather_object(values, value)
    return values


def _tell(
    training: Training, progress: Progress, metrics: Metrics | None, clock: Clock, total: int
) -> None:
    """Progress for the screen every second, figures for the record every `log_steps` steps."""
    optim, done = training.optim, progress.step
    epoch, index = divmod(done - 1, training.steps_per_epoch)
    if clock.due(PROGRESS_S):
        training.journal.post(run=training.key, done=done, total=total, note=f"epoch {epoch + 1}")
    if optim.log_steps and done % optim.log_steps == 0:
        share = index / training.steps_per_epoch
        rate = {"lr_scale_now": learning_rate(optim, 1.0, epoch, share)}
        training.journal.post(
            run=training.key, step=done, figures=(metrics or {}) | clock.end_of_window() | rate
        )


def _finish_epoch(
    training: Training,
    host: Host,
    work: Optimisation,
    progress: Progress,
    clock: Clock,
    norms: Metrics,
) -> None:
    """Close the epoch's row of metrics: means over steps and ranks, the norms of its last step's gradients by term,
    then what validation finds.
    """
    stage, epoch = work.stage, progress.step // training.steps_per_epoch
    row = {name: value / max(progress.count, 1) for name, value in sorted(progress.sums.items())}
    row |= norms
    if host.world > 1:
        names = sorted(row)
        sums = torch.tensor([row[name] for name in names], dtype=torch.float64, device=host.device)
        dist.all_reduce(sums)
        row = {name: float(value) / host.world for name, value in zip(names, sums, strict=True)}
    row["skipped_steps"] = float(progress.skipped)
    row["lr_scale_now"] = learning_rate(training.optim, 1.0, epoch - 1)
    begun = time.monotonic()
    if training.validate is not None and host.rank == 0:
        stage.eval()
        averaged = work.average.applied(stage) if work.average is not None else nullcontext()
        with torch.no_grad(), averaged:
            row |= training.validate(stage, epoch)
            if work.best is not None:
                work.best.offer(epoch, row)
        stage.train()
    # Speed is for people: it is not part of the history, which must not depend on how often a run was resumed.
    timing = {"validation_seconds": time.monotonic() - begun} | clock.end_of_epoch()
    progress.history.append({"epoch": float(epoch)} | row)
    progress.sums, progress.count = {}, 0
    if host.rank == 0:
        total = training.steps_per_epoch * training.optim.epochs
        training.journal.post(
            run=training.key, done=progress.step, total=total, epoch=epoch, metrics=row | timing
        )


def _checkpoint_due(training: Training, progress: Progress) -> bool:
    """At the end of an epoch, and every `checkpoint_steps`."""
    step, every = progress.step, training.optim.checkpoint_steps
    return step % training.steps_per_epoch == 0 or bool(every and step % every == 0)


def _preempted(training: Training, host: Host, progress: Progress) -> bool:
    """Whether a node is about to go; then a checkpoint is wanted at once, and training goes on."""
    notice = progress.step % training.optim.preemption_steps == 0 and host.preempted()
    if notice and host.rank == 0:
        training.journal.post(
            run=training.key,
            say=f"a node is about to be taken away: checkpoint at step {progress.step}",
        )
    return notice


def _save(
    training: Training,
    host: Host,
    work: Optimisation,
    progress: Progress,
    clock: Clock,
    *,
    wait: bool,
) -> None:
    """A checkpoint on rank 0; a barrier that every rank passes equally often."""
    folder = None
    sums = _gather(host, progress.sums)
    if host.rank == 0:
        folder = Path(tempfile.mkdtemp(prefix=host.scratch))
        snapshots.write(folder, work, progress, sums, training.identity)
    latest = dict(progress.history[-1]) if progress.history else {"epoch": 0.0}
    latest["seconds"] = clock.total()
    host.save(folder, f"step_{progress.step:08d}", latest, wait)
