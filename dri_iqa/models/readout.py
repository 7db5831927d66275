"""A linear readout of pooled maps beside the weighted head, fitted in closed form before the first step.

Not in the paper. A pretrained backbone's pooled maps alone tell most of a photograph's quality: a ridge regression on
them ranks BIQ2021 as well as hours of training a head from random weights. With this readout stage 2 begins there.

Shapes: B images, C channels, H x W positions, F statistics (two a channel of every map).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-2, 11))
"""Ridge penalties that are tried, for standardised statistics and sums over images."""
FLOOR = 1e-3
"""Least deviation of a statistic over images: one that is as good as constant stays small."""


def pooled_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Mean and deviation over positions of every channel, (B, F), float32 whatever the maps' type.

    Args:
        maps: (B, C, H, W) of any sizes.
    """
    parts = []
    for map_BCHW in maps:
        map_BCX = map_BCHW.flatten(2).float()
        mean_BC = map_BCX.mean(2)
        variance_BC = (map_BCX - mean_BC[:, :, None]).square().mean(2)
        parts += [mean_BC, (variance_BC + 1e-6).sqrt()]
    return torch.cat(parts, dim=1)


class PooledReadout(nn.Module):
    """Mean and standard deviation of every channel over positions, standardised, and a linear function of them.

    The function starts at zero, and the statistics' own mean and scale at 0 and 1; `fit` sets all of them.

    Args:
        channels: of the maps, in their order.
    """

    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        count = 2 * sum(channels)
        self.register_buffer("mean_F", torch.zeros(count))
        self.register_buffer("scale_F", torch.ones(count))
        self.linear = nn.Linear(count, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B,) normalised scores of maps (B, C, H, W) of any size."""
        standard_BF = (pooled_statistics(maps) - self.mean_F) / self.scale_F
        return self.linear(standard_BF).squeeze(1).float()

    @torch.no_grad()
    def fit(
        self,
        rows: Iterable[tuple[Tensor, Tensor]],
        add: Callable[[Tensor], object] = lambda sums: None,
    ) -> float:
        """Ridge regression in one pass; its penalty has the least generalised cross-validation error.

        Args:
            rows: statistics (B, F) and scores (B,) of this process's images.
            add: sums a tensor in place over all processes.

        Returns:
            The penalty.

        Raises:
            ValueError: fewer than two images.
        """
        count = self.mean_F.numel()
        # of (statistics, score, 1): everything that a regression needs, whoever has which image
        moments = torch.zeros(count + 2, count + 2, dtype=torch.float64, device=self.mean_F.device)
        for statistics_BF, score_B in rows:
            ones_B = torch.ones_like(score_B)
            joint_BG = torch.cat((statistics_BF, torch.stack((score_B, ones_B), 1)), 1).double()
            moments += joint_BG.T @ joint_BG
        add(moments)
        images = moments[-1, -1]
        if images < 2:
            raise ValueError(f"a readout is fitted on at least two images, got {int(images)}")
        mean_G = moments[-1, :-1] / images
        covariance_GG = moments[:-1, :-1] / images - mean_G[:, None] * mean_G
        scale_F = covariance_GG.diagonal()[:count].clamp(min=0).sqrt().clamp(min=FLOOR)
        gram_FF = images * covariance_GG[:count, :count] / scale_F[:, None] / scale_F
        cross_F = images * covariance_GG[:count, count] / scale_F
        weight_F, penalty = _ridge(gram_FF, cross_F, images * covariance_GG[count, count], images)
        self.mean_F.copy_(mean_G[:count])
        self.scale_F.copy_(scale_F)
        self.linear.weight.copy_(weight_F[None])
        self.linear.bias.fill_(float(mean_G[count]))
        return penalty


def _ridge(gram_FF: Tensor, cross_F: Tensor, total: Tensor, images: Tensor) -> tuple[Tensor, float]:
    """Weights for the penalty with the least error by generalised cross-validation (Golub, Heath and Wahba 1979)."""
    values_F, vectors_FF = torch.linalg.eigh(gram_FF)
    values_F = values_F.clamp(min=0)
    turned_F = vectors_FF.T @ cross_F
    best: tuple[float, Tensor, float] | None = None
    for penalty in PENALTIES:
        solved_F = turned_F / (values_F + penalty)
        residual = total - 2 * solved_F @ turned_F + (solved_F.square() * values_F).sum()
        freedom = images - 1 - (values_F / (values_F + penalty)).sum()
        error = float(residual / freedom.clamp(min=1e-9) ** 2)
        if best is None or error < best[0]:
            best = (error, vectors_FF @ solved_F, penalty)
    assert best is not None
    return best[1], best[2]
