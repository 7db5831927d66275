"""What the operators share: input checks, clipping, 16-bit lookup tables, random numbers, Gaussian kernels.

Legend: H, W height and width in pixels; C = 3 colour channels, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Image = NDArray[np.float32]
"""An (H, W, 3) float32 RGB picture with values in [0, 1]."""

MIN_SIDE = 32
"""Smallest side that the operators accept: the colour block's size, and six JPEG 2000 resolutions."""

REFERENCE_AREA = 512 * 384
"""Pixels of a KADID-10k image; counts of patches and blocks were chosen for it and scale with the area."""

STRIP_VALUES = 96 * 1024
"""Numbers in a strip of rows, 384 KiB of float32."""

_ONE_BITS = 0x3F800000
"""Bits of float32 1.0. As unsigned integers, negative numbers, NaN and anything above 1 are larger."""


def check_image(image: Any, name: str) -> Image:
    """The image as a contiguous array, or an error that says what is wrong with it.

    Args:
        image: what a caller passed; expected (H, W, 3) float32 in [0, 1], sides of at least 32.
        name: the operator's name, for the message.

    Raises:
        ValueError: any other type, shape, dtype, a NaN, or a value outside [0, 1].
    """
    expected = "expected (H, W, 3) float32 RGB in [0, 1], sides >= 32"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name}: got {type(image).__name__}; {expected} as a NumPy array")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name}: got shape {image.shape}; {expected}")
    if image.dtype != np.float32:
        hint = "; divide 8-bit images by 255" if image.dtype == np.uint8 else ""
        raise ValueError(f"{name}: got dtype {image.dtype}; {expected}{hint}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"{name}: got {image.shape[0]}x{image.shape[1]} pixels; {expected}")
    image = np.ascontiguousarray(image)
    # One integer maximum instead of a minimum, a maximum and a NaN test: this runs before every operator.
    if int(image.view(np.uint32).max()) > _ONE_BITS:
        if np.isnan(image).any():
            raise ValueError(f"{name}: got NaN; {expected}")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise ValueError(f"{name}: got values in [{low:g}, {high:g}]; {expected}")
    return image


def array(result: Any) -> NDArray[Any]:
    """A result of OpenCV as an array (its annotations allow arrays of every type)."""
    return np.asarray(result)


def clip01(image: NDArray[Any]) -> Image:
    """Clip to [0, 1] in place and return the same array."""
    return np.clip(image, 0.0, 1.0, out=image)


def strips(image: Image) -> Iterator[slice]:
    """Slices of rows that cover an image, for chains of per-pixel steps with many intermediate results.

    Intermediate results of whole images would go beyond a core's cache, and where memory is not kept (threads.py) every
    one would be paid for in page faults: several times the arithmetic at 512 x 512 pixels.
    """
    rows = max(1, STRIP_VALUES // (image.shape[1] * image.shape[2]))
    for top in range(0, image.shape[0], rows):
        yield slice(top, top + rows)


def to_u16(image: Image) -> NDArray[np.uint16]:
    """round(65535 x), saturating outside [0, 1]: the index of a 16-bit lookup table."""
    flat = image.reshape(image.shape[0], -1)
    out = cv2.addWeighted(flat, 65535.0, flat, 0.0, 0.0, dtype=cv2.CV_16U)
    return array(out).reshape(image.shape)


def to_u8(image: Image) -> NDArray[np.uint8]:
    """round(255 x) of values in [0, 1]."""
    return array(cv2.convertScaleAbs(image, alpha=255))


def from_u8(image: NDArray[np.uint8]) -> Image:
    """The float32 image u / 255."""
    out = np.empty(image.shape, np.float32)
    for rows in strips(out):
        out[rows] = image[rows]
        out[rows] /= np.float32(255)
    return out


def lookup(index: NDArray[np.unsignedinteger[Any]], table: NDArray[Any]) -> NDArray[Any]:
    """table[index] for a table as long as the index type has values (256 or 65536)."""
    return array(cv2.LUT(index, table)).reshape(index.shape)


def random_u16(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Independent uniform 16-bit integers, four from each 64-bit word of the generator."""
    count = math.prod(shape)
    words = rng.integers(0, 2**64 - 1, (count + 3) // 4, dtype=np.uint64, endpoint=True)
    return words.astype("<u8", copy=False).view("<u2")[:count].reshape(shape)


@lru_cache(maxsize=1)
def normal_table() -> NDArray[np.float64]:
    """65536 equally likely values of a standard normal variable.

    Entry i is the mean of the variable between its quantiles i / 65536 and (i + 1) / 65536, rescaled to variance 1
    (the factor differs from 1 by 1e-6); the largest value is 4.39. Looking noise up here is seven times faster than
    drawing it, and an 8-bit image cannot show the difference.
    """
    edges = ndtri(np.arange(65537, dtype=np.float64) / 65536)
    density = np.exp(-0.5 * edges**2) / math.sqrt(2 * math.pi)
    means = 65536 * (density[:-1] - density[1:])
    means = (means - means[::-1]) / 2
    return means / math.sqrt(float(np.mean(means**2)))


@lru_cache(maxsize=64)
def noise_table(deviation: float, mean: float = 0.0) -> NDArray[np.float32]:
    """`normal_table` with the given mean and standard deviation, in float32."""
    return (mean + deviation * normal_table()).astype(np.float32)


def normals(
    shape: tuple[int, ...], deviation: float, rng: np.random.Generator, mean: float = 0.0
) -> NDArray[np.float32]:
    """Independent normal variables of the given mean and standard deviation."""
    return lookup(random_u16(shape, rng), noise_table(deviation, mean))


def blur(planes: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian filter of an (H, W) or (H, W, C) array.

    The kernel is sampled at whole pixels on 2 ceil(2 sigma) + 1 taps and normalised; borders are replicated.
    """
    size = 2 * math.ceil(2 * sigma) + 1
    return array(cv2.GaussianBlur(planes, (size, size), sigma, borderType=cv2.BORDER_REPLICATE))


def correlate(
    image_HWC: Image, kernel_KK: NDArray[np.float32], border: int = cv2.BORDER_REPLICATE
) -> Image:
    """Sum of an image's shifted copies, weighted by a kernel with odd sides, clipped to [0, 1].

    cv2.filter2D goes through a Fourier transform from 130 weights on, which costs as much as about 250 weights that are
    not zero. So a kernel with fewer of them is taken in two halves.
    """
    if kernel_KK.size < 130 or np.count_nonzero(kernel_KK) > 200:
        return clip01(array(cv2.filter2D(image_HWC, -1, kernel_KK, borderType=border)))
    rows, columns = kernel_KK.shape
    y, x = rows // 2, columns // 2
    if rows >= columns:
        first, anchor = kernel_KK[: y + 1], (x, y)
        second, origin = kernel_KK[y:].copy(), (x, 0)
        second[0] = 0
    else:
        first, anchor = kernel_KK[:, : x + 1], (x, y)
        second, origin = kernel_KK[:, x:].copy(), (0, y)
        second[:, 0] = 0
    out_HWC = array(cv2.filter2D(image_HWC, -1, first, anchor=anchor, borderType=border))
    out_HWC += array(cv2.filter2D(image_HWC, -1, second, anchor=origin, borderType=border))
    return clip01(out_HWC)
