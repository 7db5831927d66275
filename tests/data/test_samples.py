"""Batches of samples: pure functions of reader, rows and seeds; crops aligned as promised."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dri_iqa.config import DegradeConfig
from dri_iqa.data.records import DataError
from dri_iqa.data.samples import (
    Streams,
    degradation_marks,
    order_batch,
    pick_sibling,
    score_range,
    shuffled_scores,
    sibling_index,
    stage1_batch,
    stage2_batch,
    unit_score,
)
from dri_iqa.degradations import TYPE_IDS, degrade_clean, parse_recipe
from dri_iqa.degradations.steps import one_step

CROP = 48
ROWS = [(0, 0, 3), (0, 1, 1), (2, 5, 4)]


def png(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG")
    return stream.getvalue()


def coordinates(height: int, width: int, blue: int) -> np.ndarray:
    """An image that says where each pixel was and which image it is from."""
    image_HWC = np.empty((height, width, 3), dtype=np.uint8)
    image_HWC[..., 0] = np.arange(height)[:, None]
    image_HWC[..., 1] = np.arange(width)[None, :]
    image_HWC[..., 2] = blue
    return image_HWC


class Shelf:
    """Images by id, in memory; 0..5 are distorted, 100 and 101 their references."""

    def __init__(self, height: int = 60, width: int = 90, **changes: Any) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        for number in (*range(6), 100, 101):
            reference = None if number >= 100 else f"r{number % 2}"
            self.rows[number] = {
                "image_id": number,
                "name": f"i{number}",
                "bytes": png(coordinates(height, width, number)),
                "score": None if number >= 100 else float(number),
                "reference": reference,
                "type": None if number >= 100 else "jpeg",
                "level": None if number >= 100 else 1 + number % 5,
                "recipe": None,
                "width": width,
                "height": height,
            }
        for key, change in changes.items():
            self.rows[int(key[1:])].update(change)

    def row(self, image_id: int) -> dict[str, Any]:
        return self.rows[image_id]

    def read(self, image_id: int) -> dict[str, Any]:
        return dict(self.rows[image_id])

    def reference_id(self, name: str) -> int:
        return 100 + int(name[1:])


SIBLINGS = {"r0": (0, 2, 4), "r1": (1, 3)}
SCALE: dict[str, Any] = {"score_lo": 0.0, "score_hi": 5.0, "higher_is_better": True}


def photo(seed: int = 0, height: int = 70, width: int = 100) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def photos() -> Shelf:
    shelf = Shelf()
    for number in range(6):
        shelf.rows[number]["bytes"] = png(photo(number))
    return shelf


def test_stage1_is_degrade_clean_in_a_batch() -> None:
    shelf = photos()
    config = DegradeConfig(min_ops=1)
    batch = stage1_batch(shelf, ROWS, run_seed=7, degrade=config, crop=CROP, with_clean=True)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "crops_B4CHW": ((3, 4, 3, CROP, CROP), "uint8"),
        "type_mask_B2": ((3, 2), "int64"),
        "recipe_hash_B2": ((3, 2), "int64"),
        "image_id_B": ((3,), "int64"),
        "clean_BCHW": ((3, 3, CROP, CROP), "uint8"),
    }
    for place, (epoch, _, image_id) in enumerate(ROWS):
        expected = degrade_clean(
            photo(image_id),
            run_seed=7,
            epoch=epoch,
            image_index=image_id,
            crop=CROP,
            config=config,
        )
        crops_4CHW = expected.crops_4HWC.transpose(0, 3, 1, 2)
        assert np.array_equal(batch["crops_B4CHW"][place], crops_4CHW)
        assert np.array_equal(batch["clean_BCHW"][place], expected.clean_4HWC[0].transpose(2, 0, 1))
        assert np.array_equal(batch["type_mask_B2"][place], expected.type_mask_2)
        assert np.array_equal(batch["recipe_hash_B2"][place], expected.recipe_hash_2)
    assert batch["image_id_B"].tolist() == [3, 1, 4]
    assert batch["crops_B4CHW"].flags.c_contiguous


def directions(image_HWC: np.ndarray) -> list[tuple[bool, bool]]:
    """Whether each channel of `coordinates` changes downwards and to the right; a crop may be mirrored."""
    changes = [
        np.any(image_HWC != image_HWC[:1], axis=(0, 1)),
        np.any(image_HWC != image_HWC[:, :1], axis=(0, 1)),
    ]
    return list(zip(*(change.tolist() for change in changes), strict=True))


def test_clean_images_are_turned_and_their_channels_exchanged_before_they_are_degraded() -> None:
    options: dict[str, Any] = {"run_seed": 3, "crop": CROP}
    config = DegradeConfig(region=64)
    rows = [(epoch, 0, 3) for epoch in range(120)]
    batch = stage1_batch(
        Shelf(), rows, degrade=config, with_clean=True, augment="dihedral_channels", **options
    )
    clean_HWC = coordinates(60, 90, 3)
    seen = set()
    for place, (epoch, _, image_id) in enumerate(rows):
        # each channel of a crop tells which it was: rows and columns rise, blue is one value
        for turns, order in itertools.product(range(4), itertools.permutations(range(3))):
            turned_HWC = np.ascontiguousarray(np.rot90(clean_HWC, turns)[..., list(order)])
            if directions(turned_HWC) != directions(batch["clean_BCHW"][place].transpose(1, 2, 0)):
                continue
            sample = degrade_clean(
                turned_HWC, epoch=epoch, image_index=image_id, config=config, **options
            )
            clean_CHW = sample.clean_4HWC[0].transpose(2, 0, 1)
            if np.array_equal(batch["clean_BCHW"][place], clean_CHW):
                crops_4CHW = sample.crops_4HWC.transpose(0, 3, 1, 2)
                assert np.array_equal(batch["crops_B4CHW"][place], crops_4CHW)
                seen.add((turns, order))
                break
        else:
            pytest.fail(f"row {place} is no turned photograph")
    assert len(seen) == 24


def test_pairs_of_levels_are_one_step_in_a_batch() -> None:
    batch = order_batch(photos(), ROWS, run_seed=7, crop=CROP, region=CROP + 8)
    assert list(batch) == ["order_crops_P2CHW"]
    pairs = batch["order_crops_P2CHW"]
    assert (pairs.shape, pairs.dtype.name) == ((3, 2, 3, CROP, CROP), "uint8")
    for place, (epoch, _, image_id) in enumerate(ROWS):
        options: dict[str, int] = {"crop": CROP, "region": CROP + 8, "image_index": image_id}
        expected = one_step(photo(image_id), run_seed=7, epoch=epoch, **options)
        assert np.array_equal(pairs[place], expected.crops_2HWC.transpose(0, 3, 1, 2))


def test_samples_do_not_depend_on_their_batch() -> None:
    shelf = photos()
    options: dict[str, Any] = {"run_seed": 1, "crop": CROP}
    whole1 = stage1_batch(shelf, ROWS, degrade=DegradeConfig(), **options)
    both = Streams(views=True)
    whole2 = stage2_batch(shelf, ROWS, streams=both, siblings=SIBLINGS, **SCALE, **options)
    for place, row in enumerate(ROWS):
        alone1 = stage1_batch(shelf, [row], degrade=DegradeConfig(), **options)
        alone2 = stage2_batch(shelf, [row], streams=both, siblings=SIBLINGS, **SCALE, **options)
        for whole, alone in ((whole1, alone1), (whole2, alone2)):
            for name, value in whole.items():
                assert np.array_equal(value[place], alone[name][0]), name
    # The position names the place in the order and decides nothing else.
    moved = stage1_batch(shelf, [(0, 99, 3)], degrade=DegradeConfig(), **options)
    assert np.array_equal(moved["crops_B4CHW"][0], whole1["crops_B4CHW"][0])
    later = stage1_batch(shelf, [(1, 0, 3)], degrade=DegradeConfig(), **options)
    assert not np.array_equal(later["crops_B4CHW"][0], whole1["crops_B4CHW"][0])


def test_small_images_are_enlarged() -> None:
    shelf = Shelf(height=33, width=40)
    batch = stage1_batch(shelf, ROWS, run_seed=0, degrade=DegradeConfig(), crop=CROP)
    assert batch["crops_B4CHW"].shape == (3, 4, 3, CROP, CROP)
    batch = stage2_batch(
        shelf, ROWS, run_seed=0, crop=CROP, streams=Streams(reference=True), **SCALE
    )
    assert np.array_equal(batch["image_BCHW"][:, :2], batch["reference_BCHW"][:, :2])


def test_image_and_reference_show_the_same_place() -> None:
    rows = [(epoch, 0, 3) for epoch in range(60)]
    batch = stage2_batch(
        Shelf(), rows, run_seed=0, crop=CROP, streams=Streams(reference=True), **SCALE
    )
    image, reference = batch["image_BCHW"], batch["reference_BCHW"]
    assert np.array_equal(image[:, :2], reference[:, :2])
    assert set(image[:, 2].ravel()) == {3}
    assert set(reference[:, 2].ravel()) == {101}
    tops, flips = image[:, 0, 0, 0], image[:, 1, 0, 0] > image[:, 1, 0, -1]
    assert set(tops) == set(range(60 - CROP + 1)), "the last row is reached"
    assert 15 < flips.sum() < 45


def test_quarter_turns_take_image_and_reference_along_and_leave_the_places_as_they_were() -> None:
    rows = [(epoch, 0, 3) for epoch in range(100)]
    options: dict[str, Any] = {"run_seed": 0, "crop": CROP, "streams": Streams(reference=True)}
    batch = stage2_batch(Shelf(), rows, augment="dihedral", **options, **SCALE)
    image_BCHW = batch["image_BCHW"]
    assert np.array_equal(image_BCHW[:, :2], batch["reference_BCHW"][:, :2])
    seen = set()
    upright_BCHW = stage2_batch(Shelf(), rows, **options, **SCALE)["image_BCHW"]
    for turned_CHW, mirrored_CHW in zip(image_BCHW, upright_BCHW, strict=True):
        (turns,) = (
            k for k in range(4) if np.array_equal(np.rot90(mirrored_CHW, k, (1, 2)), turned_CHW)
        )
        seen.add((turns, bool(mirrored_CHW[1, 0, 0] > mirrored_CHW[1, 0, -1])))
    assert len(seen) == 8


def test_channels_are_exchanged_in_image_and_reference_alike() -> None:
    rows = [(epoch, 0, 3) for epoch in range(100)]
    options: dict[str, Any] = {"run_seed": 0, "crop": CROP, "streams": Streams(reference=True)}
    batch = stage2_batch(Shelf(), rows, augment="dihedral_channels", **options, **SCALE)
    turned = stage2_batch(Shelf(), rows, augment="dihedral", **options, **SCALE)
    seen = set()
    for place in range(len(rows)):
        (order,) = (
            order
            for order in itertools.permutations(range(3))
            if np.array_equal(batch["image_BCHW"][place], turned["image_BCHW"][place, list(order)])
        )
        reference_CHW = turned["reference_BCHW"][place, list(order)]
        assert np.array_equal(batch["reference_BCHW"][place], reference_CHW)
        seen.add(order)
    assert len(seen) == 6


def test_the_last_column_is_reached() -> None:
    rows = [(epoch, 0, 0) for epoch in range(200)]
    batch = stage2_batch(Shelf(height=48, width=50), rows, run_seed=0, crop=CROP, **SCALE)
    assert {int(value) for value in batch["image_BCHW"][:, 1].reshape(200, -1).min(1)} == {0, 1, 2}


def test_views() -> None:
    rows = [(epoch, 0, image_id) for epoch in range(20) for image_id in range(6)]
    batch = stage2_batch(
        Shelf(),
        rows,
        run_seed=0,
        crop=CROP,
        streams=Streams(views=True),
        siblings=SIBLINGS | {"r1": (1, 3)},
        **SCALE,
    )
    views = batch["views_B4CHW"]
    assert views.shape == (120, 4, 3, CROP, CROP)
    assert np.array_equal(views[:, 0], batch["image_BCHW"])
    source = views[:, :, 2, 0, 0]
    own = batch["row_id_B"]
    assert np.array_equal(source[:, 0], own)
    assert np.array_equal(source[:, 1], own)
    assert np.array_equal(source[:, 2], source[:, 3])
    for place, (_, _, image_id) in enumerate(rows):
        if image_id == 5:  # of reference r1, but in no part of this split: 1 and 3 are its siblings
            assert source[place, 2] in (1, 3)
        else:
            members = set(SIBLINGS[f"r{image_id % 2}"]) - {image_id}
            assert source[place, 2] in members
    assert batch["has_sibling_B"].all()
    assert {int(value) for value in source[own == 0, 2]} == {2, 4}, "drawn anew each epoch"
    assert np.array_equal(batch["image_id_B"], 100 + own % 2), "identity is the reference"
    crops = {views[place, k].tobytes() for place in range(6) for k in range(4)}
    assert len(crops) == 24
    expected = [
        [parse_recipe(f"jpeg:{1 + i % 5}").hash for i in pair] for pair in source[:, [0, 2]]
    ]
    assert np.array_equal(batch["recipe_hash_B2"], expected)
    assert set(batch["type_mask_B2"].ravel()) == {1 << TYPE_IDS["jpeg"]}


def test_an_image_without_a_sibling_says_so() -> None:
    batch = stage2_batch(
        Shelf(i0={"reference": None}),
        [(0, 0, 0), (0, 1, 1)],
        run_seed=0,
        crop=CROP,
        streams=Streams(views=True),
        siblings={"r1": (1,)},
        **SCALE,
    )
    assert batch["has_sibling_B"].tolist() == [False, False]
    assert batch["views_B4CHW"][:, 2:, 2, 0, 0].tolist() == [[0, 0], [1, 1]]
    assert batch["image_id_B"].tolist() == [0, 101]


def test_scores_are_scaled_and_turned() -> None:
    options: dict[str, Any] = {"run_seed": 0, "crop": CROP, "score_lo": 1.0, "score_hi": 5.0}
    rows = [(0, 0, 1), (0, 1, 3), (0, 2, 5), (0, 3, 0)]
    up = stage2_batch(Shelf(), rows, higher_is_better=True, **options)["score_B"]
    assert up.dtype == np.float32
    assert up.tolist() == [0, 0.5, 1, -0.25]
    down = stage2_batch(Shelf(), rows, higher_is_better=False, **options)["score_B"]
    assert down.tolist() == [1, 0.5, 0, 1.25]
    other = stage2_batch(Shelf(), rows[:1], higher_is_better=True, scores={1: 5.0}, **options)[
        "score_B"
    ]
    assert other.tolist() == [1]
    assert unit_score(3.0, 1.0, 5.0, False) == 0.5


TABLE = pa.table(
    {
        "image_id": [0, 1, 2, 3, 4, 100],
        "score": [2.0, 9.0, 4.0, 1.0, 3.0, None],
        "reference": ["r0", "r1", "r0", "r1", None, None],
    }
)


def test_score_range_is_that_of_the_training_part() -> None:
    assert score_range(TABLE, [0, 2, 4]) == (2.0, 4.0)
    assert score_range(TABLE, [0, 100, 1]) == (2.0, 9.0)
    for ids in ([100], [0], []):
        with pytest.raises(DataError, match="the training part has"):
            score_range(TABLE, ids)


def test_siblings_stay_in_their_part() -> None:
    index = sibling_index(TABLE, [0, 1, 2, 4])
    assert index == {"r0": (0, 2), "r1": (1,)}
    row = {"image_id": 0, "reference": "r0"}
    assert pick_sibling(row, index, 0, 0) == 2
    assert pick_sibling({"image_id": 1, "reference": "r1"}, index, 0, 0) is None
    assert pick_sibling({"image_id": 4, "reference": None}, index, 0, 0) is None


def test_shuffled_scores_are_a_permutation() -> None:
    ids = [0, 1, 2, 3, 4]
    dealt = shuffled_scores(TABLE, ids, 0)
    assert sorted(dealt) == ids
    assert sorted(dealt.values()) == [1, 2, 3, 4, 9]
    assert dealt != dict(zip(ids, [2.0, 9.0, 4.0, 1.0, 3.0], strict=True))
    assert dealt == shuffled_scores(TABLE, ids, 0) != shuffled_scores(TABLE, ids, 1)


def test_marks_of_a_distortion() -> None:
    recipe = parse_recipe("jpeg:2 white_noise:4")
    known = degradation_marks({"recipe": str(recipe), "type": "x", "level": 9})
    assert known == (recipe.type_mask, recipe.hash)
    single = parse_recipe("jpeg:3")
    assert degradation_marks({"type": "jpeg", "level": 3}) == (single.type_mask, single.hash)
    assert degradation_marks({"type": None, "level": None}) == (0, 0)
    gan = [degradation_marks({"type": "GAN", "level": level}) for level in (1, 2)]
    assert gan[0][0] == gan[1][0] >= 1 << 40
    assert gan[0][1] != gan[1][1]
    marks = np.array([degradation_marks({"type": f"t{n}", "level": n}) for n in range(200)])
    assert marks.dtype == np.int64


def test_references_that_do_not_fit_are_refused() -> None:
    options: dict[str, Any] = {"run_seed": 0, "crop": CROP, "streams": Streams(reference=True)}
    with pytest.raises(DataError, match="i0 has no reference image\nUse ref_source=aux"):
        stage2_batch(Shelf(i0={"reference": None}), [(0, 0, 0)], **options, **SCALE)
    small = {"bytes": png(coordinates(60, 80, 0)), "width": 80}
    with pytest.raises(DataError, match="i0 is 90x60, its reference 80x60"):
        stage2_batch(Shelf(i100=small), [(0, 0, 0)], **options, **SCALE)
