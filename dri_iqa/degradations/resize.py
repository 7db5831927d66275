"""Loss of resolution by resizing (not in the default set).

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from dri_iqa.degradations.core import Image, array, clip01

METHODS = (cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_NEAREST_EXACT, cv2.INTER_LANCZOS4)


def down_up(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Reduce the size by a factor and enlarge it again with the same interpolation, without a low-pass filter.

    Args:
        image_HWC: RGB in [0, 1].
        value: the factor, 2 to 16.
        rng: draws the interpolation: bicubic, bilinear, nearest or Lanczos, equally likely.

    Source: Re-IQA's resizing family.
    """
    method = METHODS[int(rng.integers(len(METHODS)))]
    height, width = image_HWC.shape[:2]
    small = (max(1, round(width / value)), max(1, round(height / value)))
    reduced = cv2.resize(image_HWC, small, interpolation=method)
    return clip01(array(cv2.resize(reduced, (width, height), interpolation=method)))
