"""LIVE release 2 (synthetic) and LIVE in the Wild, LIVEC (authentic)."""

from __future__ import annotations

from typing import Literal

from dri_iqa.data.readers.files import Files
from dri_iqa.data.readers.tables import mat_values
from dri_iqa.data.records import DataError, DataSet

# Rows of the label files follow the folders in this order; img<k> counts from 1 in each of them.
FOLDERS = (
    ("jp2k", 227, "jpeg2000"),
    ("jpeg", 233, "jpeg"),
    ("wn", 174, "white_noise"),
    ("gblur", 174, "gaussian_blur"),
    ("fastfading", 174, "fast_fading"),
)
TRAINING_IMAGES = 7
LICENCE = "free for research (live.ece.utexas.edu)"


def read_live(root: str, *, scores: Literal["realigned", "original"] = "realigned") -> DataSet:
    """LIVE release 2: `refimgs/` and five folders of images, `refnames_all.mat`, scores.

    Of the 982 rows, those with `orgs` = 1 are the references among the distorted images; without
    them 779 remain. Scores are DMOS: lower is better. Levels are not given.

    Args:
        root: `databaserelease2`, or the folder above it.
        scores: `realigned` (dmos_realigned.mat, `dmos_new`), which makes scores comparable across
            types of distortion, or `original` (dmos.mat, `dmos`).

    Raises:
        DataError: files missing, or not 982 rows.
    """
    files = Files(root, "live")
    base = files.base("refnames_all.mat")
    label, variables = {
        "realigned": ("dmos_realigned.mat", ("dmos_new",)),
        "original": ("dmos.mat", ("dmos",)),
    }[scores]
    path = files.first(label, base=base)
    dmos = mat_values(files, path, *variables)
    originals = mat_values(files, path, "orgs")
    names = mat_values(files, files.first("refnames_all.mat", base=base), "refnames_all")
    expected = sum(count for _, count, _ in FOLDERS)
    if not len(dmos) == len(originals) == len(names) == expected:
        raise DataError(
            f"live: {len(dmos)} scores, {len(originals)} flags and {len(names)} names, expected"
            f" {expected} of each\nUse the files of LIVE release 2."
        )
    prefix = f"{base}/" if base else ""
    records, used, left_out = [], set(), []
    row = 0
    for folder, count, kind in FOLDERS:
        for number in range(1, count + 1):
            reference = str(names[row]).strip().lower()
            if not int(originals[row]):
                used.add(reference)
                records.append(
                    files.record(
                        f"{prefix}{folder}/img{number}.bmp",
                        shown=f"{folder}/img{number}.bmp",
                        score=float(dmos[row]),
                        group=reference,
                        reference=reference,
                        type=kind,
                        subset=folder,
                    )
                )
            else:
                left_out.append(f"{prefix}{folder}/img{number}.bmp")
            row += 1
    return DataSet(
        name="live",
        records=tuple(records),
        references=tuple(
            files.record(f"{prefix}refimgs/{name}", shown=name) for name in sorted(used)
        ),
        higher_is_better=False,
        root=root,
        licence=LICENCE,
        notes=f"{scores} DMOS of {label}; shares Kodak photographs with TID2013",
        whole=(779,),
        whole_references=(29,),
        scale=(-20, 120),  # a DMOS is a difference: realigned values leave 0..100 a little
        left_out=tuple(left_out),
    )


def read_livec(root: str) -> DataSet:
    """LIVE in the Wild Image Quality Challenge: `Images/` and `Data/*.mat`.

    The first seven of the 1169 rows are the training images of the study (t1..t7 in
    `Images/trainingImages`) and are left out: 1162 remain. Extensions come in mixed case.

    Args:
        root: `ChallengeDB_release`, or the folder above it.

    Raises:
        DataError: files missing, or lists of different length.
    """
    files = Files(root, "livec")
    base = files.base("Data/AllImages_release.mat")
    names_path = files.first("Data/AllImages_release.mat", base=base)
    scores_path = files.first("Data/AllMOS_release.mat", base=base)
    names = [str(name).strip() for name in mat_values(files, names_path, "AllImages_release")]
    scores = mat_values(files, scores_path, "AllMOS_release")
    if len(names) != len(scores) or len(names) <= TRAINING_IMAGES:
        raise DataError(
            f"livec: {len(names)} names and {len(scores)} scores, expected 1169 of each\n"
            "Use the .mat files of the release; CSV copies lack rows."
        )
    folder = f"{base}/Images" if base else "Images"
    rows = list(zip(names, scores, strict=True))[TRAINING_IMAGES:]
    return DataSet(
        name="livec",
        records=tuple(
            files.record(f"{folder}/{name}", shown=name, group=name, score=float(score))
            for name, score in sorted(rows)
        ),
        root=root,
        licence=LICENCE,
        notes="AllMOS_release without the seven training images",
        whole=(1162,),
        scale=(0, 100),
    )
