"""What an optimisation step computes, as a module that a training loop can wrap, step and save."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Named tensors of one rank's micro-batch; pixels are uint8."""

Metrics = dict[str, Tensor]
"""Detached scalars of one forward pass."""


class Stage(nn.Module):
    """Base of both stages.

    All state (networks, moving averages, queues and their positions) is in `state_dict()`. The loop
    owns devices, precision, accumulation, clipping, schedules and checkpoints, and calls `forward`
    (through its data-parallel wrapper), then the optimiser, then `after_step`.
    """

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss with its graph, and metrics."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """{"name", "params", "lr"} for the optimiser; rates before any scale or schedule."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Moving averages, after the optimiser's step."""
        raise NotImplementedError


def to_float(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels_BCHW.to(torch.float32).div_(255)
