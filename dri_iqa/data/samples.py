"""One batch of finished training samples: fetch, decode, crop and degrade, as CPU workers run it.

Pure functions of (reader, rows, seeds): any process gives the same bytes for the same rows, so
batches come out alike from Ray tasks, from a DataLoader or in a loop. All pixels are uint8 of a
fixed shape.

Shape suffixes: B batch, 4 the crops x11 x12 x21 x22 (two crops of each of two views), 2 the views,
C the three RGB channels, H height, W width.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from dri_iqa.config import Augment, DegradeConfig
from dri_iqa.data.records import DataError
from dri_iqa.degradations import TYPE_IDS, degrade_clean, parse_recipe
from dri_iqa.degradations.steps import one_step
from dri_iqa.images import decode, resize_short_side
from dri_iqa.seeds import Purpose, generator

Rows = Iterable[tuple[int, int, int]]
"""(epoch, position, image id), as `Schedule.batch` gives them."""


class Reader(Protocol):
    """What gives images by id; `dri_iqa.data.manifest.ShardReader` does."""

    def row(self, image_id: int) -> dict[str, Any]: ...

    def read(self, image_id: int) -> dict[str, Any]: ...

    def reference_id(self, name: str) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What a stage-2 sample holds beside the image and its score."""

    reference: bool = False
    """The reference at the same place (restoration target)."""
    views: bool = False
    """Two crops of the image and two of a sibling (contrastive losses)."""


class Window(NamedTuple):
    """Where a crop lies and what is done to it, in pixels: mirrored first, then turned by quarters."""

    top: int
    left: int
    side: int
    flip: bool
    quarter_turns: int
    channels: tuple[int, ...]
    """Which of red, green and blue becomes which."""


def stage1_batch(
    reader: Reader,
    rows: Rows,
    *,
    run_seed: int,
    degrade: DegradeConfig,
    crop: int,
    with_clean: bool = False,
    batch_position: int | None = None,
    recipe_of: Mapping[int, int] | None = None,
    augment: Augment = "flip",
) -> dict[str, np.ndarray]:
    """Samples of the contrastive stage: every clean image degraded twice, two crops of each (3.1,
    3.2).

    Images smaller than a crop are enlarged bilinearly first. All draws are seeded by (run seed,
    epoch, image id).

    Args:
        reader: the clean set.
        rows: (epoch, position, image id).
        run_seed: seed of the run.
        degrade: the degradation chain.
        crop: side of the crops in pixels.
        with_clean: also the clean pixels under x11 (the auxiliary stream of stage 2).
        batch_position: the step in its epoch; needed for chains of one length a batch.
        recipe_of: image id -> id of the image whose first recipe it takes over.
        augment: what is done to a clean image before it is degraded; its crops are mirrored anyway.

    Returns:
        crops_B4CHW uint8 in the order x11, x12, x21, x22; type_mask_B2 and recipe_hash_B2 int64 of
        the two views; image_id_B int64; with `with_clean` also clean_BCHW uint8.
    """
    crops, cleans, masks, hashes, ids = [], [], [], [], []
    for epoch, _, image_id in rows:
        clean_HWC = resize_short_side(decode(reader.read(image_id)["bytes"]), crop)
        sample = degrade_clean(
            _turned(clean_HWC, run_seed, epoch, image_id, augment),
            run_seed=run_seed,
            epoch=epoch,
            image_index=image_id,
            crop=crop,
            config=degrade,
            batch_position=batch_position,
            recipe_of=(recipe_of or {}).get(image_id),
        )
        crops.append(sample.crops_4HWC)
        cleans.append(sample.clean_4HWC[0])
        masks.append(sample.type_mask_2)
        hashes.append(sample.recipe_hash_2)
        ids.append(image_id)
    batch = {
        "crops_B4CHW": _channels_first(crops),
        "type_mask_B2": np.array(masks, dtype=np.int64),
        "recipe_hash_B2": np.array(hashes, dtype=np.int64),
        "image_id_B": np.array(ids, dtype=np.int64),
    }
    if with_clean:
        batch["clean_BCHW"] = _channels_first(cleans)
    return batch


def order_batch(
    reader: Reader, rows: Rows, *, run_seed: int, crop: int, region: int
) -> dict[str, np.ndarray]:
    """Crops of clean images at two neighbouring levels of one degradation, see `one_step`.

    Images smaller than a crop are enlarged bilinearly first.

    Args:
        reader: the clean set.
        rows: (epoch, position, image id).
        run_seed: seed of the run.
        crop: side of the crops in pixels.
        region: side of what is degraded.

    Returns:
        order_crops_P2CHW uint8: the better one, the worse one.
    """
    steps = [
        one_step(
            resize_short_side(decode(reader.read(image_id)["bytes"]), crop),
            run_seed=run_seed,
            epoch=epoch,
            image_index=image_id,
            crop=crop,
            region=region,
        )
        for epoch, _, image_id in rows
    ]
    return {"order_crops_P2CHW": _channels_first([step.crops_2HWC for step in steps])}


