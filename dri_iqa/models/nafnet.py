"""Restoration-Assistance Module: NAFNet guided at nine points by the extractor (paper 3.3, Eq. 2).

NAFNet's blocks and layout follow NAFNet basicsr/models/archs/NAFNet_arch.py: intro convolution,
four encoder levels, middle, four decoder levels with additive skips, and the input added to the
output. The guidance points are before encoder levels 1-4, the middle, and decoder levels 4-1.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dri_iqa.config import RAMConfig
from dri_iqa.models.dre import upper
from dri_iqa.models.guidance import make_guidance
from dri_iqa.models.pointwise import Pointwise

SIZES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    "sidd": ((2, 2, 4, 8), 12, (2, 2, 2, 2)),
    "gopro": ((1, 1, 1, 28), 1, (1, 1, 1, 1)),
    "light": ((1, 1, 1, 4), 2, (1, 1, 1, 1)),
    "tiny": ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
}
"""Blocks of (encoder levels, middle, decoder levels from the coarsest); sidd and gopro are NAFNet's
own.
"""

_NARROW = 16  # channels below which layer_norm's kernel is slower than its formula (CPU)

_FIRST_CHANGE = 0.01
"""The last convolution starts this much smaller than usual: an untrained network returns its input
nearly as it is (21.1 dB on the sample's images of 21.1 dB, 11.1 dB otherwise), and gradients reach every
layer from the first step, as from zero they would not.
"""

PADDING = 16
"""Sides are padded to a multiple of this: four levels halve them four times."""


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each pixel, epsilon 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.weight.shape[0] < _NARROW:
            centred_BCHW = x_BCHW - x_BCHW.mean(1, keepdim=True)
            variance_B1HW = centred_BCHW.square().mean(1, keepdim=True)
            y_BCHW = centred_BCHW * (variance_B1HW + 1e-6).rsqrt()
            return torch.addcmul(self.bias[:, None, None], y_BCHW, self.weight[:, None, None])
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, 1e-6).permute(
            0, 3, 1, 2
        )


class NAFBlock(nn.Module):
    """Two residual halves without activation functions: depthwise + simplified channel attention,
    then a gated 1x1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(channels)
        self.expand1 = Pointwise(channels, 2 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=2 * channels)
        self.attention = Pointwise(channels, channels)
        self.project1 = Pointwise(channels, channels)
        self.norm2 = ChannelLayerNorm(channels)
        self.expand2 = Pointwise(channels, 2 * channels)
        self.project2 = Pointwise(channels, channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = _gate(self.depthwise(self.expand1(self.norm1(x_BCHW))))
        y = self.project1(y * self.attention(y.mean((2, 3), keepdim=True)))
        x_BCHW = torch.addcmul(x_BCHW, y, self.beta)
        y = self.project2(_gate(self.expand2(self.norm2(x_BCHW))))
        return torch.addcmul(x_BCHW, y, self.gamma)


def _gate(x_BCHW: Tensor) -> Tensor:
    first, second = x_BCHW.chunk(2, dim=1)
    return first * second


class NAFNet(nn.Module):
    """Restores RGB images, guided by the extractor's five maps.

    Args:
        config: width, number of blocks, kind of guidance.
        guide_widths: channels of the extractor's five layers, finest first; unused with `guidance =
            none`.
    """

    def __init__(self, config: RAMConfig, guide_widths: Sequence[int] = ()) -> None:
        super().__init__()
        encoder, middle, decoder = SIZES[config.size]
        widths = [config.width * 2**level for level in range(5)]
        self.whole_layers = config.guide_channels == "full"
        self.guided = config.guidance != "none"
        self.checkpointing = False
        self.intro = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.ending = nn.Conv2d(widths[0], 3, 3, 1, 1)
        with torch.no_grad():
            for parameter in self.ending.parameters():
                parameter.mul_(_FIRST_CHANGE)
        self.encoders = nn.ModuleList(_blocks(n, c) for n, c in zip(encoder, widths, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, 2) for c in widths[:4])
        self.middle = _blocks(middle, widths[4])
        self.ups = nn.ModuleList(Pointwise(2 * c, 4 * c, bias=False) for c in reversed(widths[:4]))
        self.decoders = nn.ModuleList(
            _blocks(n, c) for n, c in zip(decoder, reversed(widths[:4]), strict=True)
        )
        points = widths + widths[:4][::-1]
        self.guides = nn.ModuleList()
        if self.guided:
            share = 1 if self.whole_layers else 2
            of_width = [w // share for w in guide_widths]
            self.guides.extend(
                make_guidance(config.guidance, c, r)
                for c, r in zip(points, of_width + of_width[:4][::-1], strict=True)
            )

    def forward(self, image_BCHW: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """The restored image, (B, 3, H, W), not clamped.

        Args:
            image_BCHW: RGB in [0, 1]; H and W multiples of 16 (see `PADDING`).
            features: the extractor's five maps of the same image; ignored when not guided.
        """
        guides = [m if self.whole_layers else upper(m) for m in features] if self.guided else []
        x = self.intro(image_BCHW)
        skips: list[Tensor] = []
        for level, (blocks, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = self._run(blocks, self._guide(level, x, guides, level))
            skips.append(x)
            x = down(x)
        x = self._run(self.middle, self._guide(4, x, guides, 4))
        for step, (blocks, up) in enumerate(zip(self.decoders, self.ups, strict=True)):
            x = F.pixel_shuffle(up(x), 2) + skips[3 - step]
            x = self._run(blocks, self._guide(5 + step, x, guides, 3 - step))
        return self.ending(x) + image_BCHW

    def _guide(self, point: int, x: Tensor, guides: Sequence[Tensor], level: int) -> Tensor:
        if not self.guided:
            return x
        guide = guides[level]
        if (
            guide.shape[2:] != x.shape[2:]
        ):  # an extractor whose first layer already halves the resolution
            guide = F.interpolate(guide, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.guides[point](x, guide)

    def _run(self, blocks: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(blocks, x, use_reentrant=False)
        return blocks(x)


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))
