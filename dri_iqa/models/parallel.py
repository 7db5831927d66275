"""What a module needs to know about its process group, and the three collectives the stages use.

Without an initialised group every function is the identity, so that one process runs the same code.
Shapes: B rows of this rank, G rows of all ranks in rank order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(rows_BX: Tensor) -> Tensor:
    """All ranks' rows in rank order, (G, ...), without gradient; every rank must pass the same
    shape.
    """
    world = world_size()
    if world == 1:
        return rows_BX
    rows_BX = rows_BX.contiguous()
    parts = [torch.empty_like(rows_BX) for _ in range(world)]
    dist.all_gather(parts, rows_BX)
    return torch.cat(parts)


class SumOverRanks(torch.autograd.Function):
    """Sum over all ranks whose backward sums the gradients over all ranks too."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def freeze_running_statistics(module: nn.Module | None) -> None:
    """Let every BatchNorm use its running statistics and leave them as they are, until `train()` is called again."""
    for part in module.modules() if module is not None else ():
        if isinstance(part, _BatchNorm):
            part.eval()


def average_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' BatchNorm running statistics.

    Without it the ranks' buffers drift apart, and a checkpoint written by one rank could not
    restore the others.
    """
    world = world_size()
    if world == 1:
        return
    buffers = [
        buffer
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.training
        for buffer in (part.running_mean, part.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world
    for buffer, mean in zip(
        buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True
    ):
        buffer.copy_(mean.view_as(buffer))
