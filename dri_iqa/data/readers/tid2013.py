"""TID2013: 25 references, 24 distortion types, 5 levels."""

from __future__ import annotations

import re

from dri_iqa.data.readers.files import Files
from dri_iqa.data.records import DataError, DataSet

# The archive's numbers 1..24; names of operators here where the same operator exists.
TYPES = (
    *("white_noise", "colour_component_noise", "correlated_noise", "masked_noise"),
    *("high_frequency_noise", "impulse_noise", "quantisation", "gaussian_blur", "denoise"),
    *("jpeg", "jpeg2000", "jpeg_transmission", "jpeg2000_transmission"),
    *("non_eccentricity_patch", "colour_block", "mean_shift", "linear_contrast"),
    *("saturation_change", "multiplicative_noise", "comfort_noise", "noisy_compression"),
    *("colour_quantisation", "chromatic_aberration", "sparse_sampling"),
)
LABELS = "mos_with_names.txt"
_NAME = re.compile(r"^(i\d+)_(\d+)_(\d+)\.bmp$")


def read_tid2013(root: str) -> DataSet:
    """TID2013: `distorted_images/`, `reference_images/` and `mos_with_names.txt`.

    Versions of the archive differ in the case of names; they are compared without it. Scores are
    MOS on 0..9, higher is better.

    Args:
        root: the archive's folder, or the one above it.

    Raises:
        DataError: files missing, or lines that are not "5.51429 I01_01_1.bmp".
    """
    files = Files(root, "tid2013")
    base = files.base(LABELS)
    path = files.first(LABELS, base=base)
    prefix = f"{base}/" if base else ""
    records = []
    for number, line in enumerate(files.read(path).decode("latin-1").splitlines(), start=1):
        if not line.strip():
            continue
        score, _, name = line.strip().partition(" ")
        name = name.strip().lower()
        match = _NAME.match(name)
        if not match or not 1 <= int(match[2]) <= len(TYPES):
            raise DataError(
                f"tid2013: {path}, line {number} is {line.strip()[:60]!r}\n"
                'Expected a line like "5.51429 I01_01_1.bmp".'
            )
        reference = f"{match[1]}.bmp"
        records.append(
            files.record(
                f"{prefix}distorted_images/{name}",
                shown=name,
                score=float(score),
                group=reference,
                reference=reference,
                type=TYPES[int(match[2]) - 1],
                level=int(match[3]),
            )
        )
    return DataSet(
        name="tid2013",
        records=tuple(sorted(records, key=lambda item: item.name)),
        references=tuple(
            files.record(f"{prefix}reference_images/{name}", shown=name)
            for name in sorted({record.group for record in records})
        ),
        root=root,
        licence="free for research (ponomarenko.info/tid2013.htm)",
        whole=(25 * 24 * 5,),
        whole_references=(25,),
        scale=(0, 9),
        notes="MOS on 0..9; shares Kodak photographs with LIVE; image 25 is artificial",
    )
