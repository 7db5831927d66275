"""Formulas of the four operators outside the default set against independent float64 computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from tests.degradations.references import (
    LEVELS,
    PHOTO,
    PHOTO64,
    gaussian,
    normal_draws,
    resized,
    run,
    value,
)


@pytest.mark.parametrize("level", LEVELS)
def test_denoise(level: int) -> None:
    """The operator's own noise (tested above), through filters written here."""
    used = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        with_gaussian = bool(rng.integers(0, 2))
        deviation = math.sqrt(value("denoise", level))
        noisy = np.clip(PHOTO64 + deviation * normal_draws(PHOTO.shape, rng), 0, 1)
        if with_gaussian:
            expected = gaussian(noisy, 3.0)
        else:
            expected = ndimage.uniform_filter(noisy, (5, 5, 0), mode="nearest")
        assert np.abs(run("denoise", level, seed=seed) - expected).max() < 1e-5
        used.add(with_gaussian)
    assert used == {True, False}


@pytest.mark.parametrize("level", LEVELS)
def test_down_up(level: int) -> None:
    factor, seen = value("down_up", level), set()
    height, width = PHOTO.shape[:2]
    for seed in range(12):
        kernel = ("cubic", "linear", "nearest", "lanczos")[
            int(np.random.default_rng(seed).integers(4))
        ]
        small = (round(height / factor), round(width / factor))
        out = resized(resized(PHOTO64, small, kernel), (height, width), kernel)
        assert np.abs(run("down_up", level, seed=seed) - np.clip(out, 0, 1)).max() < 2e-5, kernel
        seen.add(kernel)
    assert len(seen) == 4


# CDF 9/7 analysis filters (Cohen, Daubechies, Feauveau 1992), from the centre outwards, of gain 1 and 2.
LOW = [0.6029490182363579, 0.2668641184428723, -0.0782232665289879]
LOW += [-0.0168641184428750, 0.0267487574108098]
HIGH = [1.1150870524569994, -0.5912717631142470, -0.0575435262284996, 0.0912717631142495]


def analysis(side: int) -> np.ndarray:
    """(side, side) matrix of one level along one axis, low band first, mirrored about the end samples."""
    rows = []
    for taps, start, gain in ((LOW, 0, math.sqrt(2)), (HIGH, 1, 1 / math.sqrt(2))):
        for centre in range(start, side, 2):
            row = np.zeros(side)
            for offset in range(1 - len(taps), len(taps)):
                place = abs(centre + offset)
                while not 0 <= place < side:
                    place = abs(2 * (side - 1) - place)
                row[place] += gain * taps[abs(offset)]
            rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("size", [(96, 130), (33, 97)])
@pytest.mark.parametrize("level", LEVELS)
def test_fast_fading(level: int, size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(data.astronaut()[: size[0], : size[1]] / np.float32(255))
    luma = np.array([0.299, 0.587, 0.114])
    to_ycc = np.stack(
        [luma, (np.eye(3)[2] - luma) / (2 * (1 - 0.114)), (np.eye(3)[0] - luma) / (2 * (1 - 0.299))]
    )
    planes = np.moveaxis(image.astype(np.float64) @ to_ycc.T, -1, 0).copy()
    depth = min(5, int(math.log2(min(size))) - 1)
    sides = [size]
    for _ in range(depth):
        height, width = sides[-1]
        part = analysis(height) @ planes[:, :height, :width] @ analysis(width).T
        planes[:, :height, :width] = part
        sides.append((-(-height // 2), -(-width // 2)))
    boxes = [(0, sides[-1][0], 0, sides[-1][1])]
    for (tall, wide), (low_y, low_x) in zip(sides[-2::-1], sides[:0:-1], strict=True):
        boxes += [(0, low_y, low_x, wide), (low_y, tall, 0, low_x), (low_y, tall, low_x, wide)]

    rng = np.random.default_rng(level)
    fade = 1 - math.exp(-20 / 10 ** (value("fast_fading", level) / 10))
    bad, faded = rng.random() < fade, 0
    for band, (top, bottom, left, right) in enumerate(boxes):
        for plane in planes:
            for y, x in itertools.product(range(top, bottom, 64), range(left, right, 64)):
                if bad:
                    block = plane[y : min(y + 64, bottom), x : min(x + 64, right)]
                    keep, lost = rng.integers(2, 5), rng.random() < 0.25
                    step = 2.0 ** (math.floor(math.log2(np.abs(block).max())) + 1 - keep)
                    if lost and band > 0:
                        block[...] = 0
                    else:
                        whole = np.floor(np.abs(block) / step)
                        block[...] = np.sign(block) * np.where(whole > 0, (whole + 0.5) * step, 0)
                    faded += 1
                bad = rng.random() < (0.75 if bad else 0.25 * fade / (1 - fade))
    for height, width in sides[-2::-1]:
        back = np.linalg.inv(analysis(height)), np.linalg.inv(analysis(width)).T
        planes[:, :height, :width] = back[0] @ planes[:, :height, :width] @ back[1]
    expected = np.clip(np.moveaxis(planes, 0, -1) @ np.linalg.inv(to_ycc).T, 0, 1)
    difference = np.abs(run("fast_fading", level, image, seed=level) - expected)
    # A coefficient on the edge between two steps may fall on either side.
    assert np.mean(difference < 1e-4) > 0.97
    assert difference.max() < 0.2
    assert faded or level < 4
