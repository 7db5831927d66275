"""Data sets by name: which reader reads which."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from dri_iqa import storage
from dri_iqa.config import nearest
from dri_iqa.data.limit import take
from dri_iqa.data.readers.biq2021 import read_biq2021
from dri_iqa.data.readers.csiq import read_csiq
from dri_iqa.data.readers.generic import read_csv, read_folder
from dri_iqa.data.readers.kadid import read_kadid10k
from dri_iqa.data.readers.koniq import read_koniq10k
from dri_iqa.data.readers.live import read_live, read_livec
from dri_iqa.data.readers.pipal import read_pipal
from dri_iqa.data.readers.pristine import read_df2k, read_div2k, read_flickr2k
from dri_iqa.data.readers.spaq import read_spaq
from dri_iqa.data.readers.tid2013 import read_tid2013
from dri_iqa.data.records import DataError, DataSet, Record
from dri_iqa.data.sample import read_sample

READERS: dict[str, Callable[..., DataSet]] = {
    "sample": read_sample,
    "csv": read_csv,
    "folder": read_folder,
    "biq2021": read_biq2021,
    "kadid10k": read_kadid10k,
    "koniq10k": read_koniq10k,
    "live": read_live,
    "livec": read_livec,
    "pipal": read_pipal,
    "tid2013": read_tid2013,
    "csiq": read_csiq,
    "spaq": read_spaq,
    "div2k": read_div2k,
    "flickr2k": read_flickr2k,
    "df2k": read_df2k,
}
"""Reader of every data set; all but `sample` take the root first, options by keyword."""


def read_dataset(
    name: str,
    root: str | None,
    *,
    limit: int | None = None,
    seed: int = 0,
    exclude: str | None = None,
    **options: Any,
) -> DataSet:
    """The records of a data set; no image is opened.

    Args:
        name: one of `READERS`.
        root: folder or URI of the data; the built-in sample needs none.
        limit: largest number of images; whole groups are kept, spread over subsets and official
            splits in proportion, by a seeded draw.
        seed: of that draw, and of the built-in sample.
        exclude: URI of a text file with one image a line (its name, or the end of its path) that is
            left out, e.g. clean images that a test set's references come from.
        options: the reader's own options, e.g. `score_column` of csv.

    Raises:
        DataError: unknown data set or option, missing root, nothing in it, missing columns, a path
            that leaves the root; two lines, the second says what to do.
    """
    if name not in READERS:
        raise DataError(
            f"unknown data set {name}{nearest(name, list(READERS))}\nKnown: {', '.join(READERS)}."
        )
    reader = READERS[name]
    known = [
        key for key in inspect.signature(reader).parameters if key not in ("root", "name", "limit")
    ]
    for key in options:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise DataError(
                f"{name}: unknown option {key}{nearest(key, known)}\nOptions of {name}: {listed}."
            )
    if name == "sample":
        dataset = reader(**{"seed": seed, **options}, limit=limit)
    elif not root:
        raise DataError(f"{name}: data.root is not set\nSet data.root to the data's folder or URI.")
    else:
        dataset = reader(root, **options)
    _check_found(dataset)
    if exclude:
        dataset = _without(dataset, exclude)
    return take(dataset, limit, seed)


def _without(dataset: DataSet, exclude: str) -> DataSet:
    lines = storage.read_bytes(exclude).decode().splitlines()
    names = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    found: set[str] = set()
    kept: list[Record] = []
    for record in dataset.records:
        pieces = (record.path or record.name).split("/")
        hit = names & {"/".join(pieces[start:]) for start in range(len(pieces))}
        found |= hit
        if not hit:
            kept.append(record)
    if missing := sorted(names - found):
        raise DataError(
            f"{dataset.name}: {exclude} names {len(missing)} images that are not there, for example"
            f" {missing[0]}\nWrite one name, or the end of one path, a line."
        )
    return dataclasses.replace(dataset, records=tuple(kept))


def _check_found(dataset: DataSet) -> None:
    if not dataset.records:
        raise DataError(
            f"{dataset.name}: no images in {dataset.root}\nCheck data.root and the label file."
        )
    if all(record.data is None and record.size is None for record in dataset.records):
        first = dataset.records[0].path
        raise DataError(
            f"{dataset.name}: none of the {len(dataset.records)} listed images is below"
            f" {dataset.root} (for example {first})\nSet data.root to the folder that holds them."
        )
