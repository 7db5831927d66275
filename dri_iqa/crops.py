"""Where the test-time crops of a picture lie (paper 4.2).

The positions follow from the picture's pixels and the policy, from nothing else: no global random
state, no file name, no order of a batch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from dri_iqa.images import ImageError
from dri_iqa.seeds import Purpose, generator

MAX_CROPS = 10_000
"""Refuses typing errors, and pictures that would need more to be covered."""


class CropPolicy(NamedTuple):
    """Which crops a score is made of."""

    kind: str
    """`random`, `uniform` or `whole`."""
    number: int
    """Of crops; 0 for `whole`, where it follows from the picture's size."""
    seed: int = 0
    """Of random positions; the paper tests with five."""


def parse_crops(crops: str | int) -> CropPolicy:
    """A crop policy from its short form: 25, `random25`, `random25@3` (seed 3), `uniform25`,
    `whole`.

    Raises:
        ValueError: an unknown policy, a number out of range, or a grid that is not square.
    """
    if isinstance(crops, int) and not isinstance(crops, bool):
        crops = f"random{crops}"
    if crops == "whole":
        return CropPolicy("whole", 0)
    match = re.fullmatch(r"(?:(random)(\d+)(?:@(\d{1,9}))?|(uniform)(\d+))", str(crops))
    number = int(match[2] or match[5]) if match else 0
    if match is None or not 1 <= number <= MAX_CROPS:
        raise ValueError(
            f"crops: got {crops!r}, expected a number from 1 to {MAX_CROPS}, "
            "randomN, randomN@SEED, uniformN (N a square) or whole"
        )
    kind = match[1] or match[4]
    if kind == "uniform" and round(number**0.5) ** 2 != number:
        raise ValueError(f"crops: a uniform grid needs a square number (9, 16, 25), got {number}")
    return CropPolicy(kind, number, int(match[3] or 0))


def crop_positions(
    width: int, height: int, crop: int, crops: str | int = "random25", digest: bytes = b""
) -> np.ndarray:
    """Where the crops of one picture lie (paper 4.2: 25 random crops).

    Args:
        width, height: the picture's size in pixels, neither below `crop`.
        crop: side of the crops in pixels.
        crops: `randomN` (or N): uniform over all positions, the last row and column included, the
            k-th position drawn from (seed, digest, k), so that fewer crops are a prefix of more;
            `uniformN`: a square grid from edge to edge; `whole`: the fewest crops that cover the
            picture, evenly spread.
        digest: the picture's `content_digest`; only random positions need it.

    Returns:
        (n, 2) int64: x of the left column and y of the top row of each crop.

    Raises:
        ValueError: a picture smaller than the crop, or an unknown policy.
    """
    if width < crop or height < crop:
        raise ValueError(f"a {width}x{height} picture has no {crop}x{crop} crop; enlarge it first")
    kind, number, seed = parse_crops(crops)
    room = (width - crop, height - crop)
    if kind == "random":
        if not digest:
            raise ValueError("random crops need the picture's content digest")
        words = np.frombuffer(digest, dtype="<u4").tolist()
        draws = [
            generator(seed, Purpose.SCORE_CROP, *words, k).integers(0, room, endpoint=True)
            for k in range(number)
        ]
        return np.stack(draws).astype(np.int64)
    if kind == "uniform":
        counts = (round(number**0.5), round(number**0.5))
    else:
        counts = (-(-width // crop), -(-height // crop))
        if counts[0] * counts[1] > MAX_CROPS:
            raise ImageError(f"too large to cover ({width}x{height} with {crop}x{crop} crops)")
    x, y = (
        # A grid of one crop sits in the middle.
        np.rint(np.linspace(0, space, count) if count > 1 else np.array([space / 2]))
        for space, count in zip(room, counts, strict=True)
    )
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)


def cut_crops(image_HWC: np.ndarray, position_K2: np.ndarray, crop: int) -> np.ndarray:
    """The crops (K, crop, crop, C) at (x, y) positions of their upper left corners."""
    return np.stack([image_HWC[y : y + crop, x : x + crop] for x, y in position_K2])


def micro_batch(crop: int, device_type: str) -> int:
    """Crops in one pass of the network; part of the arithmetic, so no setting.

    Large crops keep two CPU cores busy five at a time; 25 at once only take more memory there
    (the paper's sizes at 224 pixels: 4.1 instead of 2.0 GB, the same time a crop).
    """
    return 5 if device_type == "cpu" and crop >= 128 else 25
