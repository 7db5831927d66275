"""Pristine images are cut once into sub-images, so that training never decodes two thousand pixels for 512.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def sub_images(height: int, width: int, side: int) -> list[tuple[int, int, int, int]]:
    """Where a pristine image is cut: (top, left, height, width) of each part.

    Parts lie side by side from the top left; what is left at the right and the bottom gets a part
    of its own, flush with the border, where it is at least half a side, and is dropped otherwise
    (the scheme of BasicSR's extract_subimages.py with step = size). An image that gives one part
    only is kept whole.
    """

    def starts(length: int) -> list[int]:
        if length <= side:
            return [0]
        found = list(range(0, length - side + 1, side))
        if 2 * (length - found[-1] - side) >= side:
            found.append(length - side)
        return found

    tops, lefts = starts(height), starts(width)
    if len(tops) == len(lefts) == 1:
        return [(0, 0, height, width)]
    return [(top, left, min(side, height), min(side, width)) for top in tops for left in lefts]


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """An RGB uint8 image as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
