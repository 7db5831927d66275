"""BIQ2021: 12,000 photographs of 512x512 pixels with authentic distortions."""

from __future__ import annotations

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.readers.generic import read_csv
from dri_iqa.data.records import DataSet

LICENCE = "free for research and benchmarking (github.com/nisarahmedrana/BIQ2021)"
UPSTREAM = {"train": "Train (Images and MOS).csv", "test": "Test (Images and MOS).csv"}


def read_biq2021(root: str, *, public_split: bool = False) -> DataSet:
    """BIQ2021 in either of two layouts; scores lie on 0..1, higher is better.

    With scenes: `labels.csv` with the columns image, mos, scene, subset. Photographs of one scene
    are near-duplicates of each other, and splits keep them together.

    As published: `Train (Images and MOS).csv`, `Test (Images and MOS).csv` (Image Name, MOS, empty
    columns) and `Images/`. The public split puts near-duplicates on both sides, so it is left alone
    unless asked for; find the scenes first (`dri-iqa data check biq2021 ROOT --group-scenes`).

    The subset (ss01, ss02, ss03) is the prefix of the name. The subsets' mean scores differ
    strongly: report correlations for each.

    Args:
        root: the folder of the label files, or the one above it.
        public_split: use the split as published, to compare with published figures only.

    Raises:
        DataError: files or columns missing.
    """
    files = Files(root, "biq2021")
    base = files.base("labels.csv", UPSTREAM["train"], UPSTREAM["test"])
    labels = f"{base}/labels.csv" if base else "labels.csv"
    if files.find(labels):
        read = read_csv(root, file=labels, name="biq2021")
        return DataSet(
            name="biq2021",
            records=tuple(sorted(read.records, key=lambda item: item.name)),
            root=root,
            licence=LICENCE,
            notes="scores from labels.csv; groups are scenes of near-identical photographs",
            scale=(0, 1),
        )
    records = []
    files.first(*UPSTREAM.values(), base=base)
    for split, name in UPSTREAM.items():
        path = files.find(f"{base}/{name}" if base else name)
        if path is None:
            continue
        frame = files.table(path)
        where = f"biq2021: {path}"
        image = column(frame, ("Image Name", "image", "image_name"), "image", where)
        score = column(frame, ("MOS",), "score", where)
        for shown, value in zip(frame[image], frame[score], strict=True):
            if not isinstance(shown, str):  # trailing empty lines
                continue
            record = files.record(
                f"{base}/Images/{shown.strip()}" if base else f"Images/{shown.strip()}",
                shown=shown.strip(),
                score=float(value),
                subset=shown.strip().partition("_")[0].lower(),
                split=split if public_split else None,
            )
            records.append(record)
    return DataSet(
        name="biq2021",
        records=tuple(sorted(records, key=lambda item: item.name)),
        root=root,
        licence=LICENCE,
        notes="the public split shares scenes between train and test: find the scenes first",
        whole=(12_000,),
        scale=(0, 1),
    )
