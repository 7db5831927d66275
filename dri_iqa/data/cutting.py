"""Pristine images are cut once into sub-images, so that training never decodes two thousand pixels for 512.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dri_iqa.images import decode


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


def encoded_parts(
    data: bytes, height: int, width: int, *, cut: int | None, short_side: int | None
) -> list[tuple[bytes, tuple[int, int]]]:
    """The encoded images that an encoded image becomes, with (height, width); as it is where nothing is to be done.

    Args:
        data: the image.
        height: its height in pixels.
        width: its width.
        cut: side in pixels of the sub-images that a larger image is cut into, or None.
        short_side: short side in pixels that a larger image is shrunk to, or None.
    """
    shrinks = bool(short_side) and min(height, width) > (short_side or 0)
    cuts = cut is not None and max(height, width) > cut
    if not shrinks and not cuts:
        return [(data, (height, width))]
    image_HWC = decode(data)
    if shrinks and short_side:
        scale = short_side / min(height, width)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        picture = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC)
        image_HWC = np.array(picture)
    boxes = sub_images(height, width, cut) if cuts and cut else [(0, 0, height, width)]
    if len(boxes) == 1:
        return [(png_bytes(image_HWC) if shrinks else data, (height, width))]
    return [
        (png_bytes(image_HWC[top : top + tall, left : left + wide]), (tall, wide))
        for top, left, tall, wide in boxes
    ]


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """An RGB uint8 image as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
