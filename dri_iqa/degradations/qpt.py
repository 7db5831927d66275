"""The milder operators of quality-aware pre-training (QPT), as the set `qpt`.

QPT's authors published no code; operators and levels follow an open re-implementation (`QualityAwareTransform` of
KaiJIN's tw). Its pairs of "add" and "reduce" operators are one signed operator here. Where a step below is our own
choice, the docstring says so. Images are RGB in [0, 1]; the range of every `value` is its row in levels.py.

Legend: H, W height and width in pixels; C = 3 channels; K side of a kernel.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from dri_iqa.degradations.blur import disk_kernel, line_kernel
from dri_iqa.degradations.core import (
    Image,
    array,
    blur,
    clip01,
    correlate,
    from_u8,
    lookup,
    normals,
    random_u16,
    to_u8,
)
from dri_iqa.degradations.realesrgan import generalised_kernel

_GREY = np.array([[0.299, 0.587, 0.114]] * 3, dtype=np.float32)


def sharpen(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Unsharp mask with a 3 x 3 Gaussian, sigma 0.8; `value` is the amount."""
    smooth = cv2.GaussianBlur(image_HWC, (3, 3), 0.8, borderType=cv2.BORDER_REPLICATE)
    return clip01(array(cv2.addWeighted(image_HWC, 1 + value, smooth, -value, 0.0)))


def gaussian_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Gaussian blur; `value` is sigma in pixels. (tw cuts the kernel to 3 x 3, which makes large sigmas alike.)"""
    return clip01(blur(image_HWC, value))


def motion_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Mean along a line at a random angle; its length is 1 + 6 u pixels, u ~ U(value - 0.2, value)."""
    length = 1 + 6 * rng.uniform(value - 0.2, value)
    return correlate(image_HWC, line_kernel(length, rng.uniform(0, math.pi)))


def median_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Median over a square of `value` pixels, channel by channel, in 8 bits."""
    return from_u8(array(cv2.medianBlur(to_u8(image_HWC), int(value))))


def glass_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Blur, move every pixel by up to `value` pixels, blur again; sigma is 0.1, 0.3 ... 0.9 for 1, 2 ... 5 pixels.

    Pixels are moved all at once; tw exchanges neighbours one after the other.
    """
    sigma = (2 * value - 1) / 10
    moves_2HW = rng.integers(-int(value), int(value), (2, *image_HWC.shape[:2]), endpoint=True)
    moves_2HW = moves_2HW.astype(np.float32)
    moved = cv2.remap(
        blur(image_HWC, sigma),
        moves_2HW[1],
        moves_2HW[0],
        cv2.INTER_NEAREST | cv2.WARP_RELATIVE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return clip01(blur(array(moved), sigma))


def generalised_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """A rotated generalised Gaussian, 7 x 7 pixels: sigma_x = `value`, sigma_y ~ U(0.5, 1) value, shape ~ U(0.5, 4)."""
    sigma_y = value * rng.uniform(0.5, 1.0)
    angle, shape = rng.uniform(0, math.pi), rng.uniform(0.5, 4.0)
    return correlate(image_HWC, generalised_kernel(7, value, sigma_y, angle, shape))


def defocus(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Mean over a disk; `value` is the radius in pixels."""
    return correlate(image_HWC, disk_kernel(value))


def zoom_blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Mean of the image and its enlargements about the centre by 1, 1.01, ... below `value`."""
    height, width = image_HWC.shape[:2]
    total = image_HWC.copy()
    count = round((value - 1) / 0.01)
    for step in range(count):
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, 1 + 0.01 * step)
        total += cv2.warpAffine(image_HWC, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    total *= np.float32(1 / (count + 1))
    return clip01(total)


def iso_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Camera noise: Poisson in lightness, normal in hue (as albumentations' ISONoise).

    `value` is the intensity, 0.1 to 0.9; the hue's deviation is 360 c value degrees with c = 0.01 to 0.03.
    """
    shift = 0.01 + 0.005 * round((value - 0.1) / 0.2)
    hls_HWC = array(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HLS))
    hue_HW, light_HW, saturation_HW = (plane.copy() for plane in cv2.split(hls_HWC))
    mean = float(light_HW.std()) * value * 255
    hue_HW += normals(hue_HW.shape, shift * 360 * value, rng)
    hue_HW %= 360
    light_HW += rng.poisson(mean, light_HW.shape).astype(np.float32) / 255 * (1 - light_HW)
    noisy = cv2.merge([hue_HW, np.minimum(light_HW, 1), saturation_HW])
    return clip01(array(cv2.cvtColor(noisy, cv2.COLOR_HLS2RGB)))


def colour_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Independent normal noise in every channel; `value` is its deviation in grey levels of 255."""
    return clip01(image_HWC + normals(image_HWC.shape, value / 255, rng))


def grey_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """The same normal noise in all channels; `value` is its deviation in grey levels of 255."""
    noise_HW = normals(image_HWC.shape[:2], value / 255, rng)
    return clip01(image_HWC + cv2.merge([noise_HW, noise_HW, noise_HW]))


def multiplicative_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Every sample times U(1 - value, 1 + value)."""
    table = (1 + value * ((np.arange(65536) + 0.5) / 32768 - 1)).astype(np.float32)
    return clip01(image_HWC * lookup(random_u16(image_HWC.shape, rng), table))


def brightness(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Every sample times `value`."""
    return clip01(image_HWC * np.float32(value))


def contrast(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Distances to the mean grey times `value`."""
    mean = float(cv2.transform(image_HWC, _GREY[:1]).mean())
    return clip01(image_HWC * np.float32(value) + np.float32((1 - value) * mean))


def gamma(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Every sample to the power of `value`."""
    return clip01(array(cv2.pow(image_HWC, value)))


def hue(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Turn the hue by `value` full turns."""
    hsv_HWC = array(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV))
    turned_HW = (hsv_HWC[..., 0] + np.float32(360 * value)) % np.float32(360)
    cv2.insertChannel(turned_HW, hsv_HWC, 0)
    return clip01(array(cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB)))


def saturation(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Distances to the pixel's own grey times `value`."""
    grey = cv2.transform(image_HWC, _GREY)
    return clip01(array(cv2.addWeighted(image_HWC, value, grey, 1 - value, 0.0)))


def nearest(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Nearest-neighbour reduction by `value` and back."""
    return _rescale(image_HWC, value, cv2.INTER_NEAREST_EXACT)


def bilinear(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Bilinear reduction by `value` and back."""
    return _rescale(image_HWC, value, cv2.INTER_LINEAR)


def bicubic(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Bicubic reduction by `value` and back."""
    return _rescale(image_HWC, value, cv2.INTER_CUBIC)


def _rescale(image_HWC: Image, factor: float, method: int) -> Image:
    height, width = image_HWC.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    reduced = cv2.resize(image_HWC, small, interpolation=method)
    return clip01(array(cv2.resize(reduced, (width, height), interpolation=method)))
