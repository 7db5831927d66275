"""Clean images for stage 1: DIV2K, Flickr2K, and both as DF2K (paper 4.1)."""

from __future__ import annotations

from dri_iqa.data.readers.files import Files
from dri_iqa.data.records import DataError, DataSet


def read_div2k(root: str, *, valid: bool = False) -> DataSet:
    """DIV2K: `DIV2K_train_HR/0001.png ... 0800.png`, and the 100 of `DIV2K_valid_HR` if wanted.

    Args:
        root: the folder above these.
        valid: take the validation images too.

    Raises:
        DataError: no images there.
    """
    folders = ("DIV2K_train_HR", "DIV2K_valid_HR") if valid else ("DIV2K_train_HR",)
    return _read(root, "div2k", folders, 900 if valid else 800)


def read_flickr2k(root: str) -> DataSet:
    """Flickr2K: `Flickr2K_HR/000001.png ... 002650.png`.

    Raises:
        DataError: no images there.
    """
    return _read(root, "flickr2k", ("Flickr2K_HR",), 2650)


def read_df2k(root: str) -> DataSet:
    """DIV2K's training images and Flickr2K together, the 3450 that the paper draws 3392 from (4.1).

    Args:
        root: the folder above both.

    Raises:
        DataError: no images there.
    """
    return _read(root, "df2k", ("DIV2K_train_HR", "Flickr2K_HR"), 3450)


def _read(root: str, name: str, folders: tuple[str, ...], whole: int) -> DataSet:
    files = Files(root, name)
    wanted = {folder.lower() for folder in folders}
    paths = [path for path in files.images() if wanted & set(path.lower().split("/")[:-1])]
    if not paths:
        raise DataError(
            f"{name}: {root} has no {' or '.join(folders)} with images\n"
            "Set data.root to the folder above it; for other layouts use data=folder."
        )
    return DataSet(
        name=name,
        records=tuple(files.record(path) for path in paths),
        score_kind="none",
        root=root,
        whole=(whole,),
        licence="research only (NTIRE 2017)",
        notes="PIPAL's references come from DIV2K and Flickr2K",
    )
