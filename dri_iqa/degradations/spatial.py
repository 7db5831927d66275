"""Spatial: jitter, displaced patches, pixelation, quantisation of values, colour blocks.

Legend: H, W height and width in pixels; C = 3 channels; R rows that are looked up.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dri_iqa.degradations.core import (
    REFERENCE_AREA,
    Image,
    array,
    clip01,
    lookup,
    normal_table,
    random_u16,
    to_u8,
)
from dri_iqa.degradations.thresholds import optimal_levels

PATCH = 16
"""Side of a displaced patch, pixels."""

BLOCK = 32
"""Side of a colour block, pixels."""


def jitter(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Five times: move every pixel by an independent random shift, bicubic interpolation, replicated borders.

    The three channels share their shifts. Shifts lie on a grid of 1/32 pixel.

    Args:
        image_HWC: RGB in [0, 1].
        value: standard deviation of a shift on each axis, 0.05 to 1 pixel.
        rng: draws the shifts.

    Source: KADIS imscatter.m, imwarpmap.m (interp2 'cubic', i.e. Keys' kernel with a = -0.5).
    """
    cubic_table, smooth_table = _shift_tables(value)
    shifts_2HW = np.empty((2, *image_HWC.shape[:2]), dtype=np.float32)
    cubic_HWC, smooth_HWC, out_HWC = (np.empty_like(image_HWC) for _ in range(3))
    for _ in range(5):
        index_2HW = random_u16(shifts_2HW.shape, rng)
        # OpenCV's bicubic kernel has a = -0.75, which overshoots a ramp by half for small shifts. Keys' kernel is
        # linear in a, so a = -0.5 is 2/3 of it plus 1/3 of the kernel for a = 0, and that one is linear interpolation
        # at the fraction 3t^2 - 2t^3. In two dimensions one product term is left out (4e-5 of the effect's energy).
        cv2.LUT(index_2HW, smooth_table, dst=shifts_2HW)
        _sample(image_HWC, shifts_2HW, cv2.INTER_LINEAR, smooth_HWC)
        cv2.LUT(index_2HW, cubic_table, dst=shifts_2HW)
        _sample(image_HWC, shifts_2HW, cv2.INTER_CUBIC, cubic_HWC)
        cv2.addWeighted(cubic_HWC, 2 / 3, smooth_HWC, 1 / 3, 0.0, dst=out_HWC)
        image_HWC = clip01(out_HWC)
    return out_HWC


def _sample(image_HWC: Image, shifts_2HW: NDArray[np.float32], method: int, out_HWC: Image) -> None:
    cv2.remap(
        image_HWC,
        shifts_2HW[1],
        shifts_2HW[0],
        method | cv2.WARP_RELATIVE_MAP,
        dst=out_HWC,
        borderMode=cv2.BORDER_REPLICATE,
    )


