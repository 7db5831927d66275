"""KonIQ-10k: 10,073 photographs with authentic distortions."""

from __future__ import annotations

from typing import Literal

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.readers.generic import split_name
from dri_iqa.data.records import DataSet

SCORES = "koniq10k_scores_and_distributions.csv"
SETS = "koniq10k_distributions_sets.csv"


def read_koniq10k(root: str, *, size: Literal["512x384", "1024x768"] = "512x384") -> DataSet:
    """KonIQ-10k as distributed: `512x384/` or `1024x768/` and one or both of its label files.

    Scores: `MOS_zscore` of the scores file, or else `MOS` of the sets file; both lie on 0..100. The
    column `MOS` of the scores file lies on 1..5 and is not used. The official split is the column
    `set` of the sets file, where that is there.

    Args:
        root: the folder with the label file and the image folder, or the one above it.
        size: which copy of the images; 512x384 (the aspect is kept) is what leaves 25 crops of 224
            pixels meaningful. Where only 1024x768 is there, ingest shrinks it.

    Raises:
        DataError: files or columns missing.
    """
    files = Files(root, "koniq10k")
    base = files.base(SCORES, SETS)
    scores_path = files.find(f"{base}/{SCORES}" if base else SCORES)
    sets_path = files.find(f"{base}/{SETS}" if base else SETS)
    path = scores_path or sets_path or files.first(SCORES, SETS, base=base)
    frame = files.table(path)
    where = f"koniq10k: {path}"
    image = column(frame, ("image_name", "image"), "image", where)
    score = column(frame, ("MOS_zscore",) if path == scores_path else ("MOS",), "score", where)
    splits: dict[str, str | None] = {}
    if sets_path:
        sets = files.table(sets_path)
        names = column(sets, ("image_name", "image"), "image", f"koniq10k: {sets_path}")
        part = column(sets, ("set",), "split", f"koniq10k: {sets_path}")
        splits = {
            str(name): split_name(value, f"koniq10k: {sets_path}")
            for name, value in zip(sets[names], sets[part], strict=True)
        }
    available = [name for name in ("512x384", "1024x768") if _holds(files, base, name)]
    folder = size if size in available or not available else available[0]
    below = f"{base}/{folder}" if base else folder
    records = [
        files.record(
            f"{below}/{str(name).strip()}",
            shown=str(name).strip(),
            score=float(value),
            split=splits.get(str(name)),
        )
        for name, value in zip(frame[image], frame[score], strict=True)
    ]
    return DataSet(
        name="koniq10k",
        records=tuple(sorted(records, key=lambda item: item.name)),
        root=root,
        short_side=384 if (size, folder) == ("512x384", "1024x768") else None,
        licence="free for research (database.mmsp-kn.de)",
        whole=(10_073,),
        scale=(0, 100),
        notes=f"{score} of {path.rpartition('/')[2]}, images {size}",
    )


def _holds(files: Files, base: str, folder: str) -> bool:
    start = (f"{base}/{folder}/" if base else f"{folder}/").lower()
    return any(path.lower().startswith(start) for path in files.stats)
