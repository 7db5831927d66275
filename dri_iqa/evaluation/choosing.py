"""Which test images a report shows: chosen by given scores and degradations, never by how well they
were predicted; but for the worst ones, which are chosen by that alone.

An image here is a row with `image_id`, `name`, `score` (predicted) and `given` in label units, and
`reference`, `type`, `level`, `recipe`, `subset`, each None where it is unknown.

Shape suffixes: N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Image = Mapping[str, Any]
SEVERAL = "several operators"
"""What an image with more than one degradation is counted under."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of Figure 5: versions of one scene, best first."""

    reference: str | None
    """Name of the reference, which stands first; None where the data set has none."""
    images: tuple[Image, ...]


def choose_strips(
    images: Sequence[Image], *, higher_is_better: bool, rows: int = 2, pictures: int = 6
) -> list[Strip]:
    """Rows of `pictures` pictures, evenly spread over given scores (paper Fig. 5).

    With references, a row is one reference and versions of it; taken are those with most versions,
    and of these the ones whose given scores spread most. Without, a row is one subset.
    """
    by = "reference" if any(image["reference"] is not None for image in images) else "subset"
    scenes: dict[str, list[Image]] = {}
    for image in images:
        if by == "subset" or image["reference"] is not None:
            scenes.setdefault(image[by] or "", []).append(image)

    def rank(item: tuple[str, list[Image]]) -> tuple[int, float, str]:
        return -len(item[1]), -float(np.ptp([image["given"] for image in item[1]])), item[0]

    count = pictures - 1 if by == "reference" else pictures
    strips = []
    for name, members in sorted(scenes.items(), key=rank)[:rows]:
        ordered = _by_quality(members, higher_is_better)[::-1]
        places = np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))
        shown = tuple(ordered[place] for place in places)
        strips.append(Strip(reference=name if by == "reference" else None, images=shown))
    return strips


def choose_mapped(
    images: Sequence[Image], strip: Strip, *, higher_is_better: bool, rows: int = 4
) -> list[Image]:
    """Bad images with different degradations, of one content where there are references (paper
    Fig. 6).
    """
    if strip.reference is not None:
        images = [image for image in images if image["reference"] == strip.reference]
    ordered = _by_quality(images, higher_is_better)
    first: dict[str, Image] = {}
    for image in sorted(ordered, key=lambda image: image["type"] is None):  # single ones first
        first.setdefault(image["type"] or image["recipe"] or image["subset"] or "", image)
    others = [image for image in ordered if image not in first.values()]
    return [*first.values(), *others][:rows]


def worst(images: Sequence[Image], count: int = 8) -> list[Image]:
    """The images with the largest errors, largest first."""
    return sorted(images, key=lambda image: -abs(image["score"] - image["given"]))[:count]


def describe(image: Image) -> str:
    """What was done to an image, as far as it is known: "jpeg 3", a recipe, or nothing."""
    if image["type"] is None:
        return image["recipe"] or ""
    return image["type"] if image["level"] is None else f"{image['type']} {image['level']:g}"


def type_rows(images: Sequence[Image]) -> list[dict[str, Any]]:
    """Errors by distortion type, largest first; no rows where no type is known.

    Returns:
        Rows with type, images, rmse and mean_error (predicted minus given), in label units.
    """
    errors: dict[str, list[float]] = {}
    for image in images:
        errors.setdefault(image["type"] or SEVERAL, []).append(image["score"] - image["given"])
    if set(errors) <= {SEVERAL}:
        return []
    rows = [
        {
            "type": name,
            "images": len(error_N),
            "rmse": float(np.sqrt(np.mean(np.square(error_N)))),
            "mean_error": float(np.mean(error_N)),
        }
        for name, error_N in sorted(errors.items())
    ]
    return sorted(rows, key=lambda row: -row["rmse"])


def _by_quality(images: Sequence[Image], higher_is_better: bool) -> list[Image]:
    """Worst first; the order of equals does not depend on the order given."""
    sign = 1 if higher_is_better else -1
    return sorted(images, key=lambda image: (sign * image["given"], image["image_id"]))
