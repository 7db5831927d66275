"""Each formula against an independent float64 computation."""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.interpolate import CubicSpline
from skimage import color, filters

from dri_iqa.degradations import OPERATORS
from dri_iqa.degradations.blur import disk_kernel, line_kernel
from dri_iqa.degradations.colour import edge_mask
from dri_iqa.degradations.core import normal_table
from dri_iqa.degradations.spatial import _shift_tables
from dri_iqa.degradations.thresholds import optimal_levels
from tests.degradations.references import (
    FLAT,
    LEVELS,
    PHOTO,
    PHOTO64,
    cubic,
    disk,
    filtered,
    gaussian,
    line,
    run,
    to_lab,
    to_rgb,
    value,
)

# Blur


@pytest.mark.parametrize("level", LEVELS)
def test_gaussian_blur(level: int) -> None:
    expected = gaussian(PHOTO64, value("gaussian_blur", level))
    assert np.abs(run("gaussian_blur", level) - expected).max() < 1e-5


@pytest.mark.parametrize("level", LEVELS)
def test_lens_blur(level: int) -> None:
    radius = value("lens_blur", level)
    kernel = disk(radius)
    assert disk_kernel(radius).shape == kernel.shape
    assert np.abs(disk_kernel(radius) - kernel).max() < 0.01 * kernel.max()
    assert np.abs(run("lens_blur", level) - filtered(PHOTO64, kernel)).max() < 2e-3


@pytest.mark.parametrize("level", LEVELS)
def test_motion_blur(level: int) -> None:
    angle = np.random.default_rng(level).uniform(0, math.pi)
    expected = filtered(PHOTO64, line(value("motion_blur", level), angle))
    assert np.abs(run("motion_blur", level, seed=level) - expected).max() < 1e-5


def test_horizontal_motion_is_a_mean_of_a_row() -> None:
    assert np.allclose(line_kernel(5, 0.0), np.pad(np.full((1, 5), 0.2), 1))
    assert np.allclose(line_kernel(5, math.pi / 2), np.pad(np.full((5, 1), 0.2), 1))


# Colour


def test_the_lab_of_these_tests_is_scikit_images() -> None:
    assert np.abs(to_lab(PHOTO64) - color.rgb2lab(PHOTO64)).max() < 0.01
    assert np.abs(to_rgb(color.rgb2lab(PHOTO64)) - PHOTO64).max() < 1e-3


# Working in float32 and 16-bit tables leaves errors below a tenth of a grey level.
LAB_TOLERANCE = 4e-4


@pytest.mark.parametrize("level", LEVELS)
def test_saturation_lab(level: int) -> None:
    lab = to_lab(PHOTO64)
    lab[..., 1:] *= value("saturation_lab", level)
    assert np.abs(run("saturation_lab", level) - to_rgb(lab)).max() < 3 * LAB_TOLERANCE


@pytest.mark.parametrize("level", LEVELS)
def test_colour_diffusion(level: int) -> None:
    k = value("colour_diffusion", level)
    lab = to_lab(PHOTO64)
    lab[..., 1:] = k * gaussian(lab[..., 1:], 1.5 * k + 2)
    assert np.abs(run("colour_diffusion", level) - to_rgb(lab)).max() < 3 * LAB_TOLERANCE


def test_colour_diffusion_tells_red_from_blue() -> None:
    red = np.zeros((64, 64, 3), np.float32)
    red[..., 0] = 0.5
    out = run("colour_diffusion", 1, red)
    assert np.abs(out - red).max() < 2e-3, "a uniform colour is its own blur"


@pytest.mark.parametrize("level", LEVELS)
def test_high_sharpen(level: int) -> None:
    lab = to_lab(PHOTO64)
    lab[..., 0] += value("high_sharpen", level) * (lab[..., 0] - gaussian(lab[..., 0], 3.0))
    assert np.abs(run("high_sharpen", level) - to_rgb(lab)).max() < 5 * LAB_TOLERANCE


@pytest.mark.parametrize("level", LEVELS)
def test_brighten(level: int) -> None:
    curve = CubicSpline([0, 0.5, 1], [0, 0.5 + value("brighten", level) / 2, 1])
    lab = to_lab(PHOTO64)
    lab[..., 0] = 100 * np.clip(curve(lab[..., 0] / 100), 0, 1)
    expected = (2 * np.clip(curve(PHOTO64), 0, 1) + to_rgb(lab)) / 3
    assert np.abs(run("brighten", level) - expected).max() < LAB_TOLERANCE


