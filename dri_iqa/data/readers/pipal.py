"""PIPAL: 40 distortions and the outputs of restoration algorithms, with Elo-like scores."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from dri_iqa.data.readers.files import Files
from dri_iqa.data.records import DataError, DataSet, Record

_NAME = re.compile(r"^(a\d+)_(\d\d)_(\d\d)\.bmp$", re.IGNORECASE)
_LABELS = re.compile(
    r"(^|/)(train_label/a\d+\.txt|[^/]*(pipal21_?val|val21)[^/]*\.txt|val_label/[^/]+\.txt)$"
)


def read_pipal(root: str, *, protocol: Literal["challenge", "split802"] = "challenge") -> DataSet:
    """PIPAL: `Train_Ref/`, `Distortion_1..4/` or `Train_Dist/`, `Train_Label/A0001.txt ...`.

    The public validation part of 2021 is read where its images (`Val_Ref/`, `Val_Dist/`) and its
    labels (`pipal21_val.txt`, as MANIQA ships it, or `Val_Label/`) are there. Lines are
    "A0001_00_00.bmp,1520.0648", sometimes with a blank after the comma. Higher is better.

    Args:
        root: the folder above these.
        protocol: `challenge` marks the training references `train` and the 2021 validation part
            `test`, the regime of the paper's Table 3: restoration algorithms are known, contents
            are not. `split802` gives no split of its own, for a random one by reference inside the
            training part, an easier task.

    Raises:
        DataError: no labels, an unreadable line, or validation labels without training labels.
    """
    files = Files(root, "pipal")
    where: dict[str, str] = {}
    for path in files.images():
        where.setdefault(path.rpartition("/")[2].lower(), path)
    labels = [path for path in sorted(files.stats) if _LABELS.search(path.lower())]
    if not any("train_label/" in path.lower() for path in labels):
        raise DataError(
            f"pipal: {root} has no Train_Label/A0001.txt\nSet data.root to the folder above it."
        )
    records: list[Record] = []
    for path in labels:
        validation = "train_label/" not in path.lower()
        if validation and protocol == "split802":
            continue
        for number, line in enumerate(files.read(path).decode("latin-1").splitlines(), start=1):
            if line.strip():
                records.append(_record(files, where, line, f"{path}, line {number}", validation))
    if protocol == "split802":
        records = [replace(record, split=None) for record in records]
    names = sorted({record.group for record in records})
    return DataSet(
        name="pipal",
        records=tuple(sorted(records, key=lambda item: item.name)),
        references=tuple(files.record(where.get(n, f"Train_Ref/{n}"), shown=n) for n in names),
        root=root,
        licence="free for research (github.com/HaomingCai/PIPAL-dataset)",
        whole=(23_200, 24_200) if protocol == "challenge" else (23_200,),
        whole_references=(200, 225) if protocol == "challenge" else (200,),
        scale=(500, 2500),  # Elo ratings begin at 1400 and have no bounds of their own
        notes=f"Elo-like MOS, protocol {protocol}; some distortions are not aligned with the"
        " reference; references come from DIV2K and Flickr2K",
    )


def _record(files: Files, where: dict[str, str], line: str, place: str, validation: bool) -> Record:
    name, _, score = (part.strip() for part in line.partition(","))
    match = _NAME.match(name)
    try:
        value = float(score)
    except ValueError:
        match = None
        value = 0.0
    if not match:
        raise DataError(
            f"pipal: {place} is {line.strip()[:60]!r}\n"
            'Expected a line like "A0001_00_00.bmp,1520.0648".'
        )
    folder = "Val_Dist" if validation else "Train_Dist"
    reference = f"{match[1]}.bmp".lower()
    return files.record(
        where.get(name.lower(), f"{folder}/{name}"),
        shown=name.lower(),
        score=value,
        group=reference,
        reference=reference,
        # The second number is the group of algorithms, the third the algorithm; it stands where
        # other sets have a level, but has no order.
        type=f"pipal_{match[2]}",
        level=int(match[3]),
        subset=f"pipal_{match[2]}",
        split="test" if validation else "train",
    )
