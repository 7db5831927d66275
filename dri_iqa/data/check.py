"""What is wrong with a data set before a job reads it: counts, files, scores, duplicates, scenes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from dri_iqa import storage
from dri_iqa.data.readers.files import Files
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.scenes import group_scenes, thumbnail
from dri_iqa.images import ImageError, decode

Pass = Callable[[Iterable[Record], int], Iterable[Record]]
"""Shows progress over a number of records while they pass."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a check; every list holds names."""

    images: int
    references: int
    whole: bool
    """Whether the counts are those of a complete copy, where these are known."""
    missing: tuple[str, ...]
    """Listed, but no such file."""
    surplus: tuple[str, ...]
    """Pictures beside the listed ones that no label names."""
    unscored: tuple[str, ...]
    """Without a finite score in a scored set."""
    off_scale: tuple[str, ...]
    """Scores outside the set's scale."""
    span: tuple[float, float] | None
    """Smallest and largest finite score."""
    copies: tuple[tuple[str, ...], ...]
    """Files of the same content."""
    crossing: tuple[tuple[str, ...], ...]
    """Of these, the ones whose groups differ: a split could put them on both sides."""
    unreadable: tuple[str, ...]
    """Not decoded; only where scenes were looked for, as that needs the pixels."""
    scenes: dict[str, int] | None
    """Scene of every image, where scenes were looked for."""

    @property
    def faulty(self) -> bool:
        """Whether anything stands against using the set; a surplus file alone does not."""
        lists = (self.missing, self.unscored, self.off_scale, self.unreadable)
        return not self.whole or any(lists) or bool(self.crossing)


def check_dataset(
    dataset: DataSet, *, scenes: bool = False, passing: Pass | None = None
) -> Findings:
    """Read every file of a data set once and compare what is there with what should be.

    Args:
        dataset: as a reader found it.
        scenes: also look for near-duplicate photographs, see `dri_iqa.data.scenes`.
        passing: called with the records that are read and their number.

    Raises:
        StorageError: the data could not be read.
    """
    records = dataset.records
    everything = [*records, *dataset.references]
    present = [r for r in everything if r.data is not None or r.size is not None]
    counted = {record.name for record in records}
    digests: dict[str, list[Record]] = defaultdict(list)
    thumbnails: dict[str, np.ndarray] = {}
    unreadable: list[str] = []
    for record in passing(present, len(present)) if passing else present:
        data = record.data
        if data is None:
            data = storage.read_bytes(storage.join(dataset.root or "", record.path or ""))
        digests[hashlib.sha256(data).hexdigest()].append(record)
        if scenes and record.name in counted:
            try:
                thumbnails[record.name] = thumbnail(decode(data))
            except ImageError as error:
                unreadable.append(f"{record.name} ({error})")
    same = [twins for twins in digests.values() if len(twins) > 1]
    scores = {r.name: r.score for r in records if r.score is not None and math.isfinite(r.score)}
    low, high = dataset.scale or (-math.inf, math.inf)
    return Findings(
        images=len(records),
        references=len(dataset.references),
        whole=(not dataset.whole or len(records) in dataset.whole)
        and (not dataset.whole_references or len(dataset.references) in dataset.whole_references),
        missing=tuple(r.name for r in everything if r.data is None and r.size is None),
        surplus=_surplus(dataset),
        unscored=tuple(
            r.name for r in records if dataset.score_kind != "none" and r.name not in scores
        ),
        off_scale=tuple(
            f"{name} ({score:g})" for name, score in scores.items() if not low <= score <= high
        ),
        span=(min(scores.values()), max(scores.values())) if scores else None,
        copies=tuple(tuple(r.name for r in twins) for twins in same),
        crossing=tuple(
            tuple(r.name for r in twins) for twins in same if len({r.group for r in twins}) > 1
        ),
        unreadable=tuple(unreadable),
        scenes=_scenes(thumbnails) if scenes else None,
    )


def scene_table(dataset: DataSet, scenes: dict[str, int]) -> str:
    """A CSV file with a column `scene` that the reader `csv` takes in place of the set's own labels."""
    lines = ["image,score,scene,subset"]
    for record in dataset.records:
        if record.name in scenes:
            cells = (record.path, record.score, scenes[record.name], record.subset)
            lines.append(",".join("" if cell is None else _cell(str(cell)) for cell in cells))
    return "\n".join(lines) + "\n"


def largest_scenes(scenes: dict[str, int], count: int = 3) -> list[int]:
    """Sizes of the largest scenes."""
    return [size for _, size in Counter(scenes.values()).most_common(count)]


def _scenes(thumbnails: dict[str, np.ndarray]) -> dict[str, int]:
    if not thumbnails:
        return {}
    numbers = group_scenes(np.stack(list(thumbnails.values())))
    return dict(zip(thumbnails, numbers.tolist(), strict=True))


def _surplus(dataset: DataSet) -> tuple[str, ...]:
    """Pictures in the folders that the set uses; other folders of an archive are none of our business."""
    if dataset.root is None:
        return ()
    used = {r.path for r in (*dataset.records, *dataset.references) if r.path}
    folders = {path.rpartition("/")[0] for path in used}
    known = used | set(dataset.left_out)
    found = Files(dataset.root, dataset.name).images()
    return tuple(p for p in found if p.rpartition("/")[0] in folders and p not in known)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text
