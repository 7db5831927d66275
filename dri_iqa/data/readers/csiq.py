"""CSIQ: 30 references, six distortion types at three to five levels."""

from __future__ import annotations

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.readers.tables import sheet
from dri_iqa.data.records import DataError, DataSet, Record

WORKBOOK, TEXT = "csiq.DMOS.xlsx", "csiq_label.txt"

# Name in the workbook: (folder and word in the file names, operator here).
KINDS = {
    "noise": ("AWGN", "white_noise"),
    "blur": ("BLUR", "gaussian_blur"),
    "contrast": ("contrast", "linear_contrast"),
    "fnoise": ("fnoise", "pink_noise"),
    "jpeg": ("JPEG", "jpeg"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}
_BY_WORD = {word.lower(): (word, kind) for word, kind in KINDS.values()}


def read_csiq(root: str) -> DataSet:
    """CSIQ: `src_imgs/`, `dst_imgs/<type>/<name>.<TYPE>.<level>.png` and one of two label files.

    Labels: the authors' `csiq.DMOS.xlsx` (sheet all_by_image), or the converted `csiq_label.txt`
    with lines such as "1600.AWGN.1.png 0.061989". Scores are DMOS on 0..1: lower is better. Images
    may also lie in one folder (`dst_imgs_all`).

    Args:
        root: the folder of the label file, or the one above it.

    Raises:
        DataError: files or columns missing, or an unknown distortion type.
    """
    files = Files(root, "csiq")
    base = files.base(TEXT, WORKBOOK)
    text = files.find(f"{base}/{TEXT}" if base else TEXT)
    path = text or files.first(WORKBOOK, TEXT, base=base)
    rows = _text_rows(files, path) if text else _workbook_rows(files, path)
    prefix = f"{base}/" if base else ""
    records: list[Record] = []
    for source, word, level, score in rows:
        if word.lower() not in _BY_WORD:
            raise DataError(
                f"csiq: {path} has the distortion type {word!r}\n"
                f"Known: {', '.join(name for name, _ in KINDS.values())}."
            )
        folder, kind = _BY_WORD[word.lower()]
        name = f"{source}.{folder}.{level}.png"
        nested = f"{prefix}dst_imgs/{folder}/{name}"
        flat = [f"{prefix}dst_imgs_all/{name}", f"{prefix}dst_imgs/{name}"]
        places = [place for place in (nested, *flat) if files.find(place)]
        records.append(
            files.record(
                places[0] if places else nested,
                shown=name,
                score=score,
                group=f"{source}.png",
                reference=f"{source}.png",
                type=kind,
                level=level,
                subset=folder,
            )
        )
    return DataSet(
        name="csiq",
        records=tuple(sorted(records, key=lambda item: item.name)),
        references=tuple(
            files.record(f"{prefix}src_imgs/{name}", shown=name)
            for name in sorted({record.group for record in records})
        ),
        higher_is_better=False,
        root=root,
        licence="free for research (vision.eng.shizuoka.ac.jp/csiq)",
        notes="DMOS on 0..1",
        whole=(866,),
        whole_references=(30,),
        scale=(0, 1),
    )


def _text_rows(files: Files, path: str) -> list[tuple[str, str, int, float]]:
    rows = []
    for number, line in enumerate(files.read(path).decode("latin-1").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        parts = words[0].rsplit(".", 3)
        if len(words) != 2 or len(parts) != 4 or not parts[2].isdigit():
            raise DataError(
                f"csiq: {path}, line {number} is {line.strip()[:60]!r}\n"
                'Expected a line like "1600.AWGN.1.png 0.061989".'
            )
        rows.append((parts[0].lower(), parts[1], int(parts[2]), float(words[1])))
    return rows


def _workbook_rows(files: Files, path: str) -> list[tuple[str, str, int, float]]:
    frame = sheet(files, path, "dst_type", "all_by_image")
    where = f"csiq: {path}"
    image, kind, level, score = (
        column(frame, (name,), what, where)
        for name, what in (
            ("image", "image"),
            ("dst_type", "type"),
            ("dst_lev", "level"),
            ("dmos", "score"),
        )
    )
    rows = []
    for row in frame.dropna(subset=[image, score]).to_dict("records"):
        source = row[image]
        name = str(int(source)) if isinstance(source, int | float) else str(source).strip().lower()
        word = str(row[kind]).strip()
        rows.append(
            (name, KINDS.get(word.lower(), (word, ""))[0], int(row[level]), float(row[score]))
        )
    return rows
