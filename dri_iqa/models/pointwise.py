"""1x1 convolutions that are fast on CPUs too.

oneDNN takes 5 to 30 times as long as a matrix product for few channels, which is what the small
presets have; and its backward pass of a strided 1x1 convolution in channels_last layout crashes on
some machines (torch 2.15, AMD EPYC).

Shapes: B images, I channels in, O channels out, G groups, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with stride 1; its parameters have nn.Conv2d's names and shapes.

    Args:
        channels_in: I.
        channels_out: O.
        bias: whether to add one.
        groups: G.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, bias: bool = True, groups: int = 1
    ) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        B, _, H, W = input.shape
        G = self.groups
        weight = self.weight.view(G, self.out_channels // G, -1)
        weight = weight.expand(B, -1, -1) if G == 1 else weight.repeat(B, 1, 1)
        x = input.reshape(B * G, -1, H * W)
        if self.bias is None:
            return torch.bmm(weight, x).view(B, -1, H, W)
        bias = self.bias[:, None] if G == 1 else self.bias.view(G, -1, 1).repeat(B, 1, 1)
        return torch.baddbmm(bias, weight, x).view(B, -1, H, W)
