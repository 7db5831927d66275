"""How the extractor's features enter the restoration network, one module per guidance point.

The paper guides NAFNet "layer by layer" with Up_R (3.3, Eq. 2) and does not say by which operation.
`sft` (spatial feature transform, the part of AirNet's DGM that needs no compiled code) keeps
spatial maps; all learned forms start as the identity, so that at step 0 the network is plain
NAFNet.

Shapes: B images, C channels of the network at this level, R channels of the guide, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.config import ConfigError
from dri_iqa.models.pointwise import Pointwise

_SLOPE = 0.1
_KERNEL = 3


def make_guidance(kind: str, channels: int, guide_channels: int) -> nn.Module:
    """The guidance module that `ram.guidance` names.

    Raises:
        ConfigError: `add` with a guide of another width.
    """
    if kind == "sft":
        return SFT(channels, guide_channels)
    if kind == "concat":
        return Concat(channels, guide_channels)
    if kind == "da":
        return DegradationAware(channels, guide_channels)
    if channels != guide_channels:
        raise ConfigError(
            f"ram.guidance=add sums maps of equal width, got {guide_channels} channels for {channels}: "
            "use ram.guide_channels=upper or another guidance"
        )
    return Add()


class SFT(nn.Module):
    """h (1 + gamma(r)) + beta(r); gamma and beta are 1x1-LeakyReLU-1x1 with a last layer of zeros.

    The two branches run as one convolution with twice the channels and one with two groups.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        self.hidden = Pointwise(guide_channels, 2 * guide_channels)
        self.out = Pointwise(2 * guide_channels, 2 * channels, groups=2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, h_BCHW: Tensor, guide_BRHW: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.hidden(guide_BRHW), _SLOPE, inplace=True)
        gamma_BCHW, beta_BCHW = self.out(hidden).chunk(2, dim=1)
        return torch.addcmul(h_BCHW + beta_BCHW, h_BCHW, gamma_BCHW)


class Add(nn.Module):
    """h + r, free of parameters; widths must match."""

    def forward(self, h_BCHW: Tensor, guide_BRHW: Tensor) -> Tensor:
        return h_BCHW + guide_BRHW


class Concat(nn.Module):
    """h plus a zero-initialised 1x1 convolution of (h, r) side by side."""

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        self.mix = Pointwise(channels + guide_channels, channels)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(_bias(self.mix))

    def forward(self, h_BCHW: Tensor, guide_BRHW: Tensor) -> Tensor:
        return h_BCHW + self.mix(torch.cat((h_BCHW, guide_BRHW), dim=1))


class DegradationAware(nn.Module):
    """DASR's modulation by one pooled vector: a depthwise kernel per image plus channel attention
    (DASR model/blindsr.py).

    A scale per channel that starts at zero makes it the identity at first.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(
            nn.Linear(guide_channels, guide_channels),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(guide_channels, channels * _KERNEL**2),
        )
        self.attention = nn.Sequential(
            nn.Linear(guide_channels, max(1, channels // 8)),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(max(1, channels // 8), channels),
            nn.Sigmoid(),
        )
        self.mix = Pointwise(channels, channels)
        self.scale_C = nn.Parameter(torch.zeros(channels))

    def forward(self, h_BCHW: Tensor, guide_BRHW: Tensor) -> Tensor:
        B, C, H, W = h_BCHW.shape
        vector_BR = guide_BRHW.mean((2, 3))
        kernels = self.kernel(vector_BR).view(B * C, 1, _KERNEL, _KERNEL)
        filtered = F.conv2d(
            h_BCHW.reshape(1, B * C, H, W), kernels, padding=_KERNEL // 2, groups=B * C
        )
        mixed = self.mix(F.leaky_relu(filtered.view(B, C, H, W), _SLOPE))
        attended = h_BCHW * self.attention(vector_BR)[:, :, None, None]
        return h_BCHW + (mixed + attended) * self.scale_C[:, None, None]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