@pytest.mark.parametrize("level", LEVELS)
def test_saturation_hsv(level: int) -> None:
    k = value("saturation_hsv", level)
    image = PHOTO[:32, :32]
    expected = np.empty(image.shape)
    for place in np.ndindex(32, 32):
        hue, saturation, bright = colorsys.rgb_to_hsv(*image[place].tolist())
        expected[place] = colorsys.hsv_to_rgb(hue, saturation * k, bright)
    assert np.abs(run("saturation_hsv", level, image) - np.clip(expected, 0, 1)).max() < 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_colour_shift(level: int) -> None:
    grey = PHOTO64 @ [0.2989, 0.5870, 0.1140]
    gy, gx = (ndimage.sobel(grey, axis=axis, mode="nearest") for axis in (0, 1))
    mask = gaussian(np.hypot(gx, gy), 4.0)
    mask = np.clip((mask - mask.min()) / (mask.max() - mask.min()), 0.1, 1)
    low, high = np.quantile(mask, [0.01, 0.99])
    mask = np.clip((mask - low) / (high - low), 0, 1)
    assert np.abs(edge_mask(PHOTO) - mask).max() < 1e-5

    rng = np.random.default_rng(level)
    direction = rng.uniform(0, 1, 2)
    signs = 2 * rng.integers(0, 2, 2) - 1
    dy, dx = np.rint(value("colour_shift", level) * direction / np.hypot(*direction)) * signs
    height, width = grey.shape
    rows = np.clip(np.arange(height) - int(dy), 0, height - 1)
    columns = np.clip(np.arange(width) - int(dx), 0, width - 1)
    green = PHOTO64[..., 1]
    expected = PHOTO64.copy()
    expected[..., 1] = mask * green[np.ix_(rows, columns)] + (1 - mask) * green
    assert np.abs(run("colour_shift", level, seed=level) - expected).max() < 1e-5


# Noise


def test_the_normal_table_is_normal() -> None:
    table = normal_table()
    assert abs(table.mean()) < 1e-15
    assert abs(table.var() - 1) < 1e-12
    assert abs((table**4).mean() - 3) < 5e-3
    assert stats.kstest(table, "norm").statistic < 1e-4
    assert np.all(np.diff(table) > 0)
    assert table[-1] > 4.2


@pytest.mark.parametrize("level", LEVELS)
def test_white_noise(level: int) -> None:
    noise = run("white_noise", level, FLAT) - 0.5
    assert abs(noise.var() / value("white_noise", level) - 1) < 0.02
    assert abs(noise.mean()) < 1e-3
    correlation = np.corrcoef(noise.reshape(-1, 3), rowvar=False) - np.eye(3)
    assert np.abs(correlation).max() < 0.02, "channels are independent"
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.01
    assert stats.kstest(noise.ravel() / noise.std(), "norm").statistic < 0.01


@pytest.mark.parametrize("level", LEVELS)
def test_white_noise_ycbcr(level: int) -> None:
    # scikit-image's rgb2ycbcr is the studio range, in units of 1.
    out = run("white_noise_ycbcr", level, FLAT)
    noise = (color.rgb2ycbcr(out) - color.rgb2ycbcr(FLAT.astype(np.float64))) / 255
    assert np.allclose(
        noise.reshape(-1, 3).var(axis=0) / value("white_noise_ycbcr", level), 1, atol=0.04
    )


def test_ycbcr_noise_is_clipped_between_the_conversions() -> None:
    white = np.ones((200, 200, 3), np.float32)
    out = run("white_noise_ycbcr", 5, white)
    luma = color.rgb2ycbcr(out)[..., 0] / 255
    assert luma.max() <= 235 / 255 + 1e-6
    # Y = 235 / 255 can rise by 20 / 255 only, so red, green and blue stay at 1 in about half of the pixels at most.
    assert 0.02 < (out.min(axis=2) == 1).mean() < 0.3


@pytest.mark.parametrize("level", LEVELS)
def test_impulse_noise(level: int) -> None:
    image = np.full((400, 400, 3), 0.5, np.float32)
    density = value("impulse_noise", level)
    out = run("impulse_noise", level, image)
    hit = out != 0.5
    count = hit.size * density
    assert abs(hit.sum() - count) < 4 * math.sqrt(count)
    assert set(np.unique(out[hit])) == {0.0, 1.0}
    assert abs((out == 1).sum() - (out == 0).sum()) < 4 * math.sqrt(count)
    # Channels are hit on their own: both of two channels with probability density squared.
    both = (hit[..., 0] & hit[..., 1]).sum()
    assert both <= 400 * 400 * density**2 + 4 * math.sqrt(400 * 400 * density**2) + 1
    # Every row and column gets its share, the last ones too.
    assert abs(hit[200:].sum() - hit[:200].sum()) < 4 * math.sqrt(count)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_multiplicative_noise(level: int, distribution: str) -> None:
    rng = np.random.default_rng(0)
    out = OPERATORS["multiplicative_noise"](FLAT, level, rng, distribution=distribution)
    factor = out.astype(np.float64) / 0.5 - 1
    variance = value("multiplicative_noise", level)
    assert abs(factor.var() / variance - 1) < 0.02
    law = (
        "norm" if distribution == "gaussian" else stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)).cdf
    )
    assert stats.kstest(factor.ravel() / math.sqrt(variance), law).statistic < 0.01
    black = OPERATORS["multiplicative_noise"](FLAT * 0, level, rng)
    assert not black.any()


