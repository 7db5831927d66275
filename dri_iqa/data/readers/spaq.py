"""SPAQ: 11,125 photographs taken with smartphones."""

from __future__ import annotations

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.readers.tables import sheet
from dri_iqa.data.records import DataSet

WORKBOOK = "MOS and Image attribute scores.xlsx"


def read_spaq(root: str, *, short_side: int | None = 512) -> DataSet:
    """SPAQ: `TestImage/` and the workbook in `Annotations/` (columns `Image name`, `MOS`).

    Scores are MOS on 0..100, higher is better. The stored pixels are used, whatever orientation
    EXIF gives, as the scores' users do.

    Args:
        root: the archive's folder, or the one above it.
        short_side: images of several megapixels are shrunk at ingest to this short side (512 in
            ARNIQA, 448 in pyiqa); None keeps them.

    Raises:
        DataError: files or columns missing, or openpyxl not installed.
    """
    files = Files(root, "spaq")
    base = files.base(f"Annotations/{WORKBOOK}", WORKBOOK)
    path = files.first(f"Annotations/{WORKBOOK}", WORKBOOK, base=base)
    frame = sheet(files, path, "Image name")
    where = f"spaq: {path}"
    image = column(frame, ("Image name",), "image", where)
    score = column(frame, ("MOS",), "score", where)
    folder = f"{base}/TestImage" if base else "TestImage"
    records = [
        files.record(f"{folder}/{str(name).strip()}", shown=str(name).strip(), score=float(value))
        for name, value in zip(frame[image], frame[score], strict=True)
    ]
    return DataSet(
        name="spaq",
        records=tuple(sorted(records, key=lambda item: item.name)),
        root=root,
        short_side=short_side,
        whole=(11_125,),
        scale=(0, 100),
        licence="free for research (github.com/h4nwei/SPAQ)",
        notes=f"MOS on 0..100, short side {short_side or 'as stored'}",
    )
