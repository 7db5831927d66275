"""What a protocol takes for granted about a data set, checked against what was ingested."""

from __future__ import annotations

from typing import Literal

from dri_iqa.data.manifest import Manifest
from dri_iqa.data.records import DataError


def check_rules(
    manifest: Manifest,
    *,
    split_by: Literal["reference", "scene", "image"] | None = None,
    higher_is_better: bool | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Refuse a data set that is not what a protocol's table would be taken for.

    Args:
        manifest: of the ingested set.
        split_by: what must not lie on both sides of a split: `reference` wants a reference for some
            image, `image` wants groups of one image each.
        higher_is_better: direction of the scores.
        size: (width, height) of every image in pixels.

    Raises:
        DataError: the first rule that does not hold, with both values.
    """
    if higher_is_better is not None and manifest.higher_is_better != higher_is_better:
        words = {True: "higher is better", False: "lower is better"}
        raise DataError(
            f"{manifest.name}: its scores say {words[manifest.higher_is_better]}, "
            f"the protocol expects {words[higher_is_better]}\n"
            "check the label file, or set data.rules.higher_is_better"
        )
    counts = manifest.counts
    found = None
    if split_by == "reference" and not counts["references"]:
        found = "has no references"
    if split_by == "image" and counts["groups"] != counts["images"]:
        found = f"has {counts['images']} images in {counts['groups']} groups"
    if found:
        raise DataError(
            f"{manifest.name} {found}, the protocol splits it by {split_by}\n"
            "check the data, or set data.rules.split_by"
        )
    if size is not None:
        table = manifest.images()
        sizes = zip(*(table[name].to_pylist() for name in ("name", "width", "height")), strict=True)
        for name, *own in sizes:
            if tuple(own) != tuple(size):
                raise DataError(
                    f"{manifest.name}: {name} is {own[0]}x{own[1]}, the protocol expects "
                    f"{size[0]}x{size[1]}\ngive the data set in that size, or set data.rules.size"
                )