# Brightness and contrast


@pytest.mark.parametrize("level", LEVELS)
def test_darken(level: int) -> None:
    curve = CubicSpline([0, 0.5, 1], [0, 0.5 - value("darken", level) / 2, 1])
    assert np.abs(run("darken", level) - np.clip(curve(PHOTO64), 0, 1)).max() < 1e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_mean_shift(level: int, sign: int) -> None:
    expected = np.clip(PHOTO64 + sign * 0.03 * level, 0, 1)
    assert np.abs(run("mean_shift", level, sign=sign) - expected).max() < 1e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_linear_contrast(level: int, sign: int) -> None:
    k = value("linear_contrast", level, sign)
    assert k * sign > 0
    curve = CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - k / 4, 0.5, 0.75 + k / 4, 1])
    assert (
        np.abs(run("linear_contrast", level, sign=sign) - np.clip(curve(PHOTO64), 0, 1)).max()
        < 1e-5
    )


@pytest.mark.parametrize("level", LEVELS)
def test_non_linear_contrast(level: int) -> None:
    expected = 0.5 + (PHOTO64 - 0.5) * 2 * value("non_linear_contrast", level)
    assert np.abs(run("non_linear_contrast", level) - expected).max() < 1e-6


# Spatial


@pytest.mark.parametrize("level", LEVELS)
def test_jitter(level: int) -> None:
    """Five warps by Keys' bicubic kernel, replaying the operator's random numbers."""
    rng = np.random.default_rng(level)
    shifts_table = _shift_tables(value("jitter", level))[0].astype(np.float64)
    height, width = PHOTO.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    image = PHOTO64
    for _ in range(5):
        words = rng.integers(
            0, 2**64 - 1, (2 * height * width + 3) // 4, dtype=np.uint64, endpoint=True
        )
        draws = np.stack(
            [(words >> np.uint64(16 * part)) & np.uint64(0xFFFF) for part in range(4)], axis=-1
        )
        index = draws.ravel()[: 2 * height * width].reshape(2, height, width)
        y, x = rows + shifts_table[index[0]], columns + shifts_table[index[1]]
        y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
        total = np.zeros_like(image)
        for j, i in itertools.product(range(-1, 3), repeat=2):
            weight = cubic(y - y0 - j, -0.5) * cubic(x - x0 - i, -0.5)
            source = image[np.clip(y0 + j, 0, height - 1), np.clip(x0 + i, 0, width - 1)]
            total += weight[..., None] * source
        image = np.clip(total, 0, 1)
    out = run("jitter", level, seed=level)
    effect = np.mean((image - PHOTO64) ** 2)
    assert np.mean((out - image) ** 2) < 2e-3 * effect


@pytest.mark.parametrize("level", LEVELS)
def test_jitter_shifts_are_normal(level: int) -> None:
    deviation = value("jitter", level)
    shifts, smooth = (table.astype(np.float64) for table in _shift_tables(deviation))
    assert abs(shifts.var() / deviation**2 - 1) < 2e-3
    assert abs(shifts.mean()) < 1e-12
    assert np.array_equal(shifts * 32, np.rint(shifts * 32))
    assert np.array_equal(np.floor(shifts), np.floor(smooth))


def test_non_eccentricity_patch_moves_patches_a_little() -> None:
    height, width = 192, 256
    y, x = np.mgrid[:height, :width]
    image = np.stack([y / 255, x / 255, np.zeros((height, width))], axis=-1).astype(np.float32)
    counts = []
    for level in LEVELS:
        out = run("non_eccentricity_patch", level, image)
        moved = np.abs(np.rint(out[..., :2] * 255) - np.stack([y, x], axis=-1)).max(axis=2)
        counts.append(int((moved > 0).sum()))
        # A patch moves by at most 8 pixels, and may be moved again where patches overlap.
        assert 0 < moved.max() <= 8 * 4
        assert np.median(moved[moved > 0]) <= 8
        # One quarter of the reference area: 5, 10 ... 25 patches.
        assert counts[-1] <= 5 * level * 256
        assert not moved[:8].any(), "patches stay away from the border"
        assert not moved[:, -8:].any()
    assert counts == sorted(counts)


