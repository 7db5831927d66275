"""Formulas of the sets `qpt` and `realesrgan` against float64 computations."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import integrate, ndimage, special
from skimage import data

from dri_iqa.degradations import OPERATORS
from dri_iqa.degradations.realesrgan import generalised_kernel, sinc_kernel
from tests.degradations.test_operator_references import gaussian
from tests.degradations.test_optional_operators import resampling

PHOTO = (data.astronaut()[40:120, 160:260] / 255).astype(np.float32)
PHOTO64 = PHOTO.astype(np.float64)
GREY = np.array([0.299, 0.587, 0.114])
FLAT = np.full((300, 300, 3), 0.5, np.float32)
LEVELS = (1, 2, 3, 4, 5)


def run(
    name: str, level: int, image: np.ndarray = PHOTO, seed: int = 0, sign: int = 1
) -> np.ndarray:
    out = OPERATORS[name](image, level, np.random.default_rng(seed), sign=sign)
    return out.astype(np.float64)


def signed(name: str) -> tuple[int, ...]:
    return (1, -1) if OPERATORS[name].signed else (1,)


def by_formula(name: str, v: float) -> np.ndarray:
    x = PHOTO64
    grey = (x @ GREY)[..., None]
    if name == "qpt_sharpen":
        weights = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
        smooth = x
        for axis in (0, 1):
            smooth = ndimage.correlate1d(smooth, weights / weights.sum(), axis, mode="nearest")
        return x + v * (x - smooth)
    if name == "qpt_zoom_blur":
        total, count = x.copy(), round((v - 1) / 0.01)
        for step in range(count):
            inverse = np.eye(2) / (1 + 0.01 * step)
            centre = (np.array(x.shape[:2]) - 1) / 2
            total += np.stack(
                [
                    ndimage.affine_transform(
                        x[..., c], inverse, centre - inverse @ centre, order=1, mode="nearest"
                    )
                    for c in range(3)
                ],
                axis=-1,
            )
        return total / (count + 1)
    return {
        "qpt_gaussian_blur": lambda: gaussian(x, v),
        "qpt_brightness": lambda: v * x,
        "qpt_contrast": lambda: v * x + (1 - v) * grey.mean(),
        "qpt_gamma": lambda: x**v,
        "qpt_saturation": lambda: grey + v * (x - grey),
    }[name]()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("qpt_sharpen", 1e-5),
        ("qpt_gaussian_blur", 1e-5),
        ("qpt_brightness", 1e-6),
        ("qpt_contrast", 1e-5),
        ("qpt_gamma", 1e-5),
        ("qpt_saturation", 1e-5),
        ("qpt_zoom_blur", 0.02),  # OpenCV interpolates at 1/32 pixel
    ],
)
def test_deterministic_formulas(name: str, tolerance: float) -> None:
    for level in LEVELS:
        for sign in signed(name):
            value = OPERATORS[name].value(level, sign=sign)
            expected = np.clip(by_formula(name, value), 0, 1)
            difference = np.abs(run(name, level, sign=sign) - expected)
            assert difference.max() < tolerance, (level, sign)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
def test_hue(level: int, sign: int) -> None:
    image = PHOTO[:24, :24]
    expected = np.empty(image.shape)
    for place in np.ndindex(24, 24):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place].tolist())
        expected[place] = colorsys.hsv_to_rgb((hue + sign * 0.01 * level) % 1, saturation, value)
    # OpenCV keeps four digits of the hue.
    padded = np.tile(image, (2, 2, 1))
    assert np.abs(run("qpt_hue", level, padded, sign=sign)[:24, :24] - expected).max() < 2e-4


@pytest.mark.parametrize("level", LEVELS)
def test_median_and_resizing(level: int) -> None:
    side = int(OPERATORS["qpt_median_blur"].value(level))
    codes = np.rint(PHOTO64 * 255)
    expected = ndimage.median_filter(codes, (side, side, 1), mode="nearest") / 255
    assert np.abs(run("qpt_median_blur", level) - expected).max() < 1e-6
    image = PHOTO[:79, :97]
    for name, kernel in (("nearest", "nearest"), ("bilinear", "linear"), ("bicubic", "cubic")):
        factor, out = OPERATORS[f"qpt_{name}"].value(level), image.astype(np.float64)
        for axis, length in enumerate(image.shape[:2]):
            small = round(length / factor)
            both = resampling(length, small, kernel) @ resampling(small, length, kernel)
            out = np.moveaxis(np.tensordot(both, out, (1, axis)), 0, axis)
        difference = np.abs(run(f"qpt_{name}", level, image) - np.clip(out, 0, 1))
        # A middle row or column can be as near to one pixel as to the next.
        assert np.mean(difference < 1e-5) > (0.95 if name == "nearest" else 0.99999), name


@pytest.mark.parametrize("level", LEVELS)
def test_noises_have_the_stated_spread(level: int) -> None:
    value = OPERATORS["qpt_colour_noise"].value(level) / 255
    noise = run("qpt_colour_noise", level, FLAT) - 0.5
    assert abs(noise.std() / value - 1) < 0.02
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    noise = run("qpt_grey_noise", level, FLAT) - 0.5
    assert abs(noise.std() / value - 1) < 0.02
    assert np.array_equal(noise[..., 0], noise[..., 1])
    factor = run("qpt_multiplicative_noise", level, FLAT) / 0.5 - 1
    width = OPERATORS["qpt_multiplicative_noise"].value(level)
    assert np.abs(factor).max() <= width + 1e-6
    assert abs(factor.var() / (width**2 / 3) - 1) < 0.02
    high = OPERATORS["esrgan_gaussian"].value(level)
    spreads = [255 * (run("esrgan_gaussian", level, FLAT, seed) - 0.5).std() for seed in range(20)]
    assert high - 29 / 5 - 0.2 < min(spreads) < max(spreads) < high + 0.2


@pytest.mark.parametrize("level", LEVELS)
def test_jpegs_are_pillows(level: int) -> None:
    codes = np.rint(PHOTO * 255).astype(np.uint8)

    def pillow(quality: int) -> np.ndarray:
        target = io.BytesIO()
        Image.fromarray(codes).save(target, "JPEG", quality=quality, subsampling="4:2:0")
        return np.array(Image.open(target)) / 255

    quality = int(OPERATORS["qpt_jpeg"].value(level))
    assert np.abs(run("qpt_jpeg", level) - pillow(quality)).max() < 1e-6
    low = int(OPERATORS["esrgan_jpeg"].value(level))
    out = run("esrgan_jpeg", level, seed=level)
    assert any(np.abs(out - pillow(q)).max() < 1e-6 for q in range(low, low + 14))


def test_kernels_are_the_published_ones() -> None:
    size, sx, sy, angle = 15, 2.0, 0.7, 0.4
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sx**2, sy**2]) @ turn.T)
    for shape, plateau in ((1.0, False), (2.5, False), (1.4, True)):
        expected = np.empty((size, size))
        for row, column in np.ndindex(size, size):
            p = np.array([column - 7.0, row - 7.0])
            q = (p @ inverse @ p) ** shape
            expected[row, column] = 1 / (1 + q) if plateau else math.exp(-q / 2)
        kernel = generalised_kernel(size, sx, sy, angle, shape, plateau)
        assert np.abs(kernel - expected / expected.sum()).max() < 1e-6
    # The inverse Fourier transform of a disk of radius 1.2, by integration along the radius.
    sinc = sinc_kernel(9, 1.2).astype(np.float64)
    for x in (0, 1, 3):
        value = integrate.quad(lambda w, x=x: w * special.j0(w * x), 0, 1.2)[0]
        centre = integrate.quad(lambda w: w, 0, 1.2)[0]
        assert sinc[4, 4 + x] / sinc[4, 4] == pytest.approx(value / centre, abs=1e-6)