def stage2_batch(
    reader: Reader,
    rows: Rows,
    *,
    run_seed: int,
    crop: int,
    score_lo: float,
    score_hi: float,
    higher_is_better: bool,
    streams: Streams | None = None,
    siblings: Mapping[str, Sequence[int]] | None = None,
    scores: Mapping[int, float] | None = None,
    augment: Augment = "flip",
) -> dict[str, np.ndarray]:
    """Samples of the joint stage: a crop of the distorted image with its score (3.4, 4.2).

    The image's crop is x11. Its reference is cropped, flipped and turned alike. The views are x11, x12 of
    the image and x21, x22 of a sibling, which is another distorted version of the same reference
    in the same part of the split; an image without one shows two more crops of itself and says so.

    Args:
        reader: the scored set.
        rows: (epoch, position, image id).
        run_seed: seed of the run.
        crop: side of the crops in pixels; smaller images are enlarged bilinearly.
        score_lo: label that becomes 0 (1 where lower is better), from the training part only.
        score_hi: label that becomes 1 (0 where lower is better).
        higher_is_better: direction of the labels.
        streams: what else is wanted.
        siblings: image ids by reference name, see `sibling_index`; needed for views.
        scores: labels that replace the stored ones (the control with shuffled scores).
        augment: what is done to crops besides moving them; references follow.

    Returns:
        image_BCHW uint8; score_B float32, higher is better, 0..1 for labels in the range;
        row_id_B int64, the image's id. With references: reference_BCHW uint8. With views:
        views_B4CHW uint8, type_mask_B2 and recipe_hash_B2 int64, has_sibling_B bool, and
        image_id_B int64, which is the *reference's* id where there is one: the identity of the
        content that the contrastive masks compare. Without views image_id_B equals row_id_B.

    Raises:
        DataError: a reference is wanted that is missing or differs in size.
    """
    streams = streams or Streams()
    columns: dict[str, list[Any]] = {}

    def add(name: str, value: Any) -> None:
        columns.setdefault(name, []).append(value)

    for epoch, _, image_id in rows:
        row = reader.read(image_id)
        image_HWC = resize_short_side(decode(row["bytes"]), crop)
        draw = partial(_window, crop, run_seed, epoch, image_id, augment)
        window = draw(image_HWC.shape, 0, 0)
        first_HWC = _cut(image_HWC, window)
        label = row["score"] if scores is None else scores[image_id]
        add("image_BCHW", first_HWC)
        add("score_B", unit_score(label, score_lo, score_hi, higher_is_better))
        add("row_id_B", image_id)
        if streams.reference:
            add("reference_BCHW", _cut(_reference(reader, row, image_HWC.shape, crop), window))
        if not streams.views:
            add("image_id_B", image_id)
            continue
        sibling_id = pick_sibling(row, siblings or {}, run_seed, epoch)
        other, other_HWC = row, image_HWC
        if sibling_id is not None:
            other = reader.read(sibling_id)
            other_HWC = resize_short_side(decode(other["bytes"]), crop)
        windows = [
            draw(source.shape, view, k)
            for source, view, k in ((image_HWC, 0, 1), (other_HWC, 1, 0), (other_HWC, 1, 1))
        ]
        views = [first_HWC, _cut(image_HWC, windows[0])]
        add("views_B4CHW", np.stack(views + [_cut(other_HWC, place) for place in windows[1:]]))
        marks = [degradation_marks(row), degradation_marks(other)]
        add("type_mask_B2", [mask for mask, _ in marks])
        add("recipe_hash_B2", [mark for _, mark in marks])
        add("has_sibling_B", sibling_id is not None)
        content = image_id if row["reference"] is None else reader.reference_id(row["reference"])
        add("image_id_B", content)
    kinds = {"score_B": np.float32, "has_sibling_B": np.bool_}
    return {
        name: _channels_first(values)
        if name.endswith("CHW")
        else np.array(values, dtype=kinds.get(name, np.int64))
        for name, values in columns.items()
    }


def unit_score(score: float, lo: float, hi: float, higher_is_better: bool) -> float:
    """A label on 0..1 with higher = better; labels outside lo..hi give values outside 0..1."""
    value = (score - lo) / (hi - lo)
    return value if higher_is_better else 1.0 - value


def score_range(table: pa.Table, ids: Iterable[int]) -> tuple[float, float]:
    """Smallest and largest label of the training images, the only ones that may set the scale.

    Raises:
        DataError: no scores, or all alike.
    """
    wanted = set(ids)
    pairs = zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True)
    found = [score for image_id, score in pairs if image_id in wanted and score is not None]
    if not found or min(found) == max(found):
        raise DataError(
            f"the training part has {len(found)} scores, {len(set(found))} different\n"
            "Train on a scored data set with at least two different scores."
        )
    return min(found), max(found)


