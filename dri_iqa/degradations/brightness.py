"""Brightness: brighten and darken by curves, and a mean shift.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dri_iqa.degradations.core import Image, array, clip01, strips
from dri_iqa.degradations.lab import through_f


def parabola(values: NDArray[np.float32], lift: float) -> NDArray[np.float32]:
    """The curve through (0, 0), (0.5, 0.5 + lift / 2), (1, 1), clipped to [0, 1].

    A not-a-knot cubic spline on three knots is their parabola: x + 2 lift x (1 - x).
    """
    out = values * np.float32(-2 * lift)
    out += np.float32(1 + 2 * lift)
    out *= values
    return clip01(out)


def brighten(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Lift the mid-tones: (2 curve(RGB) + curve(lightness)) / 3.

    Both curves go through (0, 0), (0.5, 0.5 + value / 2), (1, 1); the second is applied to L* / 100 with a*, b* kept.

    Args:
        image_HWC: RGB in [0, 1].
        value: lift, 0 to 1.1.
        rng: not used.

    Source: KADIS imbrighten.m, curves.m.
    """
    out_HWC = through_f(image_HWC, lambda f_HWC: _lift(f_HWC, value))
    for rows in strips(image_HWC):
        curve_HWC = parabola(image_HWC[rows], value)
        cv2.addWeighted(curve_HWC, 2 / 3, out_HWC[rows], 1 / 3, 0.0, dst=out_HWC[rows])
    return clip01(out_HWC)


def _lift(f_HWC: Image, value: float) -> Image:
    """Apply the curve to L* / 100 = 1.16 f_Y - 0.16; a* and b* stay if all three f move by the same amount."""
    lightness_HW = array(cv2.extractChannel(f_HWC, 1)) * np.float32(1.16) - np.float32(0.16)
    clip01(lightness_HW)
    step_HW = (parabola(lightness_HW, value) - lightness_HW) * np.float32(1 / 1.16)
    f_HWC += array(cv2.merge([step_HW, step_HW, step_HW]))
    return f_HWC


def darken(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Press the mid-tones: the curve through (0, 0), (0.5, 0.5 - value / 2), (1, 1) on RGB.

    Args:
        image_HWC: RGB in [0, 1].
        value: depth, 0 to 0.8.
        rng: not used.

    Source: KADIS imdarken.m as its ports have it.
    """
    return parabola(image_HWC, -value)


def mean_shift(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """clip(x + value).

    Args:
        image_HWC: RGB in [0, 1].
        value: the shift, -0.15 to 0.15.
        rng: not used.

    Source: KADIS immeanshift.m.
    """
    return clip01(image_HWC + np.float32(value))
