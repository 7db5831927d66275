"""Normalisation layers of the extractor: BatchNorm, GroupNorm, or BatchNorm over all ranks.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dri_iqa.models.parallel import SumOverRanks, world_size

_GROUPS = 32


def make_norm(kind: str, channels: int) -> nn.Module:
    """The layer that `dre.norm` names, for this many channels.

    GroupNorm uses 32 groups, and fewer in narrow layers so that a group never has less than two
    channels: groups of one would be instance normalisation, which erases the mean and contrast that
    many degradations change.
    """
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "syncbn":
        return SyncBatchNorm(channels)
    groups = min(_GROUPS, max(1, channels // 2))
    while channels % groups:
        groups -= 1
    return GroupNorm(groups, channels)


class GroupNorm(nn.GroupNorm):
    """As torch's, which on CPUs takes up to twenty times as long for maps in channels_last layout."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous() if input.device.type == "cpu" else input)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over all ranks' images, on any device.

    torch's own runs on GPUs only, and DistributedDataParallel refuses it elsewhere.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        x_BCHW = input.float()
        count = input.numel() // input.shape[1] * world_size()
        mean_C = SumOverRanks.apply(x_BCHW.sum((0, 2, 3))) / count
        centred_BCHW = x_BCHW - mean_C[:, None, None]
        var_C = SumOverRanks.apply(centred_BCHW.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = self.momentum or 0.1
            self.running_mean.lerp_(mean_C, momentum)
            self.running_var.lerp_(var_C * (count / (count - 1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale_C = (var_C + self.eps).rsqrt() * self.weight
        y_BCHW = centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]
        return y_BCHW.to(input.dtype)
