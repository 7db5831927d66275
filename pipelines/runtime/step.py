"""One optimisation step: precision, micro-batches, gradient norms, clipping, and the guard against
losses that are not finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dri_iqa.config import ConfigError, OptimConfig
from dri_iqa.stages.average import WeightAverage
from dri_iqa.stages.base import Batch, Stage
from dri_iqa.stages.selection import BestWeights

Metrics = dict[str, float]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Optimisation:
    """What a step changes besides the loop's position."""

    model: nn.Module
    """The stage, in its data-parallel wrapper where there are several ranks."""
    stage: Stage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    config: OptimConfig
    world: int
    tell: Callable[[str], None] = print
    """Takes a line for whoever watches the run."""
    best: BestWeights | None = None
    """What validation decides to keep."""

    def __post_init__(self) -> None:
        self.micro_batches = self.config.accumulate
        self._fits = False

    def step(self, batch: Batch) -> Metrics | None:
        """Train on this rank's batch of one step.

        Where the first step does not fit the accelerator's memory, it is taken in twice as many
        micro-batches, and so are all further ones.

        Returns:
            Metrics averaged over micro-batches, and gradient norms: total and by parameter group,
            before clipping. None where some rank's loss was not finite and the step was left out.

        Raises:
            ConfigError: out of memory with a batch that cannot be split further, with several
                ranks, or after a step that did fit.
        """
        while True:
            before = None if self._fits else self._state()
            with contextlib.suppress(torch.OutOfMemoryError):
                metrics = self._try(batch)
                self._fits = True
                return metrics
            # only now: the exception held the tensors of the failed attempt
            self._split_further(batch, before)

    def _state(self) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """What an attempt changes before its gradients are complete: buffers and random states."""
        buffers = [buffer.clone() for buffer in self.stage.buffers()]
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return buffers, torch.get_rng_state(), devices

    def _split_further(
        self, batch: Batch, before: tuple[list[Tensor], Tensor, list[Tensor]] | None
    ) -> None:
        parts = 2 * self.micro_batches
        images = len(batch["image_id_B"])
        if before is None or self.world > 1 or any(len(rows) % parts for rows in batch.values()):
            raise ConfigError(
                f"out of memory with {images} images a rank in {self.micro_batches} micro-batch(es)\n"
                "raise optim.accumulate, lower optim.batch_size, or use optim.precision=bf16 or "
                "stage2.grad_checkpoint=true"
            )
        with torch.no_grad():
            for buffer, value in zip(self.stage.buffers(), before[0], strict=True):
                buffer.copy_(value)
        scaling = self.scaler.state_dict()  # and none of what it noted about the failed attempt
        self.scaler = torch.amp.GradScaler(
            batch["image_id_B"].device.type, enabled=self.scaler.is_enabled()
        )
        self.scaler.load_state_dict(scaling)
        torch.set_rng_state(before[1])
        if before[2]:
            torch.cuda.set_rng_state_all(before[2])
            torch.cuda.empty_cache()
        self.micro_batches = parts
        self.tell(
            f"out of memory: {images} images a step are now taken in {parts} micro-batches "
            f"(optim.accumulate={parts} says so from the start)"
        )

    def _try(self, batch: Batch) -> Metrics | None:
        config, stage = self.config, self.stage
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast(batch):
            batch = stage.prepare(batch) if self.micro_batches > 1 else batch
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(_micro_batches(batch, self.micro_batches)):
            last = number == self.micro_batches - 1
            with contextlib.nullcontext() if last else self._without_exchange():
                with self._autocast(part):
                    loss, metrics = self.model(part)
                if not self._finite(loss):
                    stage.after_skip()
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                self.scaler.scale(loss / self.micro_batches).backward()
            for name, value in ({"loss": loss.detach()} | metrics).items():
                sums[name] = sums[name] + value if name in sums else value
        self.scaler.unscale_(self.optimizer)
        sums |= self._gradient_norms(self.micro_batches)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(stage.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        stage.after_step()
        if self.average is not None:
            self.average.update(stage)
        # one transfer for all: each alone would make the accelerator wait
        values = torch.stack([value.float() for value in sums.values()]).tolist()
        return {name: value / self.micro_batches for name, value in zip(sums, values, strict=True)}

    def gradient_norms(self, batch: Batch) -> Metrics:
        """The stage's gradient norms by term, on the first of a batch's micro-batches."""
        part = next(_micro_batches(batch, self.micro_batches))
        try:
            with self._autocast(part):
                norms = self.stage.gradient_norms(part)
        except torch.OutOfMemoryError:  # it keeps the graph for longer than a step does
            return {}
        return {name: float(value) for name, value in norms.items()}

    def _autocast(self, batch: Batch) -> torch.autocast:
        device_type = next(iter(batch.values())).device.type
        dtype = PRECISIONS[self.config.precision]
        return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients once a step, in the last micro-batch."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _finite(self, loss: Tensor) -> bool:
        finite = torch.isfinite(loss.detach()).to(torch.int32)
        if self.world > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite)

    def _gradient_norms(self, times: int) -> dict[str, Tensor]:
        # times: they are divided by the number of micro-batches like everything else in the sums
        norms: dict[str, Tensor] = {}
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norms[f"grad_norm_{group['name']}"] = get_total_norm(gradients) * times
        total = torch.stack(list(norms.values())).square().sum().sqrt()
        return {"grad_norm": total} | (norms if len(norms) > 1 else {})


def _micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    if count == 1:
        yield batch
        return
    for name, rows in batch.items():
        if len(rows) % count:
            raise ConfigError(
                f"optim.accumulate={count} does not divide the {len(rows)} rows of {name} that a "
                "rank has in a step\nuse a batch size that is a multiple of workers x accumulate"
            )
    parts: dict[str, Any] = {name: rows.chunk(count) for name, rows in batch.items()}
    for number in range(count):
        yield {name: chunks[number] for name, chunks in parts.items()}
