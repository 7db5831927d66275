"""Sharpness and contrast: unsharp masking, an S-shaped curve, and range compression.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from dri_iqa.degradations.core import Image, array, blur, clip01, strips
from dri_iqa.degradations.lab import f_to_rgb, whole_f


def high_sharpen(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Unsharp mask on the lightness: L* + value (L* - Gaussian(L*; sigma = 3)), a* and b* kept.

    Args:
        image_HWC: RGB in [0, 1].
        value: amount, 1 to 12.
        rng: not used.

    Source: KADIS imsharpenHi.m: imsharpen's `Radius` is the standard deviation itself (some ports double it).
    """
    f_HWC = whole_f(image_HWC)
    f_y_HW = array(cv2.extractChannel(f_HWC, 1))
    step_HW = array(cv2.addWeighted(f_y_HW, value, blur(f_y_HW, 3.0), -value, 0.0))
    out_HWC = np.empty_like(image_HWC)
    for rows in strips(image_HWC):
        part_HW = step_HW[rows]
        f_HWC[rows] += array(cv2.merge([part_HW, part_HW, part_HW]))
        f_to_rgb(f_HWC[rows], out_HWC[rows])
    return out_HWC


def linear_contrast(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Cubic spline through (0, 0), (0.3, 0.25 - v / 4), (0.5, 0.5), (0.7, 0.75 + v / 4), (1, 1), clipped.

    The knots are symmetric about (0.5, 0.5) and the spline is not-a-knot, which leaves one odd cubic about that point:
    y = 0.5 + a u + b u^3 with u = x - 0.5, b = -(0.05 + 0.25 v) / 0.042, a = 1 - b / 4.

    Args:
        image_HWC: RGB in [0, 1].
        value: v, -0.6 to 0.3; positive for more and negative for less contrast.
        rng: not used.

    Source: KADIS imcontrastc.m, curves.m.
    """
    cubic = -(0.05 + 0.25 * value) / 0.042
    linear = 1 - cubic / 4
    u_HWC = image_HWC - np.float32(0.5)
    out_HWC = u_HWC * u_HWC
    out_HWC *= np.float32(cubic)
    out_HWC += np.float32(linear)
    out_HWC *= u_HWC
    out_HWC += np.float32(0.5)
    return clip01(out_HWC)


def non_linear_contrast(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Compress the range about mid-grey: 0.5 + 2 value (x - 0.5).

    Args:
        image_HWC: RGB in [0, 1].
        value: half the remaining range, 0 to 0.5.
        rng: not used.

    Source: ARNIQA utils/distortions.py (not part of KADID-10k).
    """
    out_HWC = image_HWC * np.float32(2 * value)
    out_HWC += np.float32(0.5 - value)
    return clip01(out_HWC)
