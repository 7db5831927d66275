"""What the tests of formulas share: a photograph, and filters, resampling and colour spaces in float64."""

from __future__ import annotations

import math

import numpy as np
from scipy import integrate, ndimage, special
from skimage import data

from dri_iqa.degradations import OPERATORS
from dri_iqa.degradations.core import normal_table

PHOTO = (data.astronaut()[40:140, 160:280] / 255).astype(np.float32)
PHOTO64 = PHOTO.astype(np.float64)
FLAT = np.full((300, 300, 3), 0.5, np.float32)
LEVELS = (1, 2, 3, 4, 5)


def run(
    name: str, level: int, image: np.ndarray = PHOTO, seed: int = 0, sign: int = 1
) -> np.ndarray:
    out = OPERATORS[name](image, level, np.random.default_rng(seed), sign=sign)
    return out.astype(np.float64)


def value(name: str, level: int, sign: int = 1) -> float:
    return OPERATORS[name].value(level, sign=sign)


def normal_draws(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Standard normal noise as the operators draw it: four 16-bit numbers from a 64-bit one, looked up."""
    count = math.prod(shape)
    words = rng.integers(0, 2**64 - 1, (count + 3) // 4, dtype=np.uint64, endpoint=True)
    index = np.stack([words >> np.uint64(16 * part) for part in range(4)], axis=-1).ravel()
    return normal_table()[index[:count] & np.uint64(0xFFFF)].reshape(shape)


# Filters


def gaussian(planes: np.ndarray, sigma: float) -> np.ndarray:
    half = math.ceil(2 * sigma)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        planes = ndimage.correlate1d(planes, weights, axis=axis, mode="nearest")
    return planes


def filtered(image: np.ndarray, kernel: np.ndarray, mode: str = "nearest") -> np.ndarray:
    planes = [ndimage.correlate(image[..., c], kernel, mode=mode) for c in range(3)]
    return np.stack(planes, axis=-1)


def disk(radius: float) -> np.ndarray:
    """Area of each pixel inside the disk, by integrating chord lengths over 400 lines a pixel."""
    half, fine = math.ceil(radius - 0.5), 400
    y = (np.arange((2 * half + 1) * fine) + 0.5) / fine - 0.5 - half
    chord = np.sqrt(np.maximum(radius**2 - y**2, 0))
    edges = np.arange(2 * half + 2) - 0.5 - half
    left = np.clip(edges[None, :-1], -chord[:, None], chord[:, None])
    right = np.clip(edges[None, 1:], -chord[:, None], chord[:, None])
    kernel = (right - left).reshape(2 * half + 1, fine, -1).mean(axis=1)
    return kernel / kernel.sum()


def line(length: float, angle: float) -> np.ndarray:
    """1 minus each pixel's distance to the segment."""
    reach = (length - 1) / 2
    half = math.ceil(reach) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    (ax, ay), (bx, by) = (
        (s * reach * math.cos(angle), -s * reach * math.sin(angle)) for s in (-1, 1)
    )
    for row, column in np.ndindex(kernel.shape):
        x, y = column - half, row - half
        t = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        t = min(max(t, 0), 1)
        kernel[row, column] = max(0, 1 - math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
    return kernel / kernel.sum()


def bell(
    size: int, sx: float, sy: float, angle: float, shape: float, plateau: bool = False
) -> np.ndarray:
    """A generalised Gaussian or plateau, from the inverse of its covariance matrix."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sx**2, sy**2]) @ turn.T)
    kernel = np.empty((size, size))
    for row, column in np.ndindex(size, size):
        p = np.array([column, row]) - (size - 1) / 2
        q = (p @ inverse @ p) ** shape
        kernel[row, column] = 1 / (1 + q) if plateau else math.exp(-q / 2)
    return kernel / kernel.sum()


def low_pass(size: int, cutoff: float) -> np.ndarray:
    """The inverse Fourier transform of a disk, by integration along the radius."""
    axis = np.arange(size) - (size - 1) // 2
    squares = axis[:, None] ** 2 + axis[None, :] ** 2
    kernel = np.empty((size, size))
    for square in np.unique(squares):
        r = math.sqrt(square)
        kernel[squares == square] = integrate.quad(
            lambda w, r=r: w * special.j0(w * r), 0, cutoff, limit=200
        )[0]
    return kernel / kernel.sum()


# Resampling


def resampling(count: int, source: int, kernel: str) -> np.ndarray:
    """(count, source) weights of a resize without low-pass filter (but `area`); pixel centres lie at i + 1/2."""
    weights = np.zeros((count, source))
    for i in range(count):
        x = (i + 0.5) * source / count - 0.5
        first = math.floor(x)
        taps = {
            "nearest": lambda x, f, i=i: [(math.floor((i + 0.5) * source / count + 1e-9), 1.0)],
            "linear": lambda x, f: [(f + j, 1 - abs(x - f - j)) for j in (0, 1)],
            "cubic": lambda x, f: [(f + j, float(cubic(x - f - j, -0.75))) for j in range(-1, 3)],
            "lanczos": lambda x, f: [
                (f + j, np.sinc(x - f - j) * np.sinc((x - f - j) / 4)) for j in range(-3, 5)
            ],
            "area": lambda x, f, i=i: _area(i, count, source),
        }[kernel](x, first)
        total = sum(weight for _, weight in taps)
        for place, weight in taps:
            weights[i, min(max(place, 0), source - 1)] += weight / total
    return weights


def _area(i: int, count: int, source: int) -> list[tuple[int, float]]:
    """Overlaps of the pixel with the source's; enlarging, OpenCV blends only pixels that straddle a border, and its
    rounding decides where two borders coincide.
    """
    if count < source:
        left, right = i * source / count, (i + 1) * source / count
        inside = range(math.floor(left + 1e-9), math.ceil(right - 1e-9))
        return [(j, min(right, j + 1) - max(left, j)) for j in inside]
    enlargement = count / source
    first = math.floor(i * (1 / enlargement))
    beyond = float(np.float32(max(0.0, (i + 1) - (first + 1) * enlargement))) % 1.0
    return [(first, 1 - beyond), (first + 1, beyond)]


def cubic(distance, a: float):
    """Keys' kernel; a = -0.75 in OpenCV's resize, -0.5 in his paper."""
    s = np.abs(distance)
    near = (a + 2) * s**3 - (a + 3) * s**2 + 1
    far = a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
    return np.where(s <= 1, near, np.where(s < 2, far, 0))


def resized(image: np.ndarray, size: tuple[int, int], kernel: str) -> np.ndarray:
    for axis, side in enumerate(size):
        weights = resampling(side, image.shape[axis], kernel)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


# CIELAB

_M = np.array(
    [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_W = np.array([0.95047, 1, 1.08883])


def to_lab(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = linear @ _M.T / _W
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    fx, fy, fz = np.moveaxis(f, -1, 0)
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def to_rgb(lab: np.ndarray) -> np.ndarray:
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    t = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip((t * _W) @ np.linalg.inv(_M).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