def shuffled_scores(table: pa.Table, ids: Sequence[int], run_seed: int) -> dict[int, float]:
    """Labels dealt out anew among the images: the control from which nothing can be learnt."""
    scores = dict(zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    order = generator(run_seed, Purpose.SHUFFLE_SCORES).permutation(len(ids))
    return {image_id: scores[ids[place]] for image_id, place in zip(ids, order, strict=True)}


def sibling_index(table: pa.Table, ids: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Image ids of one part of a split by the name of their reference."""
    wanted = set(ids)
    found: dict[str, list[int]] = {}
    pairs = zip(table["image_id"].to_pylist(), table["reference"].to_pylist(), strict=True)
    for image_id, reference in pairs:
        if reference is not None and image_id in wanted:
            found.setdefault(reference, []).append(image_id)
    return {name: tuple(sorted(members)) for name, members in found.items()}


def pick_sibling(
    row: Mapping[str, Any], siblings: Mapping[str, Sequence[int]], run_seed: int, epoch: int
) -> int | None:
    """Another image of the same reference, drawn anew each epoch; None where there is none."""
    image_id = row["image_id"]
    others = [other for other in siblings.get(row["reference"] or "", ()) if other != image_id]
    if not others:
        return None
    return others[int(generator(run_seed, Purpose.SIBLING, epoch, image_id).integers(len(others)))]


def degradation_marks(row: Mapping[str, Any]) -> tuple[int, int]:
    """(type mask, recipe hash) of a distorted image, for the masks of the contrastive losses.

    From its recipe where that is known; else from (type, level), with the operator's own bit where
    the type is one of ours and one of 20 further bits otherwise; 0, 0 where neither is known.
    """
    if row.get("recipe") is not None:
        recipe = parse_recipe(row["recipe"])
        return int(recipe.type_mask), int(recipe.hash)
    kind, level = row.get("type"), row.get("level")
    if kind is None:
        return 0, 0
    if kind in TYPE_IDS and level is not None and 1 <= level <= 5:
        recipe = parse_recipe(f"{kind}:{level}")
        return int(recipe.type_mask), int(recipe.hash)
    bit = 40 + zlib.crc32(kind.encode()) % 20
    text = f"{kind}:{level}".encode()
    return 1 << bit, zlib.crc32(text) << 31 ^ zlib.crc32(text[::-1])


def _window(
    crop: int,
    run_seed: int,
    epoch: int,
    image_id: int,
    augment: Augment,
    shape: tuple[int, ...],
    view: int,
    k: int,
) -> Window:
    """One crop; positions include the last row and column."""
    rng = generator(run_seed, Purpose.CROP, epoch, image_id, view, k)
    top = int(rng.integers(shape[0] - crop + 1))
    left = int(rng.integers(shape[1] - crop + 1))
    flip = bool(rng.random() < 0.5)
    return Window(top, left, crop, flip, *_turn(rng, augment))


def _turn(rng: np.random.Generator, augment: Augment) -> tuple[int, tuple[int, ...]]:
    """Quarter turns, and which of red, green and blue becomes which."""
    turns = 0 if augment == "flip" else int(rng.integers(4))
    channels = rng.permutation(3).tolist() if augment == "dihedral_channels" else range(3)
    return turns, tuple(channels)


def _turned(
    image_HWC: np.ndarray, run_seed: int, epoch: int, image_id: int, augment: Augment
) -> np.ndarray:
    """A clean image before it is degraded: operators that know up from down or red from blue act as
    on any other photograph, which they would not if their results were turned.
    """
    if augment == "flip":
        return image_HWC
    turns, channels = _turn(generator(run_seed, Purpose.TURN, epoch, image_id), augment)
    return np.ascontiguousarray(_rearranged(np.rot90(image_HWC, turns), channels))


def _cut(image_HWC: np.ndarray, window: Window) -> np.ndarray:
    bottom, right = window.top + window.side, window.left + window.side
    part_HWC = image_HWC[window.top : bottom, window.left : right]
    turned_HWC = np.rot90(part_HWC[:, ::-1] if window.flip else part_HWC, window.quarter_turns)
    return _rearranged(turned_HWC, window.channels)


def _rearranged(image_HWC: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    return image_HWC if channels == (0, 1, 2) else image_HWC[:, :, channels]


def _reference(
    reader: Reader, row: Mapping[str, Any], shape: tuple[int, ...], crop: int
) -> np.ndarray:
    if row["reference"] is None:
        raise DataError(
            f"{row['name']} has no reference image\n"
            "Use ref_source=aux for data sets without references."
        )
    reference = reader.read(reader.reference_id(row["reference"]))
    reference_HWC = resize_short_side(decode(reference["bytes"]), crop)
    if reference_HWC.shape != shape:
        raise DataError(
            f"{row['name']} is {row['width']}x{row['height']}, its reference"
            f" {reference['width']}x{reference['height']}\n"
            "Use ref_source=aux, or references of the same size."
        )
    return reference_HWC


def _channels_first(images: Sequence[np.ndarray]) -> np.ndarray:
    """A stack of (..., H, W, C) images as contiguous (B, ..., C, H, W)."""
    return np.ascontiguousarray(np.moveaxis(np.stack(images), -1, -3))
