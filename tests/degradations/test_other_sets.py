"""Formulas of the sets `qpt` and `realesrgan` against float64 computations."""

from __future__ import annotations

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dri_iqa.degradations import OPERATORS
from tests.degradations.references import (
    FLAT,
    LEVELS,
    PHOTO,
    PHOTO64,
    bell,
    disk,
    filtered,
    gaussian,
    line,
    low_pass,
    normal_draws,
    resized,
    run,
    value,
)

GREY = np.array([0.299, 0.587, 0.114])


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
        factor, (height, width) = value(f"qpt_{name}", level), image.shape[:2]
        small = (round(height / factor), round(width / factor))
        out = resized(resized(image.astype(np.float64), small, kernel), (height, width), kernel)
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


# Operators that draw their parameters; the numbers are drawn here in the same order.


def test_motion_blur_of_qpt() -> None:
    for level in LEVELS:
        rng, strength = np.random.default_rng(level), value("qpt_motion_blur", level)
        length = 1 + 6 * rng.uniform(strength - 0.2, strength)
        expected = filtered(PHOTO64, line(length, rng.uniform(0, math.pi)))
        assert np.abs(run("qpt_motion_blur", level, seed=level) - expected).max() < 1e-5


def test_defocus() -> None:
    for level in LEVELS:
        expected = filtered(PHOTO64, disk(value("qpt_defocus", level)))
        # The operator counts 64 x 64 points of a pixel for the share of its area inside the disk.
        assert np.abs(run("qpt_defocus", level) - expected).max() < 2e-3


def test_glass_blur() -> None:
    height, width = PHOTO.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    for level in LEVELS:
        reach = int(value("qpt_glass_blur", level))
        sigma = (0.1, 0.3, 0.5, 0.7, 0.9)[reach - 1]
        moves = np.random.default_rng(level).integers(-reach, reach + 1, (2, height, width))
        y, x = np.clip(rows + moves[0], 0, height - 1), np.clip(columns + moves[1], 0, width - 1)
        expected = gaussian(gaussian(PHOTO64, sigma)[y, x], sigma)
        assert np.abs(run("qpt_glass_blur", level, seed=level) - expected).max() < 1e-5


def test_generalised_blur() -> None:
    for level in LEVELS:
        rng, sigma = np.random.default_rng(level), value("qpt_generalised_blur", level)
        sigma_y, angle, shape = (rng.uniform(*ends) for ends in ((0.5, 1), (0, math.pi), (0.5, 4)))
        expected = filtered(PHOTO64, bell(7, sigma, sigma * sigma_y, angle, shape))
        assert np.abs(run("qpt_generalised_blur", level, seed=level) - expected).max() < 1e-5


def test_iso_noise() -> None:
    image = PHOTO[:40, :40]
    hls = np.array([colorsys.rgb_to_hls(*pixel) for pixel in image.reshape(-1, 3).tolist()])
    for level in LEVELS:
        rng, strength = np.random.default_rng(level), value("qpt_iso_noise", level)
        turns = (0.01 + 0.005 * (level - 1)) * strength * normal_draws((1600,), rng)
        photons = rng.poisson(255 * strength * hls[:, 1].std(), 1600)
        hue = (hls[:, 0] + turns) % 1
        light = np.minimum(hls[:, 1] + photons / 255 * (1 - hls[:, 1]), 1)
        expected = [colorsys.hls_to_rgb(*one) for one in zip(hue, light, hls[:, 2], strict=True)]
        difference = np.abs(
            run("qpt_iso_noise", level, image, seed=level).reshape(-1, 3) - expected
        )
        assert difference.max() < 1e-4  # degrees of hue in float32


ROUNDS = ("", "2")


def within(
    name: str, level: int, ends: tuple[float, float], rng: np.random.Generator, sign: int = 1
) -> float:
    """Uniform in the level's fifth of the published range."""
    mild, strong = ends
    fifth = (strong - mild) / 5
    assert value(name, level, sign) == pytest.approx(mild + level * fifth)
    return mild + fifth * (level - rng.random())