@pytest.mark.parametrize("level", LEVELS)
def test_pixelate(level: int) -> None:
    zoom = 0.95 - value("pixelate", level) ** 0.6
    height, width = PHOTO.shape[:2]
    index = []
    for side in (height, width):
        small = math.ceil(zoom * side)
        to_small = np.floor((np.arange(side) + 0.5) * small / side).astype(int)
        index.append(np.floor((to_small + 0.5) * side / small + 1e-9).astype(int))
    expected = PHOTO64[np.ix_(*index)]
    assert np.abs(run("pixelate", level) - expected).max() < 1e-6


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_optimal_levels_against_every_partition(levels: int) -> None:
    rng = np.random.default_rng(levels)
    histogram = np.zeros(256, np.int64)
    bins = np.sort(rng.choice(256, 14, replace=False))
    histogram[bins] = rng.integers(1, 100, 14)
    best = math.inf
    for cuts in itertools.combinations(range(1, 14), levels - 1):
        error = 0.0
        for part in np.split(np.arange(14), cuts):
            mean = float(np.average(bins[part], weights=histogram[bins[part]]))
            error += float(np.sum(histogram[bins[part]] * (bins[part] - mean) ** 2))
        best = min(best, error)
    table = optimal_levels(histogram, levels).astype(np.float64) * 255
    assert len(set(table[bins])) == levels
    assert float((histogram * (np.arange(256) - table) ** 2)[bins].sum()) == pytest.approx(
        best, rel=1e-4
    )


def test_quantisation_agrees_with_multi_level_otsu() -> None:
    codes = np.rint(PHOTO * 255).astype(np.uint8)
    cuts = filters.threshold_multiotsu(codes.reshape(100, 360), classes=4)
    classes = np.digitize(codes, cuts, right=True)
    table = optimal_levels(np.bincount(codes.ravel(), minlength=256), 4)
    ours = np.unique(table[codes], return_inverse=True)[1].reshape(codes.shape)
    assert np.array_equal(ours, classes)


@pytest.mark.parametrize("level", LEVELS)
def test_quantisation(level: int) -> None:
    levels = int(value("quantisation", level))
    out = run("quantisation", level)
    assert len(np.unique(out)) == levels
    codes = np.rint(PHOTO64 * 255)
    for one in np.unique(out):
        assert codes[out == one].mean() / 255 == pytest.approx(one, abs=1e-6)
    few = np.repeat(np.array([0.2, 0.6], np.float32), 16 * 32 * 3).reshape(32, 32, 3)
    assert np.abs(run("quantisation", level, few) - few).max() < 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_colour_block(level: int) -> None:
    image = np.full((384, 512, 3), 0.5, np.float32)
    out = run("colour_block", level, image, seed=3)
    colours = np.unique(out.reshape(-1, 3), axis=0)
    colours = colours[~(colours == 0.5).all(axis=1)]
    assert len(colours) <= value("colour_block", level)
    for one in colours:
        rows, columns = np.nonzero((out == one).all(axis=2))
        assert rows.max() - rows.min() < 32
        assert columns.max() - columns.min() < 32
    assert (out != 0.5).any(axis=2).sum() <= value("colour_block", level) * 32 * 32
    small = run("colour_block", level, image[:200, :200], seed=3)
    assert (small != 0.5).any(axis=2).sum() <= max(
        1, round(value("colour_block", level) * 0.2035)
    ) * 32 * 32


def test_non_eccentricity_patch() -> None:
    height, width = PHOTO.shape[:2]
    for level in LEVELS:
        rng = np.random.default_rng(level)
        count = max(1, round(value("non_eccentricity_patch", level) * height * width / (512 * 384)))
        tops = rng.integers(16, height - 32, count, endpoint=True)
        lefts = rng.integers(16, width - 32, count, endpoint=True)
        moves = np.rint((rng.uniform(0, 1, (2, count)) - 0.5) * 16).astype(int)
        expected = PHOTO64.copy()
        for y, x, dy, dx in zip(tops, lefts, *moves, strict=True):
            block = expected[y : y + 16, x : x + 16].copy()
            expected[y + dy : y + dy + 16, x + dx : x + dx + 16] = block
        assert np.array_equal(run("non_eccentricity_patch", level, seed=level), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_colour_block_replayed(level: int) -> None:
    image = np.full((384, 512, 3), 0.5, np.float32)
    rng = np.random.default_rng(level)
    count = int(value("colour_block", level))
    tops = rng.integers(0, 384 - 32, count, endpoint=True)
    lefts = rng.integers(0, 512 - 32, count, endpoint=True)
    colours = rng.random((count, 3), dtype=np.float32)
    expected = image.astype(np.float64)
    for y, x, colour in zip(tops, lefts, colours, strict=True):
        expected[y : y + 32, x : x + 32] = colour
    assert np.array_equal(run("colour_block", level, image, seed=level), expected)
