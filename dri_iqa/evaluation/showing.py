"""The pictures of a report, read from an ingested data set by what `choosing` chose.

Images are rows as in `choosing`. Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dri_iqa.config import DegradeConfig
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import ShardReader
from dri_iqa.degradations import SETS
from dri_iqa.degradations.gallery import chain_gallery, gallery
from dri_iqa.evaluation.choosing import Image, Strip, describe
from dri_iqa.evaluation.figures import Judged, Mapped
from dri_iqa.evaluation.report import Outlier
from dri_iqa.images import decode, resize

SIDE = 512
"""Longest side of a shown picture, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a model says of pictures that a table of predictions does not hold."""

    scores: Mapping[str, float]
    """Of references, by name."""
    maps: Mapping[int, tuple[np.ndarray, np.ndarray]]
    """Degradation and quality map, by image id."""


def look(
    bundle: str, source: Source, references: Sequence[str], mapped: Sequence[int], crops: int | str
) -> Looked:
    """Score references and compute maps.

    Args:
        bundle: URI of the model.
        source: the data set.
        references: names.
        mapped: image ids.
        crops: random crops of each reference.
    """
    import torch

    from dri_iqa import load_model

    torch.set_num_threads(1)
    model, reader = load_model(bundle), source.open()
    scores = model.score((reader.read_reference(name)["bytes"] for name in references), crops=crops)
    drawn: list[dict[str, Any]] = []
    if mapped:
        images = (reader.read(image_id)["bytes"] for image_id in mapped)
        drawn = list(model.iter_rows(images, crops=1, maps=True))
    return Looked(
        scores=dict(zip(references, scores["score"].tolist(), strict=True)),
        maps={
            image_id: (row["degradation_map"], row["quality_map"])
            for image_id, row in zip(mapped, drawn, strict=True)
        },
    )


def judged_strip(reader: ShardReader, strip: Strip, looked: Looked) -> list[Judged]:
    """One row of Figure 5; the reference, which nobody judged, with the model's score only."""
    judged = []
    if strip.reference is not None:
        judged.append(
            Judged(
                image_HWC=_picture(reader.read_reference(strip.reference)),
                predicted=looked.scores[strip.reference],
                name=f"reference {strip.reference}",
            )
        )
    for image in strip.images:
        judged.append(
            Judged(
                image_HWC=_picture(reader.read(image["image_id"])),
                given=image["given"],
                predicted=image["score"],
                name=describe(image) or image["name"],
            )
        )
    return judged


def mapped_row(reader: ShardReader, image: Image, looked: Looked) -> Mapped:
    """One row of Figure 6."""
    degradation_HW, quality_HW = looked.maps[image["image_id"]]
    return Mapped(
        image_HWC=_picture(reader.read(image["image_id"])),
        degradation_HW=degradation_HW,
        quality_HW=quality_HW,
        name=describe(image) or image["name"],
    )


def outlier(reader: ShardReader, image: Image) -> Outlier:
    """A test image with both scores and what was done to it."""
    return Outlier(
        name=image["name"],
        predicted=image["score"],
        given=image["given"],
        image_HWC=_picture(reader.read(image["image_id"])),
        note=describe(image),
    )


def small_gallery(image: Mapping[str, Any], degrade: DegradeConfig) -> np.ndarray:
    """The operators that a chain draws from, on one picture.

    Args:
        image: a reader's row with `bytes`.
        degrade: names set and levels.
    """
    names = [name for group in SETS[degrade.set].values() for name in group]
    return gallery(
        decode(image["bytes"]),
        operators=names,
        levels=degrade.levels,
        tile=96,
        context=192,
        columns=2,
    )


def small_chains(image: Mapping[str, Any], degrade: DegradeConfig) -> np.ndarray:
    """Random chains as training draws them, on one picture; as for `small_gallery`."""
    return chain_gallery(decode(image["bytes"]), degrade, tile=144, context=192, columns=8)


def _picture(row: Mapping[str, Any]) -> np.ndarray:
    image_HWC = decode(row["bytes"])
    height, width = image_HWC.shape[:2]
    if max(height, width) <= SIDE:
        return image_HWC
    scale = SIDE / max(height, width)
    return resize(image_HWC, max(round(width * scale), 1), max(round(height * scale), 1))
