"""Blur: Gaussian, lens (disk) and motion (line).

Legend: H, W height and width in pixels; C = 3 channels; K side of a kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dri_iqa.degradations.core import Image, blur, clip01, correlate


def gaussian_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Gaussian filter with replicated borders.

    Args:
        image_HWC: RGB in [0, 1].
        value: standard deviation, 0.1 to 5 pixels; the kernel has 2 ceil(2 sigma) + 1 taps.
        rng: not used.

    Source: KADIS imblurgauss.m.
    """
    return clip01(blur(image_HWC, value))


def lens_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Mean over a disk, replicated borders.

    Args:
        image_HWC: RGB in [0, 1].
        value: radius, 1 to 8 pixels.
        rng: not used.

    Source: KADIS imblurlens.m (fspecial 'disk'); pixels on the rim count by the share of their area inside.
    """
    return correlate(image_HWC, disk_kernel(value))


def motion_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Mean along a straight line at a random angle, replicated borders.

    Args:
        image_HWC: RGB in [0, 1].
        value: length of the line, 1 to 16 pixels; 1 is the identity.
        rng: draws the angle, uniform in [0, 180) degrees.

    Source: KADIS imblurmotion.m (fspecial 'motion').
    """
    return correlate(image_HWC, line_kernel(value, rng.uniform(0.0, math.pi)))


@lru_cache(maxsize=32)
def disk_kernel(radius: float) -> NDArray[np.float32]:
    """A disk of the given radius, each pixel weighted by its covered area (64 x 64 points a pixel), sum 1."""
    half = math.ceil(radius - 0.5)
    size, fine = 2 * half + 1, 64
    axis = (np.arange(size * fine) + 0.5) / fine - 0.5 - half
    inside = axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2
    kernel = inside.reshape(size, fine, size, fine).mean(axis=(1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


def line_kernel(length: float, angle: float) -> NDArray[np.float32]:
    """A line of the given length (pixels) and angle (radians, counter-clockwise from the x axis), sum 1.

    A pixel's weight is 1 minus its distance to the segment between the centres of the end pixels, at least 0.
    """
    reach = (length - 1) / 2
    along_x, along_y = math.cos(angle), -math.sin(angle)
    half_x, half_y = (math.ceil(reach * abs(part) - 1e-9) + 1 for part in (along_x, along_y))
    y, x = np.mgrid[-half_y : half_y + 1, -half_x : half_x + 1].astype(np.float64)
    position = np.clip(x * along_x + y * along_y, -reach, reach)
    distance = np.hypot(x - position * along_x, y - position * along_y)
    kernel = np.maximum(1 - distance, 0)
    kernel[kernel < 1e-6] = 0  # what rounding leaves one pixel beside an axis-aligned line
    return (kernel / kernel.sum()).astype(np.float32)
