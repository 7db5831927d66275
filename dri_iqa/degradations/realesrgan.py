"""Real-ESRGAN's two-round degradations, as the set `realesrgan`.

Ranges and probabilities are those of options/train_realesrnet_x4plus.yml. A level is one fifth of an operator's range,
inside which the parameter is uniform; with equally likely levels that is the published distribution. Two things differ:
images are resized back at once, because operators keep the shape, and super-resolution's reduction by 4 is left out.
Images are RGB in [0, 1]; the range of every `value` is in RANGES and ENLARGE.

Legend: H, W height and width in pixels; C = 3 channels; K side of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from dri_iqa.degradations.compression import jpeg
from dri_iqa.degradations.core import Image, array, clip01, correlate, normals, to_u8

KERNELS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
KERNEL_BOUNDS = np.cumsum([0.45, 0.25, 0.12, 0.03, 0.12, 0.03])[:-1]
SINC = 0.1
GREY = 0.4

RANGES: dict[str, tuple[float, float]] = {
    "esrgan_blur": (0.2, 3.0),
    "esrgan_resize": (1.0, 0.15),
    "esrgan_gaussian": (1.0, 30.0),
    "esrgan_poisson": (0.05, 3.0),
    "esrgan_jpeg": (95.0, 30.0),
    "esrgan_blur2": (0.2, 1.5),
    "esrgan_resize2": (1.0, 0.3),
    "esrgan_gaussian2": (1.0, 25.0),
    "esrgan_poisson2": (0.05, 2.5),
    "esrgan_jpeg2": (95.0, 30.0),
    "esrgan_sinc": (math.pi, math.pi / 3),
}
"""Range of each operator's parameter, from the mildest to the strongest value."""

ENLARGE: dict[str, tuple[float, float]] = {
    "esrgan_resize": (1.0, 1.5),
    "esrgan_resize2": (1.0, 1.2),
}
"""The same for sign -1 of the resizing operators."""


def fifths(limits: tuple[float, float]) -> tuple[float, float, float, float, float]:
    """The strong ends of the five equal parts of a range."""
    start, end = limits
    a, b, c, d, e = (round(start + (end - start) * part / 5, 6) for part in range(1, 6))
    return a, b, c, d, e


def _within(value: float, limits: tuple[float, float], rng: np.random.Generator) -> float:
    """A parameter in the fifth of the range that ends at `value`."""
    return float(value - rng.random() * (limits[1] - limits[0]) / 5)


def make_blur(name: str) -> Callable[[Image, float, np.random.Generator], Image]:
    """The blur of a round: `value` is the largest sigma_x of the level."""

    def blur(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
        """A random kernel of one of six families, or (one in ten) an ideal low-pass filter."""
        low, high = RANGES[name]
        sigma_x = _within(value, RANGES[name], rng)
        size = 2 * int(rng.integers(3, 11)) + 1
        if rng.random() < SINC:
            lowest = math.pi / 3 if size < 13 else math.pi / 5
            kernel = sinc_kernel(size, rng.uniform(lowest, math.pi))
        else:
            family = KERNELS[int(np.searchsorted(KERNEL_BOUNDS, rng.random(), side="right"))]
            sigma_y, angle = sigma_x, 0.0
            if family.endswith("aniso"):
                sigma_y, angle = rng.uniform(low, high), rng.uniform(-math.pi, math.pi)
            shape, plateau = 1.0, family.startswith("plateau")
            if plateau or family.startswith("generalised"):
                ends = (1.0, 2.0) if plateau else (0.5, 4.0)
                shape = (
                    rng.uniform(ends[0], 1.0) if rng.random() < 0.5 else rng.uniform(1.0, ends[1])
                )
            kernel = generalised_kernel(size, sigma_x, sigma_y, angle, shape, plateau)
        return correlate(image_HWC, kernel, cv2.BORDER_REFLECT_101)

    return blur


def make_resize(name: str) -> Callable[[Image, float, np.random.Generator], Image]:
    """The resizing of a round: `value` is the strongest scale of the level, above 1 for enlargement."""

    def resize(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
        """Scale and scale back, each by area, bilinear or bicubic interpolation at random."""
        scale = _within(value, ENLARGE[name] if value > 1 else RANGES[name], rng)
        methods = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
        there, back = (methods[int(i)] for i in rng.integers(0, 3, 2))
        height, width = image_HWC.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        out = cv2.resize(image_HWC, size, interpolation=there)
        return clip01(array(cv2.resize(out, (width, height), interpolation=back)))

    return resize


def make_gaussian(name: str) -> Callable[[Image, float, np.random.Generator], Image]:
    """The Gaussian noise of a round: `value` is the level's largest deviation in grey levels of 255."""

    def gaussian(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
        """Normal noise, with probability 0.4 the same in all channels."""
        sigma = _within(value, RANGES[name], rng) / 255
        planes = 1 if rng.random() < GREY else 3
        noise = normals((*image_HWC.shape[:2], planes), 1.0, rng) * np.float32(sigma)
        return clip01(image_HWC + noise)

    return gaussian


def make_poisson(name: str) -> Callable[[Image, float, np.random.Generator], Image]:
    """The Poisson noise of a round: `value` is the level's largest scale."""

    def poisson(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
        """Photon noise of the 8-bit image, times a scale; with probability 0.4 that of the grey image."""
        scale = _within(value, RANGES[name], rng)
        source = to_u8(image_HWC)
        if rng.random() < GREY:
            source = array(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY))[..., None]
        used = int(np.count_nonzero(np.bincount(source.ravel(), minlength=256)))
        photons = 2.0 ** math.ceil(math.log2(used))
        clean = source.astype(np.float64) / 255
        noise = (rng.poisson(clean * photons) / photons - clean) * scale
        return clip01(image_HWC + noise.astype(np.float32))

    return poisson


def make_jpeg(name: str) -> Callable[[Image, float, np.random.Generator], Image]:
    """The JPEG of a round: `value` is the level's lowest quality."""

    def compress(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
        """JPEG at a random quality."""
        return jpeg(image_HWC, round(_within(value, RANGES[name], rng)), rng)

    return compress


def sinc(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Ideal circular low-pass filter, 7 to 21 pixels wide; `value` is the level's lowest cut-off in radians a pixel."""
    cutoff = _within(value, RANGES["esrgan_sinc"], rng)
    return correlate(
        image_HWC, sinc_kernel(2 * int(rng.integers(3, 11)) + 1, cutoff), cv2.BORDER_REFLECT_101
    )


def generalised_kernel(
    size: int,
    sigma_x: float,
    sigma_y: float,
    angle: float,
    shape: float,
    plateau: bool = False,
) -> NDArray[np.float32]:
    """exp(-q^shape / 2), or 1 / (1 + q^shape) for a plateau, with q the squared Mahalanobis distance; sum 1."""
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    distance = ((along / sigma_x) ** 2 + (across / sigma_y) ** 2) ** shape
    kernel = 1 / (1 + distance) if plateau else np.exp(-0.5 * distance)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> NDArray[np.float32]:
    """cutoff J1(cutoff r) / (2 pi r), the circular low-pass filter cut to a square; sum 1."""
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    centre = radius == 0
    kernel = cutoff * j1(cutoff * radius) / (2 * math.pi * np.where(centre, 1, radius))
    kernel[centre] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).astype(np.float32)
