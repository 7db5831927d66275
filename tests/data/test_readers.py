"""Readers on miniature copies of the layouts as they are distributed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from dri_iqa.data.datasets import READERS, read_dataset
from dri_iqa.data.limit import take
from dri_iqa.data.records import DataError, DataSet, Record


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 7)


def table(root: Path, name: str, *lines: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n")


def by_name(dataset: DataSet) -> dict[str, Record]:
    return {record.name: record for record in dataset.records}


def test_csv_with_every_column(tmp_path: Path) -> None:
    write(tmp_path, "img/a.png", "img/B.PNG", "ref/r.png")
    table(
        tmp_path,
        "labels.csv",
        "image, Score ,ref,type,level,subset,split,recipe",
        "img/a.png,3.5,ref/r.png,jpeg,2,s1,train,jpeg:2",
        "img/b.png,1,ref/r.png,blur,3.0,s2,Testing,",
    )
    dataset = read_dataset("csv", str(tmp_path))
    rows = by_name(dataset)
    assert rows["img/a.png"] == Record(
        name="img/a.png",
        path="img/a.png",
        score=3.5,
        group="ref/r.png",
        reference="ref/r.png",
        type="jpeg",
        level=2,
        recipe="jpeg:2",
        subset="s1",
        split="train",
        size=7,
        modified_ns=rows["img/a.png"].modified_ns,
    )
    second = rows["img/B.PNG"]
    assert (second.path, second.level, second.split) == ("img/B.PNG", 3, "test")
    assert [record.name for record in dataset.references] == ["ref/r.png"]
    assert (dataset.score_kind, dataset.higher_is_better) == ("human", True)


def test_csv_options_and_groups(tmp_path: Path) -> None:
    write(tmp_path, "sub/a.png", "sub/b.png", "sub/c.png")
    table(
        tmp_path / "sub", "dmos.csv", "photo,dmos,scene", "a.png,1,7", "b.png,2,7", "sub/c.png,3,8"
    )
    dataset = read_dataset(
        "csv",
        str(tmp_path),
        image_column="photo",
        score_column="dmos",
        higher_is_better=False,
    )
    assert [(r.path, r.group) for r in dataset.records] == [
        ("sub/a.png", "7"),
        ("sub/b.png", "7"),
        ("sub/c.png", "8"),
    ]
    assert not dataset.higher_is_better


def test_csv_keeps_missing_files_and_scores_for_ingest_to_report(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    table(tmp_path, "labels.csv", "image,score", "a.png,", "gone.png,2", "b.png,nan")
    rows = by_name(read_dataset("csv", str(tmp_path)))
    assert rows["a.png"].score is None
    assert rows["b.png"].score is None
    assert rows["gone.png"].size is None


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../x.png", "s3://b/x.png", "C:\\x.png", "..\\x"]
)
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, path: str) -> None:
    write(tmp_path, "data/a.png", "secret.png")
    for line in (f"{path},1,", f"a.png,1,{path}"):
        table(tmp_path / "data", "labels.csv", "image,score,ref", line)
        with pytest.raises(DataError, match="leaves") as caught:
            read_dataset("csv", str(tmp_path / "data"))
        assert len(str(caught.value).splitlines()) == 2


def test_csv_in_a_subfolder_may_climb_inside_the_root_only(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png")
    table(tmp_path / "labels", "l.csv", "image,score", "../images/a.png,1")
    assert read_dataset("csv", str(tmp_path)).records[0].path == "images/a.png"
    table(tmp_path / "labels", "l.csv", "image,score", "../../images/a.png,1")
    with pytest.raises(DataError, match="leaves"):
        read_dataset("csv", str(tmp_path))


def test_folder(tmp_path: Path) -> None:
    write(tmp_path, "b.JPG", "a.png", "deep/c.webp", "notes.txt", ".hidden/d.png")
    dataset = read_dataset("folder", str(tmp_path))
    assert [record.name for record in dataset.records] == ["a.png", "b.JPG", "deep/c.webp"]
    assert dataset.score_kind == "none"
    assert {record.score for record in dataset.records} == {None}


def kadid(root: Path, references: int = 3) -> None:
    lines = ["dist_img,ref_img,dmos,var"]
    for ref in range(1, references + 1):
        write(root, f"images/I{ref:02d}.png")
        for kind in range(1, 26):
            for level in range(1, 6):
                name = f"I{ref:02d}_{kind:02d}_{level:02d}.png"
                write(root, f"images/{name}")
                lines.append(f"{name},I{ref:02d}.png,{5 - 0.8 * level:.2f},0.5")
    table(root, "dmos.csv", *lines)


def test_kadid10k(tmp_path: Path) -> None:
    kadid(tmp_path / "kadid10k")
    dataset = read_dataset("kadid10k", str(tmp_path))
    assert (len(dataset.records), len(dataset.references)) == (3 * 125, 3)
    assert dataset.higher_is_better, "the column is called dmos but 5 is the best"
    row = by_name(dataset)["I02_09_03.png"]
    assert (row.type, row.level, row.group, row.score) == ("jpeg2000", 3, "I02.png", 2.6)
    assert row.path == "kadid10k/images/I02_09_03.png"
    assert Counter(record.type for record in dataset.records)["linear_contrast"] == 15
    types = {record.name[4:6]: record.type for record in dataset.records}
    assert types["01"] == "gaussian_blur"
    assert types["06"] == "colour_quantisation"
    assert types["15"] == "denoise"
    assert types["18"] == "mean_shift"
    direct = read_dataset("kadid10k", str(tmp_path / "kadid10k"))
    assert [r.score for r in direct.records] == [r.score for r in dataset.records]


def test_koniq10k_takes_the_0_to_100_scores_and_the_official_split(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in (30, 10, 20)]
    write(tmp_path, *(f"512x384/{n}" for n in names), *(f"1024x768/{n}" for n in names))
    scores = "koniq10k_scores_and_distributions.csv"
    sets = "koniq10k_distributions_sets.csv"
    table(
        tmp_path,
        scores,
        "image_name,c1,MOS,SD,MOS_zscore",
        "30.jpg,0,3.0,0.5,60.1",
        "10.jpg,0,2.0,0.5,40.2",
        "20.jpg,0,4.0,0.5,80.3",
    )
    dataset = read_dataset("koniq10k", str(tmp_path))
    assert [(r.name, r.score, r.split) for r in dataset.records] == [
        ("10.jpg", 40.2, None),
        ("20.jpg", 80.3, None),
        ("30.jpg", 60.1, None),
    ]
    assert dataset.records[0].path == "512x384/10.jpg"
    assert dataset.references == ()
    table(
        tmp_path,
        sets,
        "image_name,MOS,SD,set",
        "30.jpg,61,1,training",
        "10.jpg,41,1,validation",
        "20.jpg,81,1,test",
    )
    both = read_dataset("koniq10k", str(tmp_path), size="1024x768")
    assert [(r.score, r.split) for r in both.records] == [
        (40.2, "val"),
        (80.3, "test"),
        (60.1, "train"),
    ]
    assert both.records[0].path == "1024x768/10.jpg"
    (tmp_path / scores).unlink()
    assert [r.score for r in read_dataset("koniq10k", str(tmp_path)).records] == [41, 81, 61]
    assert dataset.short_side is None


def test_koniq10k_is_shrunk_where_only_the_large_copy_is_there(tmp_path: Path) -> None:
    write(tmp_path, "1024x768/1.jpg")
    table(tmp_path, "koniq10k_distributions_sets.csv", "image_name,MOS,SD,set", "1.jpg,61,1,test")
    assert read_dataset("koniq10k", str(tmp_path)).short_side == 384
    assert read_dataset("koniq10k", str(tmp_path), size="1024x768").short_side is None


def test_biq2021_with_scenes(tmp_path: Path) -> None:
    write(tmp_path, "images/ss01_1.jpg", "images/ss01_2.jpg", "images/ss03_1.jpg")
    table(
        tmp_path,
        "labels.csv",
        "image,mos,scene,subset",
        "images/ss03_1.jpg,0.9,5,ss03",
        "images/ss01_1.jpg,0.4,2474,ss01",
        "images/ss01_2.jpg,0.5,2474,ss01",
    )
    dataset = read_dataset("biq2021", str(tmp_path))
    assert [(r.name, r.score, r.group, r.subset, r.split) for r in dataset.records] == [
        ("images/ss01_1.jpg", 0.4, "2474", "ss01", None),
        ("images/ss01_2.jpg", 0.5, "2474", "ss01", None),
        ("images/ss03_1.jpg", 0.9, "5", "ss03", None),
    ]


def test_biq2021_as_published(tmp_path: Path) -> None:
    write(tmp_path, "Images/SS02_7.jpg", "Images/ss01_1.jpg", "Images/ss03_9.jpg")
    header = "Image Name,MOS,,,"
    table(tmp_path, "Train (Images and MOS).csv", header, "ss02_7.jpg,0.5,,,", "ss01_1.jpg,0.25,,,")
    table(tmp_path, "Test (Images and MOS).csv", header, "ss03_9.jpg,0.75,,,", ",,,,")
    dataset = read_dataset("biq2021", str(tmp_path), public_split=True)
    assert [(r.name, r.path, r.score, r.subset, r.split) for r in dataset.records] == [
        ("ss01_1.jpg", "Images/ss01_1.jpg", 0.25, "ss01", "train"),
        ("ss02_7.jpg", "Images/SS02_7.jpg", 0.5, "ss02", "train"),
        ("ss03_9.jpg", "Images/ss03_9.jpg", 0.75, "ss03", "test"),
    ]
    usual = read_dataset("biq2021", str(tmp_path))
    assert {r.split for r in usual.records} == {None}, "the public split leaks scenes"


SHARED = os.environ.get("DRI_IQA_SHARED", "")


@pytest.mark.skipif(not SHARED, reason="needs DRI_IQA_SHARED")
def test_biq2021_at_hand() -> None:
    dataset = read_dataset("biq2021", f"{SHARED}/data/biq2021")
    assert len(dataset.records) == 4600
    assert len({record.group for record in dataset.records}) == 4417
    scores = [record.score for record in dataset.records if record.score is not None]
    assert 0 <= min(scores) < max(scores) <= 1
    part = take(dataset, 400, seed=1)
    assert 380 <= len(part.records) <= 400
    share = Counter(record.subset for record in part.records)
    whole = Counter(record.subset for record in dataset.records)
    for subset, count in whole.items():
        assert abs(share[subset] / len(part.records) - count / 4600) < 0.02
    groups = {record.group for record in part.records}
    assert len(part.records) == sum(record.group in groups for record in dataset.records)


def test_images_to_leave_out(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    (tmp_path / "out.txt").write_text("# references of the test set\nb/1.png\n2.png\n\n")
    left = read_dataset("folder", str(tmp_path), exclude=str(tmp_path / "out.txt"))
    assert [record.name for record in left.records] == ["a/1.png"]
    (tmp_path / "out.txt").write_text("9.png\n")
    with pytest.raises(DataError, match=r"names 1 images that are not there, for example 9\.png"):
        read_dataset("folder", str(tmp_path), exclude=str(tmp_path / "out.txt"))


def test_limit_keeps_whole_groups_and_their_references(tmp_path: Path) -> None:
    kadid(tmp_path, references=4)
    part = read_dataset("kadid10k", str(tmp_path), limit=300, seed=3)
    assert len(part.records) == 250
    assert len(part.references) == 2
    assert {r.group for r in part.records} == {r.name for r in part.references}
    assert part == read_dataset("kadid10k", str(tmp_path), limit=300, seed=3)
    others = {
        tuple(r.name for r in read_dataset("kadid10k", str(tmp_path), limit=300, seed=s).references)
        for s in range(8)
    }
    assert len(others) > 1
    with pytest.raises(DataError, match="limit of 100 images keeps no whole group") as caught:
        read_dataset("kadid10k", str(tmp_path), limit=100)
    assert "at least 125" in str(caught.value)


def check_message(caught: pytest.ExceptionInfo[DataError], *words: str) -> None:
    text = str(caught.value)
    assert len(text.splitlines()) == 2
    for word in words:
        assert word in text


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset("koniq", str(tmp_path))
    check_message(caught, "unknown data set koniq (did you mean koniq10k?)", "biq2021")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", None)
    check_message(caught, "csv: data.root is not set")
    with pytest.raises(DataError) as caught:
        read_dataset("folder", str(tmp_path / "nowhere"))
    check_message(caught, f"folder: {tmp_path}/nowhere does not exist", "data.root")
    for name in set(READERS) - {"sample"}:
        with pytest.raises(DataError) as caught:
            read_dataset(name, str(tmp_path))
        check_message(caught, f"{name}: {tmp_path} holds no files")
    write(tmp_path, "a.txt")
    for name in set(READERS) - {"sample"}:
        with pytest.raises(DataError) as caught:
            read_dataset(name, str(tmp_path))
        check_message(caught, name)
    table(tmp_path, "labels.csv", "image,quality,who", "a.png,3,me")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path))
    check_message(caught, "no score column", "found image, quality, who")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path), score_colum="quality")
    check_message(caught, "unknown option score_colum (did you mean score_column?)")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path), score_column="quality")
    check_message(caught, "none of the 1 listed images", "a.png")
    table(tmp_path, "labels.csv", "image,score", "a.png,good")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path))
    check_message(caught, "line 2: score is 'good'")
    table(tmp_path, "labels.csv", "image,score", "a.txt,1", "a.txt,2")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path))
    check_message(caught, "a.txt is listed twice")
    table(tmp_path, "more.csv", "image,score")
    (tmp_path / "labels.csv").rename(tmp_path / "other.csv")
    with pytest.raises(DataError) as caught:
        read_dataset("csv", str(tmp_path))
    check_message(caught, "several CSV files (more.csv, other.csv)")
