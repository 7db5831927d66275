"""KADID-10k: 81 references, 25 distortion types, 5 levels, one folder of PNG files."""

from __future__ import annotations

import re

from dri_iqa.data.readers.files import Files, column
from dri_iqa.data.records import DataError, DataSet

# The archive's numbers 1..25 in the names of the operators here. Its 6 and 15 are optional
# operators; its 25, contrast change, is the linear one.
TYPES = (
    *("gaussian_blur", "lens_blur", "motion_blur", "colour_diffusion", "colour_shift"),
    *("colour_quantisation", "saturation_hsv", "saturation_lab", "jpeg2000", "jpeg"),
    *("white_noise", "white_noise_ycbcr", "impulse_noise", "multiplicative_noise", "denoise"),
    *("brighten", "darken", "mean_shift", "jitter", "non_eccentricity_patch"),
    *("pixelate", "quantisation", "colour_block", "high_sharpen", "linear_contrast"),
)
_NAME = re.compile(r"^(i\d+)_(\d+)_(\d+)\.\w+$", re.IGNORECASE)


def read_kadid10k(root: str) -> DataSet:
    """KADID-10k as distributed: `dmos.csv` (dist_img, ref_img, dmos, var) and `images/`.

    The column is called dmos, yet 5 means "imperceptible": higher is better. References lie among
    the distorted images and are told apart by `ref_img`.

    Args:
        root: the archive's folder, or the one above it.

    Raises:
        DataError: files or columns missing, or names that do not follow the archive's pattern.
    """
    files = Files(root, "kadid10k")
    base = files.base("dmos.csv")
    path = files.first("dmos.csv", base=base)
    frame = files.table(path)
    where = f"kadid10k: {path}"
    image, reference, score = (
        column(frame, (name,), kind, where)
        for name, kind in (("dist_img", "image"), ("ref_img", "reference"), ("dmos", "score"))
    )
    folder = f"{base}/images" if base else "images"
    records = []
    for row in frame.to_dict("records"):
        name, ref = str(row[image]).strip(), str(row[reference]).strip()
        match = _NAME.match(name)
        if not match or not 1 <= int(match[2]) <= len(TYPES):
            raise DataError(f"{where}: {name} is not named like I01_01_01.png\nCorrect the row.")
        records.append(
            files.record(
                f"{folder}/{name}",
                shown=name,
                score=float(row[score]),
                group=ref,
                reference=ref,
                type=TYPES[int(match[2]) - 1],
                level=int(match[3]),
            )
        )
    names = sorted({record.group for record in records})
    return DataSet(
        name="kadid10k",
        records=tuple(sorted(records, key=lambda item: item.name)),
        references=tuple(files.record(f"{folder}/{name}", shown=name) for name in names),
        root=root,
        licence="free for research (database.mmsp-kn.de)",
        notes="dmos is on a scale of 1 to 5 on which 5 is the best quality",
        whole=(81 * 25 * 5,),
        whole_references=(81,),
        scale=(1, 5),
    )
