"""One optimisation step: precision, micro-batches, gradient norms, clipping, and the guard against
losses that are not finite.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dri_iqa.config import ConfigError, OptimConfig
from dri_iqa.stages.average import WeightAverage
from dri_iqa.stages.base import Batch, Stage

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

    def step(self, batch: Batch) -> Metrics | None:
        """Train on this rank's batch of one step.

        Returns:
            Metrics averaged over micro-batches, and gradient norms: total and by parameter group,
            before clipping. None where some rank's loss was not finite and the step was left out.
        """
        config, stage = self.config, self.stage
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast(batch):
            batch = stage.prepare(batch) if config.accumulate > 1 else batch
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(_micro_batches(batch, config.accumulate)):
            last = number == config.accumulate - 1
            with contextlib.nullcontext() if last else self._without_exchange():
                with self._autocast(part):
                    loss, metrics = self.model(part)
                if not self._finite(loss):
                    stage.after_skip()
                    self.optimizer.zero_grad(set_to_none=True)
                    return None
                self.scaler.scale(loss / config.accumulate).backward()
            for name, value in ({"loss": loss.detach()} | metrics).items():
                sums[name] = sums[name] + value if name in sums else value
        self.scaler.unscale_(self.optimizer)
        sums |= self._gradient_norms(config.accumulate)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(stage.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        stage.after_step()
        if self.average is not None:
            self.average.update(stage)
        # one transfer for all: each alone would make the accelerator wait
        values = torch.stack([value.float() for value in sums.values()]).tolist()
        return {name: value / config.accumulate for name, value in zip(sums, values, strict=True)}

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
