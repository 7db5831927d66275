"""Pairs of neighbouring levels of one degradation, and series of all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dri_iqa.degradations import apply_recipe, parse_recipe
from dri_iqa.degradations.core import from_u8, to_u8
from dri_iqa.degradations.registry import get_operator
from dri_iqa.degradations.steps import LEVELS, Step, at_levels, directions, one_series, one_step
from dri_iqa.seeds import Purpose, generator


def photo(height: int = 96, width: int = 120) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def step(index: int, image_HWC: np.ndarray | None = None, **changes: Any) -> Step:
    options = {"run_seed": 3, "epoch": 1, "image_index": index, "crop": 64, "region": 80}
    return one_step(photo() if image_HWC is None else image_HWC, **(options | changes))


def test_every_operator_in_every_direction() -> None:
    names = Counter(name for name, _ in directions())
    assert len(names) == 24
    assert {name for name, count in names.items() if count == 2} == {
        "mean_shift",
        "linear_contrast",
    }
    assert len(directions("kadis")) == 24  # its table gives every level a sign of its own


def test_levels_of_an_operator_share_their_noise() -> None:
    noise = (0, Purpose.ORDER, 5)
    first, *rest = at_levels(photo(), "white_noise", 1, range(6), seed=noise)
    assert np.array_equal(first, photo())
    for level, picture_HWC in enumerate(rest, start=1):
        same = apply_recipe(photo(), parse_recipe(f"white_noise:{level}"), generator(*noise))
        assert np.array_equal(picture_HWC, same)


def test_a_step_is_two_levels_at_one_place() -> None:
    region_HWC = photo(80, 80)  # as large as the region, so that it is degraded whole
    found: Counter[tuple[str, int, int]] = Counter()
    places = set()
    for index in range(120):
        this = step(index, region_HWC)
        found[this.operator, this.sign, this.level] += 1
        whole = []
        for level in (this.level, this.level + 1):
            rng = generator(3, Purpose.ORDER, 1, index, 1)
            operator = get_operator(this.operator)
            degraded = operator(from_u8(region_HWC), level, rng, sign=this.sign) if level else None
            whole.append(region_HWC if degraded is None else to_u8(degraded))
        matches = [
            (top, left, flip)
            for top in range(17)
            for left in range(17)
            for flip in (1, -1)
            if all(
                np.array_equal(crop, source[top : top + 64, left : left + 64][:, ::flip])
                for crop, source in zip(this.crops_2HWC, whole, strict=True)
            )
        ]
        assert matches, (this.operator, this.level)
        places.update(matches)
    assert len(places) > 60
    assert {level for _, _, level in found} == set(range(5))
    assert len({(name, sign) for name, sign, _ in found}) > 20


def test_a_step_is_a_function_of_its_arguments() -> None:
    crops = step(7).crops_2HWC
    assert crops.shape == (2, 64, 64, 3)
    assert np.array_equal(crops, step(7).crops_2HWC)
    for other in (step(7, run_seed=4), step(7, epoch=2), step(8)):
        assert not np.array_equal(crops, other.crops_2HWC)


def test_a_series_is_all_levels_at_one_place() -> None:
    region_HWC = photo(66, 66)
    found = set()
    for index in range(60):
        this = one_series(region_HWC, run_seed=3, index=index, crop=64, region=66)
        assert this.crops_LHWC.shape == (LEVELS, 64, 64, 3)
        noise = (3, Purpose.SERIES, index, 1)
        whole = list(at_levels(region_HWC, this.operator, this.sign, range(LEVELS), seed=noise))
        assert any(
            all(
                np.array_equal(crop, source[top : top + 64, left : left + 64][:, ::flip])
                for crop, source in zip(this.crops_LHWC, whole, strict=True)
            )
            for top in range(3)
            for left in range(3)
            for flip in (1, -1)
        )
        found.add((this.operator, this.sign))
    assert len(found) > 20
    again = one_series(region_HWC, run_seed=3, index=59, crop=64, region=66)
    assert np.array_equal(this.crops_LHWC, again.crops_LHWC)


@pytest.mark.parametrize("wrong", [photo().astype(np.float32), photo()[:, :, 0]])
def test_other_images_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one_step"):
        step(0, wrong)
    with pytest.raises(ValueError, match="one_series"):
        one_series(wrong, run_seed=0, index=0, crop=64, region=80)
