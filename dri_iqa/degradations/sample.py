"""One training sample of the contrastive stage: a clean region, degraded twice, and two crops of each view.

The crops are x11, x12 of the first view and x21, x22 of the second (paper 3.2). Crops are only moved and flipped:
colour jitter, rescaling and grey-scaling, usual in contrastive learning, would change the quality to be learned.

Legend: H, W height and width in pixels; C = 3 channels; 4 = crops (x11, x12, x21, x22); 2 = views.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dri_iqa.config import ConfigError, DegradeConfig
from dri_iqa.degradations.chain import draw_length, draw_recipe
from dri_iqa.degradations.recipe import Recipe, apply_recipe, check_u8
from dri_iqa.seeds import Purpose, generator

MAX_REDRAWS = 8
"""How often the second recipe is drawn again when it equals the first."""

_BATCH_VIEW = 2
"""Views are 0 and 1; this index names the stream of a batch's common chain length."""


@dataclass(frozen=True)
class FourCrops:
    """What `degrade_clean` returns."""

    crops_4HWC: NDArray[np.uint8]
    """x11, x12, x21, x22."""
    clean_4HWC: NDArray[np.uint8]
    """The clean image at the same places, flipped alike."""
    type_mask_2: NDArray[np.int64]
    """Type mask of each view's recipe."""
    recipe_hash_2: NDArray[np.int64]
    """Hash of each view's recipe."""
    recipes: tuple[Recipe, Recipe]
    """The recipes themselves."""


def degrade_clean(
    image_HWC: NDArray[np.uint8],
    *,
    run_seed: int,
    epoch: int,
    image_index: int,
    crop: int,
    config: DegradeConfig | None = None,
    batch_position: int | None = None,
    recipe_of: int | None = None,
) -> FourCrops:
    """Two degraded views of one clean image, two crops of each, and the clean crops beside them.

    A pure function of its arguments: worker, order and process do not matter.

    Args:
        image_HWC: clean (H, W, 3) uint8 RGB image.
        run_seed: seed of the run.
        epoch: epoch, from 0.
        image_index: index of the image in the clean set.
        crop: side of the crops in pixels.
        config: the chain's dials; the default configuration if None.
        batch_position: number of the batch in its epoch, needed for `n_scope: batch` only.
        recipe_of: degrade the first view by the recipe of this image's first view in this epoch.

    Raises:
        ValueError: an image smaller than the crop, of another dtype or shape.
        ConfigError: a chain that cannot be drawn, or `n_scope: batch` without `batch_position`.
    """
    config = config or DegradeConfig()
    check_u8(image_HWC, "degrade_clean")
    if min(image_HWC.shape[:2]) < crop:
        raise ValueError(
            f"degrade_clean: got an image of {image_HWC.shape[0]}x{image_HWC.shape[1]} pixels, "
            f"expected sides of at least the crop, {crop}; leave it out or enlarge it"
        )
    region_HWC = _region(image_HWC, run_seed, epoch, image_index, crop, config)
    length = _batch_length(run_seed, epoch, batch_position, config)
    rngs = [generator(run_seed, Purpose.DEGRADE, epoch, image_index, view) for view in range(2)]
    if recipe_of is None:
        first = draw_recipe(rngs[0], config, length)
    else:
        leader = generator(run_seed, Purpose.DEGRADE, epoch, recipe_of, 0)
        first = draw_recipe(leader, config, length)
    second = draw_recipe(rngs[1], config, length)
    for _ in range(MAX_REDRAWS):
        # Equal recipes would make x21, x22 false negatives of x11.
        if second != first:
            break
        second = draw_recipe(rngs[1], config, length)

    crops_4HWC = np.empty((4, crop, crop, 3), dtype=np.uint8)
    clean_4HWC = np.empty_like(crops_4HWC)
    for view, recipe in enumerate((first, second)):
        degraded_HWC = apply_recipe(region_HWC, recipe, rngs[view], config)
        other: tuple[int, int] | None = None
        for k in range(2):
            rng = generator(run_seed, Purpose.CROP, epoch, image_index, view, k)
            top, left = _position(rng, region_HWC.shape[:2], crop, other, config)
            flip = bool(rng.integers(2))
            for source, target in ((degraded_HWC, crops_4HWC), (region_HWC, clean_4HWC)):
                piece = source[top : top + crop, left : left + crop]
                target[2 * view + k] = cv2.flip(piece, 1) if flip else piece
            other = (top, left)
    recipes = (first, second)
    return FourCrops(
        crops_4HWC=crops_4HWC,
        clean_4HWC=clean_4HWC,
        type_mask_2=np.array([recipe.type_mask for recipe in recipes], dtype=np.int64),
        recipe_hash_2=np.array([recipe.hash for recipe in recipes], dtype=np.int64),
        recipes=recipes,
    )


def _region(
    image_HWC: NDArray[np.uint8],
    run_seed: int,
    epoch: int,
    image_index: int,
    crop: int,
    config: DegradeConfig,
) -> NDArray[np.uint8]:
    """The part of the image that is degraded: a random square, or all of it."""
    if config.scope == "image":
        return image_HWC
    if config.region < crop:
        raise ConfigError(
            f"degrade.region: got {config.region}, expected at least the crop, {crop}"
        )
    rng = generator(run_seed, Purpose.REGION, epoch, image_index)
    height, width = (min(side, config.region) for side in image_HWC.shape[:2])
    top = int(rng.integers(image_HWC.shape[0] - height, endpoint=True))
    left = int(rng.integers(image_HWC.shape[1] - width, endpoint=True))
    return np.ascontiguousarray(image_HWC[top : top + height, left : left + width])


def _batch_length(
    run_seed: int, epoch: int, batch_position: int | None, config: DegradeConfig
) -> int | None:
    if config.n_scope == "sample":
        return None
    if batch_position is None:
        raise ConfigError(
            "degrade.n_scope is batch: degrade_clean needs batch_position, the batch's number"
        )
    rng = generator(run_seed, Purpose.DEGRADE, epoch, batch_position, _BATCH_VIEW)
    return draw_length(rng, config)


def _position(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    crop: int,
    other: tuple[int, int] | None,
    config: DegradeConfig,
) -> tuple[int, int]:
    """Top and left of a crop: uniform, or uniform among those whose overlap with the other crop is in the range."""
    rows, columns = shape[0] - crop + 1, shape[1] - crop + 1
    if config.crop_overlap is None or other is None:
        return int(rng.integers(rows)), int(rng.integers(columns))
    low, high = config.crop_overlap
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"degrade.crop_overlap: got {config.crop_overlap}, expected 0 <= low <= high <= 1"
        )
    shared_rows = np.maximum(crop - np.abs(np.arange(rows) - other[0]), 0)
    shared_columns = np.maximum(crop - np.abs(np.arange(columns) - other[1]), 0)
    overlap = np.outer(shared_rows, shared_columns) / crop**2
    # In a small region no position may be in the range; then the nearest ones are.
    miss = np.maximum(np.maximum(low - overlap, overlap - high), 0)
    places = np.flatnonzero(miss.ravel() <= miss.min() + 1e-12)
    top, left = divmod(int(places[rng.integers(places.size)]), columns)
    return top, left
