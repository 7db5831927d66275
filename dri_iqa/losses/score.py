"""Losses between predicted and true normalised scores (paper 4.2: MSE; the others are options).

Shapes: B images of this rank, G images of all ranks, P pairs of this rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dri_iqa.models.parallel import gather_rows, rank, world_size


def score_loss(predicted_B: Tensor, target_B: Tensor, kind: str) -> Tensor:
    """MSE, plus `plcc` (one minus the correlation, halved) or `rank` (pairwise order) where `kind`
    says so.

    Correlation and order are properties of the whole batch: they are computed over all ranks'
    scores, and scaled so that averaging gradients over ranks gives what one process would get.

    Args:
        predicted_B: with gradient.
        target_B: in [0, 1].
        kind: `mse`, `mse+plcc` or `mse+rank`.
    """
    predicted_B, target_B = predicted_B.float(), target_B.float()
    loss = F.mse_loss(predicted_B, target_B)
    if kind == "mse":
        return loss
    all_G, target_G = _gather_with_gradient(predicted_B), gather_rows(target_B)
    term = plcc_loss(all_G, target_G) if kind == "mse+plcc" else rank_loss(all_G, target_G)
    world = world_size()
    return loss + term * world - term.detach() * (world - 1)


def plcc_loss(predicted_G: Tensor, target_G: Tensor) -> Tensor:
    """(1 - Pearson's r) / 2, in [0, 1]; 0.5 where either side is constant."""
    p, t = predicted_G - predicted_G.mean(), target_G - target_G.mean()
    # the constant keeps the gradient finite for equal predictions
    scale = (p.square().sum() + 1e-8).sqrt() * (t.square().sum() + 1e-8).sqrt()
    return (1 - (p * t).sum() / scale) / 2


def rank_loss(predicted_G: Tensor, target_G: Tensor) -> Tensor:
    """Mean over pairs of how far the predicted difference falls short of the true one, where the
    order is known.
    """
    true_GG = target_G[:, None] - target_G[None]
    short_GG = (true_GG - (predicted_G[:, None] - predicted_G[None])).clamp(min=0)
    pairs_GG = true_GG > 0
    return (short_GG * pairs_GG).sum() / pairs_GG.sum().clamp(min=1)


def order_loss(score_P2: Tensor, margin: float) -> Tensor:
    """Mean over pairs (better, worse) of how far the first falls short of `margin` above the second.

    Not in the paper; the ranking hinge of RankIQA (Liu et al., ICCV 2017), between levels of a degradation.
    """
    better_P, worse_P = score_P2.float().unbind(1)
    return (margin - (better_P - worse_P)).clamp(min=0).mean()


def _gather_with_gradient(rows_B: Tensor) -> Tensor:
    if world_size() == 1:
        return rows_B
    parts = list(gather_rows(rows_B.detach()).split(rows_B.shape[0]))
    parts[rank()] = rows_B
    return torch.cat(parts)
