"""One operator at neighbouring levels: each picture is worse than the one before by construction.

Not in the paper. It is what tells a model, without anyone's opinion, that more of a degradation is worse.

Legend: H, W height and width in pixels; C = 3 channels; 2 = (better, worse); L = 6 levels, the first as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dri_iqa.degradations.core import from_u8, to_u8
from dri_iqa.degradations.recipe import check_u8
from dri_iqa.degradations.registry import GROUPS, get_operator
from dri_iqa.seeds import Purpose, generator

LEVELS = 6
"""The picture as it is, and an operator's five levels."""


def directions(levels: str = "default") -> list[tuple[str, int]]:
    """(name, sign) of the 24 operators; those that go either way come twice."""
    rows = []
    for name in (name for names in GROUPS.values() for name in names):
        rows.append((name, 1))
        if get_operator(name).draws_sign(levels):
            rows.append((name, -1))
    return rows


def at_levels(
    image_HWC: NDArray[np.uint8],
    name: str,
    sign: int,
    numbers: Iterable[int],
    *,
    seed: tuple[int, Purpose, *tuple[int, ...]],
    levels: str = "default",
) -> Iterator[NDArray[np.uint8]]:
    """The image by one operator at several levels, 0 to 5; 0 is the image as it is.

    The operator's noise is drawn from `seed` anew for each level, and so is the same: a step changes its strength and
    nothing else.
    """
    operator, float_HWC = get_operator(name), from_u8(image_HWC)
    for level in numbers:
        if level == 0:
            yield image_HWC
            continue
        rng = generator(*seed)
        yield to_u8(operator(float_HWC, level, rng, levels=levels, sign=sign))


@dataclass(frozen=True)
class Step:
    """What `one_step` returns."""

    crops_2HWC: NDArray[np.uint8]
    """The same place at a level and at the next."""
    operator: str
    sign: int
    level: int
    """Of the better one, 0 to 4."""


def one_step(
    image_HWC: NDArray[np.uint8],
    *,
    run_seed: int,
    epoch: int,
    image_index: int,
    crop: int,
    region: int,
) -> Step:
    """A crop of an image at two neighbouring levels of one operator; all of them drawn uniformly.

    The levels are the default table's, where every level of every operator is worse than the one before.

    A larger region is degraded and then cropped, so that blocks of a compression lie anywhere in a crop. A pure
    function of its arguments.

    Args:
        image_HWC: clean (H, W, 3) uint8 RGB image, sides of at least `crop`.
        run_seed: seed of the run.
        epoch: epoch, from 0.
        image_index: index of the image in the clean set.
        crop: side of the crops in pixels.
        region: side of what is degraded, at least the crop; smaller images are degraded whole.

    Raises:
        ValueError: an image of another dtype, shape or size.
    """
    check_u8(image_HWC, "one_step")
    rng = generator(run_seed, Purpose.ORDER, epoch, image_index, 0)
    rows = directions()
    name, sign = rows[int(rng.integers(len(rows)))]
    level = int(rng.integers(LEVELS - 1))
    noise = (run_seed, Purpose.ORDER, epoch, image_index, 1)
    crops = _crops(image_HWC, name, sign, (level, level + 1), rng, noise, crop, region)
    return Step(np.stack(crops), name, sign, level)


@dataclass(frozen=True)
class Series:
    """What `one_series` returns."""

    crops_LHWC: NDArray[np.uint8]
    """The same place as it is, and at the five levels."""
    operator: str
    sign: int


def one_series(
    image_HWC: NDArray[np.uint8], *, run_seed: int, index: int, crop: int, region: int
) -> Series:
    """A crop of an image as it is and at all levels of one operator, which is drawn uniformly.

    As `one_step`, and like it a pure function of its arguments.

    Args:
        image_HWC: clean (H, W, 3) uint8 RGB image, sides of at least `crop`.
        run_seed: seed of the run.
        index: which series; several may be of one image.
        crop: side of the crops in pixels.
        region: side of what is degraded, at least the crop; smaller images are degraded whole.

    Raises:
        ValueError: an image of another dtype, shape or size.
    """
    check_u8(image_HWC, "one_series")
    rng = generator(run_seed, Purpose.SERIES, index, 0)
    rows = directions()
    name, sign = rows[int(rng.integers(len(rows)))]
    noise = (run_seed, Purpose.SERIES, index, 1)
    crops = _crops(image_HWC, name, sign, range(LEVELS), rng, noise, crop, region)
    return Series(np.stack(crops), name, sign)


def _crops(
    image_HWC: NDArray[np.uint8],
    name: str,
    sign: int,
    numbers: Iterable[int],
    rng: np.random.Generator,
    noise: tuple[int, Purpose, *tuple[int, ...]],
    crop: int,
    region: int,
) -> list[NDArray[np.uint8]]:
    """The same place, mirrored or not, of the same region at several levels."""
    part_HWC = np.ascontiguousarray(_cut(image_HWC, region, rng))
    places = rng.bit_generator.state
    crops = []
    for picture_HWC in at_levels(part_HWC, name, sign, numbers, seed=noise):
        rng.bit_generator.state = places  # all are cut alike
        piece_HWC = _cut(picture_HWC, crop, rng)
        crops.append(piece_HWC[:, ::-1] if rng.integers(2) else piece_HWC)
    return crops


def _cut(image_HWC: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = (min(side, whole) for whole in image_HWC.shape[:2])
    top = int(rng.integers(image_HWC.shape[0] - height, endpoint=True))
    left = int(rng.integers(image_HWC.shape[1] - width, endpoint=True))
    return image_HWC[top : top + height, left : left + width]
