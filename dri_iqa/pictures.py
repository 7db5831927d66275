"""Pictures to where their crops lie: reading, decoding ahead, placing.

Nothing here raises because of a picture: what cannot be read becomes a reason.

Shape suffixes: C channels, H height, W width, K crops of one picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dri_iqa.ahead import ahead
from dri_iqa.crops import crop_positions
from dri_iqa.images import ImageError, content_digest, decode, resize_short_side

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray"
Loaded: TypeAlias = "tuple[np.ndarray, np.ndarray] | str"
"""Pixels and crop positions, or the reason of failure."""


def load_ahead(
    images: Iterable[Picture], crop: int, crops: str | int, exif_transpose: bool, at_once: int
) -> Iterator[tuple[str, Loaded]]:
    """Pictures as they are scored, in the order given, decoded by a few threads.

    Args:
        images: may be a generator; at most `at_once` of them are taken before they are needed.
        crop: side of the crops.
        crops: see `crop_positions`.
        exif_transpose: turn pictures upright as their EXIF orientation says.
        at_once: pictures in memory.

    Yields:
        Name (path, or position in the input), and pixels with crop positions, or why there are none.
    """
    threads = min(4, at_once, os.cpu_count() or 1)
    found = ahead(
        lambda item: _load(item[1], crop, crops, exif_transpose),
        enumerate(images),
        at_once=at_once,
        threads=threads,
    )
    for (index, item), loaded in found:
        yield _name(item, index), loaded()


def _name(item: Picture, index: int) -> str:
    return str(item) if isinstance(item, str | os.PathLike) else str(index)


def _load(item: Picture, crop: int, crops: str | int, exif_transpose: bool) -> Loaded:
    try:
        return place_crops(read_pixels(item, exif_transpose), crop, crops)
    except (ImageError, OSError, ValueError) as error:
        return reason(error)


def reason(error: Exception) -> str:
    """Why a picture could not be read, in a few words for its row."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, OSError):
        return (error.strerror or str(error) or "not readable").lower()
    return str(error).splitlines()[0]  # storage's own errors: the first line says what happened


def place_crops(
    image_HWC: np.ndarray, crop: int, crops: str | int
) -> tuple[np.ndarray, np.ndarray]:
    """A picture as it is scored (enlarged where it is smaller than a crop), and where its crops lie.

    Returns:
        uint8 pixels, and (K, 2): x of the left column and y of the top row of each crop.

    Raises:
        ImageError: too narrow, or too large to cover.
        ValueError: an unknown policy.
    """
    digest = content_digest(image_HWC)
    image_HWC = resize_short_side(image_HWC, crop)
    height, width = image_HWC.shape[:2]
    return image_HWC, crop_positions(width, height, crop, crops, digest)


def read_pixels(item: Picture, exif_transpose: bool) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a path or URI, encoded bytes, or an array, which is returned as it is.

    Raises:
        ImageError: not a usable picture, with the reason.
        OSError: a file that cannot be read.
        storage.StorageError: likewise on an object store.
    """
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
            got = f"{item.dtype} {item.shape}"
            raise ImageError(f"not an image array: got {got}, expected uint8 (height, width, 3)")
        return item
    if isinstance(item, bytes | bytearray | memoryview):
        return decode(bytes(item), exif_transpose=exif_transpose)
    if isinstance(item, str | os.PathLike):
        return decode(_read(str(item)), exif_transpose=exif_transpose)
    raise ImageError(f"not an image: got {type(item).__name__}, expected path, bytes or array")


def _read(path: str) -> bytes:
    if "://" in path:
        from dri_iqa import storage

        return storage.read_bytes(path)
    return Path(path).expanduser().read_bytes()
