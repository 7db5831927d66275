"""Small data sets in memory, and their ingest."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dri_iqa.data.manifest import Manifest
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.shards import plan_shards, write_shard


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A random image that compresses."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image_HWC: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, kind, **options)
    return stream.getvalue()


def scored(count: int = 10, references: int = 2) -> DataSet:
    """A scored set in memory; image i belongs to reference i mod `references`."""
    return DataSet(
        name="toy",
        records=tuple(
            Record(
                name=f"i{number}",
                data=encoded(picture(number)),
                score=float(number),
                group=f"r{number % references}",
                reference=f"r{number % references}",
                type="jpeg",
                level=1 + number % 5,
                subset="a" if number % 3 else "b",
            )
            for number in range(count)
        ),
        references=tuple(
            Record(name=f"r{number}", data=encoded(picture(100 + number)), group=f"r{number}")
            for number in range(references)
        ),
    )


def ingest(dataset: DataSet, directory: Path, max_bad: float = 0.01, **options: int) -> Manifest:
    plans = plan_shards(dataset, **options)
    results = [write_shard(plan, str(directory)) for plan in plans]
    return publish(str(directory), dataset, results, max_bad=max_bad)
