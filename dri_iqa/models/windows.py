"""A network of image to image applied to large images by overlapping windows of the size it was trained at.

Channel attention and GroupNorm take means over the whole map: over a whole photograph they differ from those over
training's crops, which costs restoration quality (Chu et al., Improving Image Restoration by Revisiting Global
Information Aggregation, ECCV 2022), and memory grows with the photograph. Windows have neither.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 16
"""Windows per pass: what bounds memory."""


def in_windows(
    network: Callable[[Tensor], Tensor], image_BCHW: Tensor, side: int, *, multiple: int = 1
) -> Tensor:
    """`network(image_BCHW)` by windows of `side` pixels, each pixel the weighted mean over those that hold it.

    Windows overlap by half a side at least, and weigh least at their edges, so that no seam is seen.

    Args:
        network: any number of images (H, W) to as many of the same size and channels.
        image_BCHW: of any size; one no larger than a window is one pass.
        side: of a window in pixels.
        multiple: of which the sides of what the network is given are; edges are repeated to reach it.
    """
    height, width = image_BCHW.shape[2:]
    if max(height, width) <= side:
        return _padded(network, image_BCHW, multiple)
    places = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
    high, wide = min(side, height), min(side, width)
    weight_HW = _slope(high)[:, None] * _slope(wide)
    weight_HW = weight_HW.to(image_BCHW)
    sum_BCHW, sum_HW = torch.zeros_like(image_BCHW), weight_HW.new_zeros(height, width)
    for begin in range(0, len(places), _AT_ONCE):
        part = places[begin : begin + _AT_ONCE]
        windows = [image_BCHW[:, :, y : y + high, x : x + wide] for y, x in part]
        results = _padded(network, torch.cat(windows), multiple).split(len(image_BCHW))
        for (y, x), result_BCHW in zip(part, results, strict=True):
            sum_BCHW[:, :, y : y + high, x : x + wide] += weight_HW * result_BCHW
            sum_HW[y : y + high, x : x + wide] += weight_HW
    return sum_BCHW / sum_HW


def _padded(network: Callable[[Tensor], Tensor], image_BCHW: Tensor, multiple: int) -> Tensor:
    height, width = image_BCHW.shape[2:]
    more = (0, -width % multiple, 0, -height % multiple)
    padded_BCHW = F.pad(image_BCHW, more, mode="replicate") if any(more) else image_BCHW
    return network(padded_BCHW)[:, :, :height, :width]


def _starts(length: int, side: int) -> list[int]:
    """Evenly spaced first pixels of windows that cover `length` and overlap by half a side at least."""
    if length <= side:
        return [0]
    count = -(-2 * (length - side) // side) + 1
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def _slope(length: int) -> Tensor:
    """Rises by one a pixel to the middle and falls again; never 0."""
    rise = torch.arange(1, length + 1)
    return torch.minimum(rise, rise.flip(0)).float()
