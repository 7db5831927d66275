"""Dual-Representation Extractor: one encoder for degradation and quality.

Paper 3.1-3.2; the residual layers follow AirNet's degradation encoder (AirNet net/encoder.py),
extended from three to five layers so that the last has the paper's 1024 channels. With strides (1,
2, 2, 2, 2) the upper halves of the five layers have exactly the widths and resolutions of a NAFNet
of half the extractor's width.

Shapes: B images, C channels, H x W pixels, D size of a projected vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dri_iqa.config import DREConfig
from dri_iqa.models.norm import make_norm
from dri_iqa.models.pointwise import Pointwise

SLOPE = 0.1
"""Of every LeakyReLU here (AirNet)."""


class DREOutput(NamedTuple):
    """What the extractor gives for a batch."""

    features: tuple[Tensor, ...]
    """The five layers' maps, finest first; the guidance of the restoration network reads them."""
    up_map: Tensor
    """Upper half of the last map, (B, C/2, H, W): degradation (Up_R)."""
    low_map: Tensor
    """Lower half of the last map, (B, C/2, H, W): quality."""
    z_up: Tensor
    """Projected degradation vectors of unit length, (B, D)."""
    z_low: Tensor
    """Projected quality vectors of unit length, (B, D)."""


def upper(map_BCHW: Tensor) -> Tensor:
    """The degradation half of a layer (paper Eq. 4-5, Half)."""
    return map_BCHW[:, : map_BCHW.shape[1] // 2]


def lower(map_BCHW: Tensor) -> Tensor:
    """The quality half of a layer."""
    return map_BCHW[:, map_BCHW.shape[1] // 2 :]


class ResidualLayer(nn.Module):
    """conv3x3(stride)-norm-LeakyReLU-conv3x3-norm plus conv1x1(stride)-norm, then LeakyReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = make_norm(norm, channels)
        self.stride = stride
        self.shortcut = Pointwise(channels_in, channels, bias=False)
        self.norm3 = make_norm(norm, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        s = self.stride
        y_BCHW = F.leaky_relu(self.norm1(self.conv1(x_BCHW)), SLOPE, inplace=True)
        y_BCHW = self.norm2(self.conv2(y_BCHW)) + self.norm3(self.shortcut(x_BCHW[:, :, ::s, ::s]))
        return F.leaky_relu(y_BCHW, SLOPE, inplace=True)


class DREEncoder(nn.Module):
    """The five layers alone: all that prediction needs.

    Args:
        config: widths, strides and normalisation.
    """

    def __init__(self, config: DREConfig) -> None:
        super().__init__()
        self.widths = tuple(config.width * 2**level for level in range(len(config.strides)))
        inputs = (3, *self.widths[:-1])
        self.layers = nn.ModuleList(
            ResidualLayer(i, o, stride, config.norm)
            for i, o, stride in zip(inputs, self.widths, config.strides, strict=True)
        )
        self.checkpointing = False

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Maps of the five layers for RGB images in [0, 1], any size, finest first."""
        x_BCHW = image_BCHW * 2 - 1  # mean 0.5 and deviation 0.5, as the predictor's ViT expects
        features: list[Tensor] = []
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x_BCHW = checkpoint(layer, x_BCHW, use_reentrant=False)
            else:
                x_BCHW = layer(x_BCHW)
            features.append(x_BCHW)
        return tuple(features)


class ProjectionHeads(nn.Module):
    """Pool each half of the last map and project it to the unit sphere (AirNet's and DASR's head,
    one per half).

    Args:
        config: `proj = none` leaves the pooled halves as they are, only scaled to unit length.
    """

    def __init__(self, config: DREConfig) -> None:
        super().__init__()
        half = config.width * 2 ** (len(config.strides) - 1) // 2
        self.dim = half if config.proj == "none" else config.proj_dim
        self.up = _head(half, config)
        self.low = _head(half, config)

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(z_up, z_low), each (B, D) of unit length, from the last layer's map."""
        return self.project_up(map_BCHW), self.project_low(map_BCHW)

    def project_up(self, map_BCHW: Tensor) -> Tensor:
        """Degradation vectors (B, D)."""
        return F.normalize(self.up(upper(map_BCHW).mean((2, 3))).float(), dim=1)

    def project_low(self, map_BCHW: Tensor) -> Tensor:
        """Quality vectors (B, D)."""
        return F.normalize(self.low(lower(map_BCHW).mean((2, 3))).float(), dim=1)


def _head(half: int, config: DREConfig) -> nn.Module:
    if config.proj == "none":
        return nn.Identity()
    return nn.Sequential(
        nn.Linear(half, half), nn.LeakyReLU(SLOPE), nn.Linear(half, config.proj_dim)
    )


class DRE(nn.Module):
    """Encoder and projection heads: what stage 1 trains.

    Args:
        config: the extractor's sizes.
    """

    def __init__(self, config: DREConfig) -> None:
        super().__init__()
        self.encoder = DREEncoder(config)
        self.heads = ProjectionHeads(config)

    def forward(self, image_BCHW: Tensor) -> DREOutput:
        """Everything, for RGB images in [0, 1]; `encode` is the cheaper call without heads."""
        features = self.encoder(image_BCHW)
        return DREOutput(
            features, upper(features[-1]), lower(features[-1]), *self.heads(features[-1])
        )

    def encode(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The five maps only."""
        return self.encoder(image_BCHW)