@lru_cache(maxsize=32)
def _shift_tables(deviation: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """65536 equally likely shifts with the given deviation; and the same with smoothed fractions (see `jitter`)."""
    # Rounding to a grid of step q adds q^2 / 12 to a smooth variable's variance (Sheppard).
    continuous = math.sqrt(max(deviation**2 - 1 / (12 * 32**2), 0.0)) * normal_table()
    shifts = np.rint(continuous * 32) / 32
    whole = np.floor(shifts)
    part = shifts - whole
    smooth = whole + part * part * (3 - 2 * part)
    return shifts.astype(np.float32), smooth.astype(np.float32)


def non_eccentricity_patch(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Copy 16 x 16 patches to places up to 8 pixels away, one after the other.

    Args:
        image_HWC: RGB in [0, 1].
        value: number of patches on 512 x 384 pixels, 20 to 100; scales with the area, at least 1.
        rng: draws corners, uniform at least 16 pixels inside (8 in images below 48 pixels), and displacements.

    Source: KADIS imnoneccentricity.m. A patch is read from the image as modified so far.
    """
    height, width = image_HWC.shape[:2]
    count = _count(value, height, width)
    corners = [
        rng.integers(margin, side - PATCH - margin, count, endpoint=True)
        for side in (height, width)
        for margin in (16 if side >= 48 else 8,)
    ]
    moves = np.rint((rng.uniform(0, 1, (2, count)) - 0.5) * PATCH).astype(np.int64)
    out_HWC = image_HWC.copy()
    for y, x, dy, dx in np.stack([*corners, *moves], axis=1).tolist():
        patch = out_HWC[y : y + PATCH, x : x + PATCH].copy()
        out_HWC[y + dy : y + dy + PATCH, x + dx : x + dx + PATCH] = patch
    return out_HWC


COPIED = 0.7
"""Where fewer rows than this share differ, copying them is cheaper than finding their pixels again."""


def pixelate(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Nearest-neighbour reduction to z = 0.95 - value^0.6 of the size and back.

    Args:
        image_HWC: RGB in [0, 1].
        value: strength, 0.01 to 0.5; the small image has ceil(z side) pixels, at least 1.
        rng: not used.

    Source: KADIS impixelate.m.
    """
    zoom = 0.95 - value**0.6
    height, width = image_HWC.shape[:2]
    shown_H, shown_W = _nearest(height, zoom), _nearest(width, zoom)
    rows_R, again_H = np.unique(shown_H, return_inverse=True)
    copied = len(rows_R) < COPIED * height
    if not copied:
        rows_R = shown_H
    rows_RW = np.repeat(rows_R, width).reshape(-1, width)
    columns_RW = np.tile(shown_W, (len(rows_R), 1))
    out_RWC = array(cv2.remap(image_HWC, columns_RW, rows_RW, cv2.INTER_NEAREST))
    return out_RWC[again_H] if copied else out_RWC


def _nearest(side: int, zoom: float) -> NDArray[np.float32]:
    """For each pixel of a side, the pixel that it shows after the reduction to ceil(zoom side) pixels and back.

    The source of pixel i is the one that holds the point (i + 0.5) x scale; a point between two pixels is the right
    one's. That takes integer arithmetic: cv2.resize puts such points now left, now right.
    """
    small = max(1, math.ceil(zoom * side))
    place = (2 * np.arange(side) + 1) * small // (2 * side)
    return ((2 * place + 1) * side // (2 * small)).astype(np.float32)


def quantisation(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Reduce the values of all channels together to `value` levels with the least squared error.

    Args:
        image_HWC: RGB in [0, 1]; rounded to 8 bits.
        value: number of levels, 2 to 256.
        rng: not used.

    Source: KADIS imquantize.m (multithresh). Its simplex search for the thresholds is replaced by the exact optimum and
    its output values by the class means (Lloyd-Max), see thresholds.py.
    """
    codes_HWC = to_u8(image_HWC)
    flat = codes_HWC.reshape(codes_HWC.shape[0], -1)
    histogram = array(cv2.calcHist([flat], [0], None, [256], [0, 256])).ravel().astype(np.int64)
    return lookup(codes_HWC, optimal_levels(histogram, int(value)))


def colour_block(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Paint 32 x 32 blocks of one random colour each.

    Args:
        image_HWC: RGB in [0, 1].
        value: number of blocks on 512 x 384 pixels, 2 to 10; scales with the area, at least 1.
        rng: draws positions and colours, uniform.

    Source: KADIS imcolorblock.m.
    """
    height, width = image_HWC.shape[:2]
    count = _count(value, height, width)
    tops = rng.integers(0, height - BLOCK, count, endpoint=True)
    lefts = rng.integers(0, width - BLOCK, count, endpoint=True)
    colours = rng.random((count, 3), dtype=np.float32)
    out_HWC = image_HWC.copy()
    for top, left, colour in zip(tops.tolist(), lefts.tolist(), colours, strict=True):
        out_HWC[top : top + BLOCK, left : left + BLOCK] = colour
    return out_HWC


def _count(value: float, height: int, width: int) -> int:
    return max(1, round(value * height * width / REFERENCE_AREA))
