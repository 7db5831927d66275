"""The picture of all operators."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import GROUPS, apply_recipe, draw_recipe
from dri_iqa.degradations.gallery import chain_gallery, gallery
from dri_iqa.seeds import Purpose, generator

PHOTO = np.ascontiguousarray(data.astronaut()[:100, 150:270])


def test_shows_each_operator_at_five_levels() -> None:
    picture = gallery(PHOTO, operators=["pixelate", "mean_shift"], tile=48, context=64, columns=1)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    # Three rows (mean shift has two signs) of five tiles: the dark shift's tiles get darker from left to right.
    x = 12 + 148
    row_height = 48 + 17 + 6
    top = 12 + 26 + 2 * row_height
    tiles = [picture[top : top + 48, x + 52 * place : x + 52 * place + 48] for place in range(6)]
    assert np.array_equal(tiles[0], PHOTO[26:74, 36:84]), "the original comes first"
    means = [tile.mean() for tile in tiles[1:]]
    assert means == sorted(means, reverse=True)
    assert means[0] - means[4] > 15
    label = picture[top : top + 40, 12 : 12 + 140]
    assert (label < 100).any(), "the name is printed"


def test_default_has_all_24_and_is_reproducible() -> None:
    one = gallery(PHOTO, tile=32, context=48)
    assert np.array_equal(one, gallery(PHOTO, tile=32, context=48))
    rows = sum(len(names) for names in GROUPS.values()) + 2
    assert one.shape[0] == 2 * 12 + 26 + rows * (32 + 17 + 6)
    two = gallery(PHOTO, tile=32, context=48, columns=2)
    assert two.shape[0] == 2 * 12 + 26 + rows // 2 * (32 + 17 + 6)
    assert two.shape[1] == 2 * one.shape[1] - 2 * 12
    kadis = gallery(PHOTO, tile=32, context=48, levels="kadis")
    assert kadis.shape[0] == one.shape[0] - 2 * (32 + 17 + 6), "its levels have signs of their own"
    assert not np.array_equal(one, gallery(PHOTO, tile=32, context=48, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ["jpg"]}, "did you mean jpeg"),
        ({"operators": []}, "got no operators"),
        ({"tile": 16}, "got tile 16"),
        ({"levels": "x"}, "got levels 'x'"),
    ],
)
def test_bad_options_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gallery(PHOTO, **options)  # pyright: ignore[reportArgumentType]


def test_random_chains_are_those_that_training_draws() -> None:
    config = DegradeConfig(min_ops=1, level_dist="uniform")
    picture = chain_gallery(PHOTO, config, chains=5, tile=64, columns=2, seed=3)
    assert np.array_equal(
        picture, chain_gallery(PHOTO, config, chains=5, tile=64, columns=2, seed=3)
    )
    rng = generator(3, Purpose.DEGRADE, 1, 1)
    second = apply_recipe(PHOTO, draw_recipe(rng, config), rng, config)
    left = 12 + 148 + 12
    assert np.array_equal(picture[12 : 12 + 64, left : left + 64], second[18:82, 28:92])
    below = picture[12 + 64 : 12 + 64 + 14, left : left + 140]
    assert (below < 100).any(), "its steps are named"
    with pytest.raises(ValueError, match="got tile 160, columns 4 and 0 chains"):
        chain_gallery(PHOTO, chains=0)
