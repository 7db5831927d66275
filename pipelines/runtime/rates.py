"""Learning rates: a function of epoch and configuration, never of a checkpoint."""

from __future__ import annotations

import math

import torch

from dri_iqa.config import OptimConfig


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


def set_rates(
    optimizer: torch.optim.Optimizer,
    bases: list[float],
    optim: OptimConfig,
    epoch: int,
    share: float,
) -> None:
    """Give every parameter group its rate for the coming step.

    Rates come from the configuration even after a restart: a search may have changed them.
    """
    for group, base in zip(optimizer.param_groups, bases, strict=True):
        group["lr"] = learning_rate(optim, base, epoch, share)
