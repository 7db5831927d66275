"""Readers on miniature copies of the archives whose labels are MATLAB files, text or workbooks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.records import DataError, DataSet
from dri_iqa.data.splits import official_split
from dri_iqa.degradations import OPERATORS


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def cells(names: list[str], shape: tuple[int, int]) -> np.ndarray:
    array = np.empty(len(names), dtype=object)
    array[:] = names
    return array.reshape(shape)


def scores(dataset: DataSet) -> dict[str, float | None]:
    return {record.name: record.score for record in dataset.records}


LIVE = (("jp2k", 227, 58), ("jpeg", 233, 58), ("wn", 174, 29), ("gblur", 174, 29))
LIVE = (*LIVE, ("fastfading", 174, 29))


@pytest.fixture
def live(tmp_path: Path) -> Path:
    root = tmp_path / "databaserelease2"
    references = [f"ref{number:02d}.bmp" for number in range(29)]
    write(root, *(f"refimgs/{name}" for name in references))
    names, originals, values = [], [], []
    for folder, count, undistorted in LIVE:
        write(root, *(f"{folder}/img{number}.bmp" for number in range(1, count + 1)))
        for number in range(count):
            names.append(references[number % 29])
            originals.append(int(number >= count - undistorted))
            values.append(len(values) / 10)
    savemat(root / "refnames_all.mat", {"refnames_all": cells(names, (1, 982))})
    realigned = {"dmos_new": np.array([values]), "orgs": np.array([originals], dtype=np.uint8)}
    savemat(root / "dmos_realigned.mat", realigned)
    savemat(root / "dmos.mat", {"dmos": -np.array([values]), "orgs": np.array([originals])})
    return root


def test_live_leaves_the_undistorted_rows_out(live: Path) -> None:
    dataset = read_dataset("live", str(live.parent))
    assert len(dataset.records) == 779
    assert len(dataset.references) == 29
    assert Counter(record.subset for record in dataset.records) == {
        "jp2k": 169,
        "jpeg": 175,
        "wn": 145,
        "gblur": 145,
        "fastfading": 145,
    }
    assert not dataset.higher_is_better
    rows = {record.name: record for record in dataset.records}
    third = rows["jpeg/img3.bmp"]
    assert third.score == pytest.approx((227 + 2) / 10)
    assert (third.reference, third.type) == ("ref02.bmp", "jpeg")
    assert third.path == "databaserelease2/jpeg/img3.bmp"
    assert rows["fastfading/img1.bmp"].type == "fast_fading"
    original = read_dataset("live", str(live), scores="original")
    assert original.records[0].score == -dataset.records[0].score  # type: ignore[operator]


def test_live_refuses_other_lists(live: Path) -> None:
    savemat(live / "dmos_realigned.mat", {"dmos_new": np.ones((1, 9)), "orgs": np.ones((1, 9))})
    with pytest.raises(DataError, match="9 scores, 9 flags and 982 names, expected 982"):
        read_dataset("live", str(live))
    savemat(live / "dmos_realigned.mat", {"other": np.ones((1, 9))})
    with pytest.raises(DataError, match="no variable dmos_new; found other"):
        read_dataset("live", str(live))
    (live / "dmos_realigned.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a readable MATLAB file"):
        read_dataset("live", str(live))


def test_livec_without_the_seven_training_images(tmp_path: Path) -> None:
    root = tmp_path / "ChallengeDB_release"
    training = [f"t{number}.bmp" for number in range(1, 8)]
    images = [f"{number}.{'JPG' if number % 2 else 'bmp'}" for number in range(3, 1165)]
    write(root, *(f"Images/trainingImages/{name}" for name in training))
    write(root, *(f"Images/{name}" for name in images))
    (root / "Data").mkdir()
    listed = training + [name.replace("JPG", "jpg") for name in images]
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": cells(listed, (1169, 1))})
    values = np.arange(1169, dtype=float)[None, :]
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": values})
    dataset = read_dataset("livec", str(tmp_path))
    assert len(dataset.records) == 1162
    assert scores(dataset)["3.jpg"] == 7
    assert all(record.size == 1 for record in dataset.records), "every file is found"
    assert {record.path for record in dataset.records if record.name == "5.jpg"} == {
        "ChallengeDB_release/Images/5.JPG"
    }
    assert dataset.higher_is_better


def test_tid2013_whatever_the_letter_case(tmp_path: Path) -> None:
    lines = []
    for reference in range(1, 26):
        write(tmp_path, f"reference_images/{'i' if reference == 25 else 'I'}{reference:02d}.BMP")
        for kind in range(1, 25):
            for level in range(1, 6):
                name = f"i{reference:02d}_{kind:02d}_{level}.bmp"
                write(tmp_path, f"distorted_images/{name}")
                lines.append(f"{reference + level / 10:.5f} {name.replace('i', 'I', 1)}")
    (tmp_path / "mos_with_names.txt").write_text("\r\n".join(lines) + "\r\n")
    dataset = read_dataset("tid2013", str(tmp_path))
    assert (len(dataset.records), len(dataset.references)) == (3000, 25)
    assert all(record.size for record in (*dataset.records, *dataset.references))
    row = next(record for record in dataset.records if record.name == "i03_08_2.bmp")
    assert (row.score, row.type, row.level, row.group) == (3.2, "gaussian_blur", 2, "i03.bmp")
    shared = {record.type for record in dataset.records} & set(OPERATORS)
    assert len(shared) >= 10
    (tmp_path / "mos_with_names.txt").write_text("5.5 I01.bmp\n")
    with pytest.raises(DataError, match=r"line 1 is '5\.5 I01\.bmp'"):
        read_dataset("tid2013", str(tmp_path))


def csiq_images(root: Path) -> list[tuple[str, str, int]]:
    """30 references, 5 x 150 images and 116 of changed contrast."""
    rows = []
    for number in range(30):
        source = "1600" if number == 0 else f"scene{number}"
        write(root, f"src_imgs/{source}.png")
        for kind in ("AWGN", "BLUR", "contrast", "fnoise", "JPEG", "jpeg2000"):
            levels = (4 if number < 26 else 3) if kind == "contrast" else 5
            for level in range(1, levels + 1):
                write(root, f"dst_imgs/{kind}/{source}.{kind}.{level}.png")
                rows.append((source, kind, level))
    return rows


def test_csiq_text(tmp_path: Path) -> None:
    rows = csiq_images(tmp_path)
    lines = [f"{s}.{kind}.{level}.png {level / 7:.6f}" for s, kind, level in rows]
    (tmp_path / "csiq_label.txt").write_text("\n".join(lines))
    dataset = read_dataset("csiq", str(tmp_path))
    assert (len(dataset.records), len(dataset.references)) == (866, 30)
    assert Counter(record.subset for record in dataset.records)["contrast"] == 116
    assert not dataset.higher_is_better
    assert all(record.size for record in dataset.records)
    row = next(r for r in dataset.records if r.name == "1600.jpeg2000.3.png")
    assert (row.type, row.level, row.group) == ("jpeg2000", 3, "1600.png")
    (tmp_path / "csiq_label.txt").write_text("1600.AWGN 1\n")
    with pytest.raises(DataError, match=r"line 1 is '1600\.AWGN 1'"):
        read_dataset("csiq", str(tmp_path))


def test_csiq_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    words = {"AWGN": "noise", "BLUR": "blur", "JPEG": "jpeg", "jpeg2000": "jpeg 2000"}
    book = openpyxl.Workbook()
    book.active.title = "summary"
    page = book.create_sheet("all_by_image")
    header = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    for place, name in enumerate(header):
        page.cell(4, 4 + place, name)
    for line, (source, kind, level) in enumerate(csiq_images(tmp_path), start=5):
        name = 1600 if source == "1600" else source
        values = [name, 1, words.get(kind, kind), level, 0.1, level / 7]
        for place, value in enumerate(values):
            page.cell(line, 4 + place, value)
    book.save(tmp_path / "csiq.DMOS.xlsx")
    dataset = read_dataset("csiq", str(tmp_path))
    assert len(dataset.records) == 866
    assert all(record.size for record in dataset.records)
    assert scores(dataset)["1600.AWGN.2.png"] == pytest.approx(2 / 7)


def test_spaq(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    write(tmp_path, "TestImage/00001.jpg", "TestImage/00002.jpg")
    (tmp_path / "Annotations").mkdir()
    book = openpyxl.Workbook()
    for row in (["Image name", "MOS", "Brightness"], ["00002.jpg", 40, 1], ["00001.jpg", 61.5, 2]):
        book.active.append(row)
    book.save(tmp_path / "Annotations" / "MOS and Image attribute scores.xlsx")
    dataset = read_dataset("spaq", str(tmp_path))
    assert scores(dataset) == {"00001.jpg": 61.5, "00002.jpg": 40}
    assert dataset.short_side == 512
    assert read_dataset("spaq", str(tmp_path), short_side=448).short_side == 448


def test_a_workbook_without_openpyxl_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "Annotations/MOS and Image attribute scores.xlsx")

    def absent(*_: object, **__: object) -> None:
        raise ImportError("openpyxl")

    monkeypatch.setattr("pandas.read_excel", absent)
    with pytest.raises(DataError, match=r"openpyxl is not installed\n.*dri-iqa\[xlsx\]"):
        read_dataset("spaq", str(tmp_path))


def pipal(root: Path, merged: bool) -> None:
    for number in (1, 7):
        reference = f"A{number:04d}"
        write(root, f"Train_Ref/{reference}.bmp")
        lines = []
        for sub in range(7):
            for index in range(2):
                name = f"{reference}_{sub:02d}_{index:02d}.bmp"
                folder = "Train_Dist" if merged else f"Distortion_{1 + sub % 4}"
                write(root, f"{folder}/{name}")
                comma = ", " if number == 7 else ","
                lines.append(f"{name}{comma}{1500 + sub}.25")
        (root / "Train_Label").mkdir(exist_ok=True)
        (root / f"Train_Label/{reference}.txt").write_text("\n".join(lines) + "\n")
    write(root, "Val_Ref/A0005.bmp", "Val_Dist/A0005_10_03.bmp")
    (root / "pipal21_val.txt").write_text("A0005_10_03.bmp,1300.5\n")


@pytest.mark.parametrize("merged", [True, False])
def test_pipal(tmp_path: Path, merged: bool) -> None:
    pipal(tmp_path, merged)
    dataset = read_dataset("pipal", str(tmp_path))
    assert (len(dataset.records), len(dataset.references)) == (29, 3)
    assert all(record.size for record in (*dataset.records, *dataset.references))
    row = next(r for r in dataset.records if r.name == "a0007_06_01.bmp")
    assert (row.score, row.type, row.level) == (1506.25, "pipal_06", 1)
    ids = range(29)
    columns = zip(*((r.group, r.split) for r in dataset.records), strict=True)
    split = official_split(ids, *map(list, columns))
    assert (len(split.train), len(split.val), len(split.test)) == (28, 0, 1)
    own = read_dataset("pipal", str(tmp_path), protocol="split802")
    assert len(own.records) == 28
    assert {record.split for record in own.records} == {None}


def test_pipal_refuses_other_lines(tmp_path: Path) -> None:
    pipal(tmp_path, True)
    (tmp_path / "Train_Label/A0001.txt").write_text("A0001_00_00.bmp 1520\n")
    with pytest.raises(DataError, match=r"A0001\.txt, line 1 is"):
        read_dataset("pipal", str(tmp_path))


def test_clean_sets(tmp_path: Path) -> None:
    write(tmp_path, "DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_valid_HR/0801.png")
    write(tmp_path, "Flickr2K/Flickr2K_HR/000001.png", "DIV2K/DIV2K_train_LR/0001x2.png")
    names = [r.path for r in read_dataset("div2k", str(tmp_path)).records]
    assert names == ["DIV2K/DIV2K_train_HR/0001.png"]
    assert len(read_dataset("div2k", str(tmp_path), valid=True).records) == 2
    flickr = read_dataset("flickr2k", str(tmp_path))
    assert [r.path for r in flickr.records] == ["Flickr2K/Flickr2K_HR/000001.png"]
    assert flickr.score_kind == "none"
    assert len(read_dataset("df2k", str(tmp_path)).records) == 2
