"""Colour: diffusion, shift, two saturations, and (not in the default set) quantisation to a palette.

Legend: H, W height and width in pixels; C = 3 channels; f is the Lab function of X, Y, Z (see lab.py).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from dri_iqa.degradations.core import Image, array, blur, clip01, from_u8, strips, to_u8
from dri_iqa.degradations.lab import f_to_rgb, through_f, whole_f


def colour_diffusion(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Blur and amplify the chromaticity, keep the lightness.

    a* and b* become value x Gaussian(a*, b*; sigma = 1.5 value + 2 pixels); colours are clipped at the end.

    Args:
        image_HWC: RGB in [0, 1].
        value: amplification, 1 to 12.
        rng: not used.

    Source: KADIS imcolordiffuse.m; ports that exchange red and blue before the conversion are not followed.
    """
    f_HWC = whole_f(image_HWC)
    # The two planes one by one: OpenCV filters single channels faster.
    x_HW, z_HW = (
        blur(array(cv2.transform(f_HWC, np.array([row], np.float32))), 1.5 * value + 2)
        for row in ((value, -value, 0), (0, -value, value))
    )
    out_HWC = np.empty_like(image_HWC)
    for rows in strips(image_HWC):
        f_y_HW = array(cv2.extractChannel(f_HWC[rows], 1))
        moved = cv2.merge([x_HW[rows] + f_y_HW, f_y_HW, z_HW[rows] + f_y_HW])
        f_to_rgb(array(moved), out_HWC[rows])
    return out_HWC


def colour_shift(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Translate the green plane, visibly only near edges.

    green' = e shifted + (1 - e) green, with e an edge mask in [0, 1]: the gradient's magnitude of the grey image,
    smoothed (sigma = 4), stretched to [0, 1], clipped to [0.1, 1], and stretched between its 1 % and 99 % quantiles.

    Args:
        image_HWC: RGB in [0, 1].
        value: length of the translation, 1 to 12 pixels, rounded on each axis.
        rng: draws the direction (a, b) ~ U(0, 1), normalised, and a sign for each axis.

    Source: KADIS imcolorshift.m (translations towards +x, +y only; the signs are ours).
    """
    direction = rng.uniform(0.0, 1.0, 2)
    signs = 2 * rng.integers(0, 2, 2) - 1
    dy, dx = (int(d) for d in signs * np.rint(value * direction / np.linalg.norm(direction)))
    height, width = image_HWC.shape[:2]
    pad_y, pad_x = abs(dy), abs(dx)
    green_HW = array(cv2.extractChannel(image_HWC, 1))
    padded = cv2.copyMakeBorder(green_HW, pad_y, pad_y, pad_x, pad_x, cv2.BORDER_REPLICATE)
    top, left = pad_y - dy, pad_x - dx
    shifted_HW = padded[top : top + height, left : left + width]
    mixed_HW = shifted_HW - green_HW
    mixed_HW *= edge_mask(image_HWC)
    mixed_HW += green_HW
    out_HWC = image_HWC.copy()
    cv2.insertChannel(clip01(mixed_HW), out_HWC, 1)
    return out_HWC


def edge_mask(image_HWC: Image) -> NDArray[np.float32]:
    """The mask of `colour_shift`, (H, W) in [0, 1]; all zeros where the image has no edges."""
    grey_HW = cv2.transform(image_HWC, np.array([[0.2989, 0.5870, 0.1140]], dtype=np.float32))
    gx_HW = cv2.Sobel(grey_HW, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    gy_HW = cv2.Sobel(grey_HW, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    # cv2.magnitude would round differently depending on where its arrays lie in memory.
    gx_HW, gy_HW = np.square(gx_HW), np.square(gy_HW)
    mask_HW = blur(np.sqrt(np.add(gx_HW, gy_HW, out=gx_HW), out=gx_HW), 4.0)
    low, high = float(mask_HW.min()), float(mask_HW.max())
    if high - low < 1e-6:
        return np.zeros_like(mask_HW)
    mask_HW -= low
    mask_HW *= 1 / (high - low)
    np.clip(mask_HW, 0.1, 1.0, out=mask_HW)
    low, high = _quantiles(mask_HW, 0.01, 0.99)
    if high - low < 1e-6:
        return np.zeros_like(mask_HW)
    mask_HW -= low
    mask_HW *= 1 / (high - low)
    return clip01(mask_HW)


def _quantiles(plane_HW: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Two quantiles with linear interpolation, as numpy.quantile, by one partial sort."""
    flat = plane_HW.ravel()
    places = [q * (flat.size - 1) for q in (low, high)]
    ranks = sorted({min(math.floor(p) + i, flat.size - 1) for p in places for i in (0, 1)})
    ordered = np.partition(flat, ranks)
    values = []
    for place in places:
        below = math.floor(place)
        above = min(below + 1, flat.size - 1)
        start, end = float(ordered[below]), float(ordered[above])
        values.append(start + (place - below) * (end - start))
    return values[0], values[1]


def saturation_hsv(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Multiply the saturation of HSV; a negative factor gives complementary tints.

    Hue and value stay. A channel of an HSV colour is v - v s g(h) with g in [0, 1], so scaling s by k turns channel x
    into k x + (1 - k) max(R, G, B): no conversion is needed, and s is not clipped when k < 0.

    Args:
        image_HWC: RGB in [0, 1].
        value: the factor k, -0.4 to 0.4.
        rng: not used.

    Source: KADIS imsaturate.m (imcolorsaturate in HSV).
    """
    out_HWC = np.empty_like(image_HWC)
    for rows in strips(image_HWC):
        red_HW, green_HW, blue_HW = cv2.split(image_HWC[rows])
        top_HW = cv2.max(cv2.max(red_HW, green_HW), blue_HW)
        top_HWC = cv2.merge([top_HW, top_HW, top_HW])
        cv2.addWeighted(image_HWC[rows], value, top_HWC, 1 - value, 0.0, dst=out_HWC[rows])
        clip01(out_HWC[rows])
    return out_HWC


def saturation_lab(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Multiply a* and b*, keep the lightness; out-of-gamut colours are clipped.

    Args:
        image_HWC: RGB in [0, 1].
        value: the factor, 1 to 9; 1 is the identity.
        rng: not used.

    Source: KADIS imsaturate.m (Lab branch).
    """
    rest = 1 - value
    scale = np.array([[value, rest, 0], [0, 1, 0], [0, rest, value]], dtype=np.float32)
    return through_f(image_HWC, lambda f_HWC: array(cv2.transform(f_HWC, scale)))


def colour_quantisation(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Reduce to a palette of `value` colours with error diffusion (Floyd-Steinberg).

    Args:
        image_HWC: RGB in [0, 1]; rounded to 8 bits.
        value: number of colours, 2 to 256.
        rng: not used.

    Source: KADID-10k type 6 (rgb2ind). Pillow's `quantize(colors=n)` alone does not dither, so the palette is made
    first (median cut) and the image is mapped onto it in a second call.
    """
    picture = PillowImage.fromarray(to_u8(image_HWC))
    palette = picture.quantize(colors=int(value), method=PillowImage.Quantize.MEDIANCUT)
    dithered = picture.quantize(palette=palette, dither=PillowImage.Dither.FLOYDSTEINBERG)
    return from_u8(np.array(dithered.convert("RGB")))