def test_blur_of_realesrgan() -> None:
    families = ["iso", "aniso", "bell_iso", "bell_aniso", "plateau_iso", "plateau_aniso"]
    bounds, seen = np.cumsum([0.45, 0.25, 0.12, 0.03, 0.12]), set()
    for again, level, seed in itertools.product(ROUNDS, LEVELS, range(8)):
        seed += 8 * level
        rng, strongest = np.random.default_rng(seed), 1.5 if again else 3.0
        name = f"esrgan_blur{again}"
        sigma = within(name, level, (0.2, strongest), rng)
        size = 7 + 2 * int(rng.integers(8))
        if rng.random() < 0.1:
            family = "sinc"
            kernel = low_pass(size, rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
        else:
            family = families[int((bounds <= rng.random()).sum())]
            sigma_y, angle, shape = sigma, 0.0, 1.0
            if "aniso" in family:
                sigma_y, angle = rng.uniform(0.2, strongest), rng.uniform(-math.pi, math.pi)
            if "_" in family:
                mild, strong = (1.0, 2.0) if "plateau" in family else (0.5, 4.0)
                shape = rng.uniform(mild, 1) if rng.random() < 0.5 else rng.uniform(1, strong)
            kernel = bell(size, sigma, sigma_y, angle, shape, "plateau" in family)
        expected = np.clip(filtered(PHOTO64, kernel, "mirror"), 0, 1)
        assert np.abs(run(name, level, seed=seed) - expected).max() < 1e-5, (family, size)
        seen.add(family)
    assert seen >= {"iso", "aniso", "bell_iso", "plateau_iso", "sinc"}


def test_final_low_pass_of_realesrgan() -> None:
    for level in LEVELS:
        rng = np.random.default_rng(level)
        cutoff = within("esrgan_sinc", level, (math.pi, math.pi / 3), rng)
        kernel = low_pass(7 + 2 * int(rng.integers(8)), cutoff)
        expected = np.clip(filtered(PHOTO64, kernel, "mirror"), 0, 1)
        assert np.abs(run("esrgan_sinc", level, seed=level) - expected).max() < 1e-5


@pytest.mark.parametrize("sign", [1, -1])
def test_resizing_of_realesrgan(sign: int) -> None:
    seen, (height, width) = set(), PHOTO.shape[:2]
    ranges = {"": {1: (1.0, 0.15), -1: (1.0, 1.5)}, "2": {1: (1.0, 0.3), -1: (1.0, 1.2)}}
    for again, level, seed in itertools.product(ROUNDS, LEVELS, range(5)):
        rng, name = np.random.default_rng(seed), f"esrgan_resize{again}"
        scale = within(name, level, ranges[again][sign], rng, sign)
        there, back = (("area", "linear", "cubic")[int(i)] for i in rng.integers(0, 3, 2))
        out = resized(PHOTO64, (round(height * scale), round(width * scale)), there)
        expected = np.clip(resized(out, (height, width), back), 0, 1)
        difference = np.abs(run(name, level, seed=seed, sign=sign) - expected)
        assert difference.max() < 2e-5, (there, back, scale)
        seen |= {("there", there), ("back", back)}
    assert len(seen) == 6


def test_noises_of_realesrgan() -> None:
    luma = np.array([9798, 19235, 3735]) / 2**15  # BT.601 as OpenCV rounds it for 8 bits
    for again, level, seed in itertools.product(ROUNDS, LEVELS, range(4)):
        rng = np.random.default_rng(seed)
        name = f"esrgan_gaussian{again}"
        deviation = within(name, level, (1.0, 25.0 if again else 30.0), rng) / 255
        planes = 1 if rng.random() < 0.4 else 3
        noise = deviation * normal_draws((*PHOTO.shape[:2], planes), rng)
        difference = np.abs(run(name, level, seed=seed) - np.clip(PHOTO64 + noise, 0, 1))
        assert difference.max() < 1e-5

        rng = np.random.default_rng(seed)
        name = f"esrgan_poisson{again}"
        scale = within(name, level, (0.05, 2.5 if again else 3.0), rng)
        codes = np.rint(PHOTO64 * 255)
        if rng.random() < 0.4:
            codes = np.floor(codes @ luma + 0.5)[..., None]
        photons = 2 ** math.ceil(math.log2(len(np.unique(codes))))
        clean = codes / 255
        noise = scale * (rng.poisson(clean * photons) / photons - clean)
        difference = np.abs(run(name, level, seed=seed) - np.clip(PHOTO64 + noise, 0, 1))
        assert difference.max() < 1e-5


def pillow_jpeg(quality: int) -> np.ndarray:
    target = io.BytesIO()
    codes = np.rint(PHOTO * 255).astype(np.uint8)
    Image.fromarray(codes).save(target, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(target)) / 255


@pytest.mark.parametrize("level", LEVELS)
def test_jpegs_are_pillows(level: int) -> None:
    expected = pillow_jpeg(int(value("qpt_jpeg", level)))
    assert np.abs(run("qpt_jpeg", level) - expected).max() < 1e-6
    for again, seed in itertools.product(ROUNDS, range(3)):
        name = f"esrgan_jpeg{again}"
        quality = within(name, level, (95.0, 30.0), np.random.default_rng(seed))
        expected = pillow_jpeg(round(quality))
        assert np.abs(run(name, level, seed=seed) - expected).max() < 1e-6
