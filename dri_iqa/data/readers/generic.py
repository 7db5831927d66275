"""A user's own images: a CSV file with scores, or a folder of pictures without."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.records import DataError, DataSet, Record

IMAGE = ("image", "image_name", "image name", "filename", "file", "path")
SCORE = ("score", "mos")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read_csv(
    root: str,
    *,
    file: str | None = None,
    image_column: str | None = None,
    score_column: str | None = None,
    higher_is_better: bool = True,
    name: str = "csv",
) -> DataSet:
    """A CSV file with the columns `image,score[,ref|group|scene,type,level,recipe,subset,split]`.

    `image` and `ref` are paths relative to the root; they may not leave it. Rows that share a
    reference, a group or a scene stay together in splits; without such a column every image is a
    group of its own. A missing score is kept as missing and set aside at ingest.

    Args:
        root: folder or URI that holds the CSV file and the images.
        file: the CSV file below the root; by default labels.csv, or the only one there.
        image_column: name of the column with the paths, where it is none of the usual ones.
        score_column: name of the column with the scores.
        higher_is_better: direction of the scores.
        name: the data set's name.

    Raises:
        DataError: nothing there, a column missing, a path outside the root, a file missing.
    """
    files = Files(root, name)
    table_path = files.first(file) if file else _only_csv(files)
    frame = files.table(table_path)
    where = f"{name}: {table_path}"
    image = column(frame, (image_column,) if image_column else IMAGE, "image", where)
    score = column(frame, (score_column,) if score_column else SCORE, "score", where)
    if frame.empty:
        raise DataError(f"{where} has no rows\nAdd one row for each image.")
    below = table_path.rpartition("/")[0]
    optional = {str(key).lower(): str(key) for key in frame.columns}
    records: list[Record] = []
    references: dict[str, Record] = {}
    for number, row in enumerate(frame.to_dict("records"), start=2):
        cell = {key: _text(row[real]) for key, real in optional.items()}
        shown = _text(row[image])
        if shown is None:
            raise DataError(f"{where}, line {number}: no image\nFill in the column {image}.")
        reference = cell.get("ref") or cell.get("reference")
        if reference:
            found = _locate(files, below, reference)
            references.setdefault(found, files.record(found))
            reference = found
        path = _locate(files, below, shown)
        group = cell.get("group") or cell.get("scene") or reference or path
        records.append(
            files.record(
                path,
                score=_number(row[score], f"{where}, line {number}", score),
                group=group,
                reference=reference,
                type=cell.get("type"),
                level=_level(cell.get("level"), f"{where}, line {number}"),
                recipe=cell.get("recipe"),
                subset=cell.get("subset"),
                split=_split(cell.get("split"), f"{where}, line {number}"),
            )
        )
    return DataSet(
        name=name,
        records=tuple(records),
        references=tuple(references[key] for key in sorted(references)),
        higher_is_better=higher_is_better,
        root=root,
        notes=f"scores from {table_path}",
    )


def read_folder(root: str, *, name: str = "folder") -> DataSet:
    """Every image below a folder, without scores: clean images for stage 1, or images to score.

    Raises:
        DataError: the folder is missing or holds no images.
    """
    files = Files(root, name)
    paths = files.images()
    if not paths:
        raise DataError(f"{name}: {root} holds no images\nSet data.root to a folder of pictures.")
    subsets = {path: path.partition("/")[0] if "/" in path else None for path in paths}
    return DataSet(
        name=name,
        records=tuple(files.record(path, subset=subsets[path]) for path in paths),
        score_kind="none",
        root=root,
    )


def split_name(value: Any, where: str) -> str | None:
    """train, val or test from the usual spellings."""
    return _split(_text(value), where)


def _only_csv(files: Files) -> str:
    if found := files.find("labels.csv"):
        return found
    tables = [path for path in sorted(files.stats) if path.lower().endswith(".csv")]
    if len(tables) == 1:
        return tables[0]
    listed = ", ".join(tables[:4]) + (", ..." if len(tables) > 4 else "")
    raise DataError(
        f"{files.name}: {files.root} has "
        + (f"several CSV files ({listed})" if tables else "no CSV file")
        + "\nName the one with the scores: data.options.file=FILE."
    )


def _locate(files: Files, below: str, path: str) -> str:
    """Paths count from the CSV file's folder, or else from the root."""
    inside = files.inside(f"{below}/{path}" if below and not path.startswith("/") else path)
    found = files.find(inside)
    if found is None and below:
        found = files.find(path)
    return found or inside


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _number(value: Any, where: str, name: str) -> float | None:
    text = _text(value)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: {name} is {text!r}, a number was expected\nFix it.") from None


def _level(text: str | None, where: str) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{where}: level is {text!r}, a whole number was expected\nCorrect the cell."
        ) from None


def _split(text: str | None, where: str) -> str | None:
    if text is None:
        return None
    if text.lower() not in SPLITS:
        raise DataError(f"{where}: split is {text!r}\nWrite train, val or test.")
    return SPLITS[text.lower()]
