"""On photographs, each operator's five levels come out in the order of severity by a full-reference measure."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from dri_iqa.degradations import GROUPS, OPERATORS

FOLDER = Path(os.environ.get("DRI_IQA_SHARED", "")) / "data" / "pristine"
COUNT, SIDE = 20, 160

# Similarity of structure saturates or is kept where colour or lightness changes; squared error sees the change.
BY_ERROR = {"mean_shift", "saturation_hsv", "darken", "colour_shift"}
# Their counts scale with the area, and would all be 1 on small images.
LARGE = {"colour_block": 384, "non_eccentricity_patch": 384}


@lru_cache(maxsize=2)
def photographs(side: int) -> list[np.ndarray]:
    files = sorted(FOLDER.glob("kodak24/*.png"))[:COUNT]
    images = []
    for file in files:
        image = cv2.cvtColor(np.asarray(cv2.imread(str(file))), cv2.COLOR_BGR2RGB)
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        images.append(
            (image[top : top + side, left : left + side] / np.float32(255)).astype(np.float32)
        )
    return images


def structural_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) with an 11 x 11 Gaussian window, mean over the three channels."""

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    m1, m2 = mean(first), mean(second)
    v1, v2 = mean(first * first) - m1 * m1, mean(second * second) - m2 * m2
    covariance = mean(first * second) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * m1 * m2 + c1) * (2 * covariance + c2)
    return float((similarity / ((m1 * m1 + m2 * m2 + c1) * (v1 + v2 + c2))).mean())


@pytest.mark.skipif(
    len(list(FOLDER.glob("kodak24/*.png"))) < COUNT,
    reason="set DRI_IQA_SHARED to a folder with data/pristine/kodak24/*.png",
)
@pytest.mark.parametrize("name", [name for names in GROUPS.values() for name in names])
def test_levels_are_ordered_by_severity(name: str) -> None:
    operator = OPERATORS[name]
    pristine = photographs(LARGE.get(name, SIDE))
    for sign in (1, -1) if operator.signed else (1,):
        scores = np.empty((COUNT, 5))
        for number, image in enumerate(pristine):
            for level in range(1, 6):
                out = operator(image, level, np.random.default_rng(number), sign=sign)
                if name in BY_ERROR:
                    scores[number, level - 1] = -np.mean((out - image) ** 2)
                else:
                    scores[number, level - 1] = structural_similarity(image, out)
        assert np.all(np.diff(scores.mean(axis=0)) < 0), scores.mean(axis=0)
        # And for most single photographs, not only on average.
        ordered = np.mean(np.diff(scores, axis=1) < 0)
        assert ordered > 0.75, ordered
