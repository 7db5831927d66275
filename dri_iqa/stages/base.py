"""What an optimisation step computes, as a module that a training loop can wrap, step and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Batch = dict[str, Tensor]
"""Named tensors of one rank's micro-batch; pixels are uint8."""

Metrics = dict[str, Tensor]
"""Detached scalars of one forward pass."""


class Stage(nn.Module):
    """Base of both stages.

    All state (networks, moving averages, queues and their positions) is in `state_dict()`. The loop
    owns devices, precision, accumulation, clipping, schedules and checkpoints. A step is `prepare`
    on the rank's whole batch, `forward` on each of its micro-batches (through the data-parallel
    wrapper), the optimiser, then `after_step`; or `after_skip` where the loss was not finite.
    """

    def begin(
        self, batches: Callable[[], Iterable[Batch]], add: Callable[[Tensor], object]
    ) -> str | None:
        """What is computed from data before the first step of a run, never after a restart.

        Args:
            batches: this rank's batches of the first epoch; not called where nothing is to be done.
            add: sums a tensor in place over all ranks.

        Returns:
            A line for whoever watches the run, if there is something to say.
        """
        return None

    def prepare(self, batch: Batch) -> Batch:
        """What a step computes once for its whole batch and without gradient, as further rows.

        A batch that is split into micro-batches then gives what the whole would; `forward` does
        this by itself for a batch that was not prepared.
        """
        return batch

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss with its graph, and metrics."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """{"name", "params", "lr"} for the optimiser; rates before any scale or schedule."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Moving averages, after the optimiser's step."""
        raise NotImplementedError

    def after_skip(self) -> None:
        """Undo what a forward pass with non-finite activations leaves behind for good: BatchNorm
        starts its running statistics anew.
        """
        for part in self.modules():
            if isinstance(part, _BatchNorm) and part.running_var is not None:
                sane = torch.stack([t.isfinite().all() for t in part.buffers()]).all()
                if not sane:
                    part.reset_running_stats()

    def gradient_norms(self, batch: Batch) -> Metrics:
        """How strongly every term of the loss pulls, for an occasional look; leaves all state as it
        was. With several ranks all must call it.
        """
        return {}

    def networks(self) -> list[nn.Module]:
        """The parts that are worth compiling: plain functions of tensors."""
        raise NotImplementedError


def to_float(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels_BCHW.to(torch.float32).div_(255)
