"""Checking a data set before it is used, and finding near-duplicate photographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dri_iqa.cli import app
from dri_iqa.data.check import check_dataset
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.scenes import group_scenes, thumbnail
from tests.data.test_archives import live
from tests.data.test_readers import kadid

__all__ = ["live"]


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three photographs, two of them in several versions, without scenes in their labels."""
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "a2.jpg", quality=30)
    picture(0, (200, 160)).save(tmp_path / "a3.png")
    picture(1).save(tmp_path / "b.png")
    picture(2).save(tmp_path / "c.png")
    picture(2).point(lambda value: 20 + value * 3 // 4).save(tmp_path / "c2.png")
    names = ("c.png", "a.png", "b.png", "a2.jpg", "c2.png", "a3.png")
    rows = [f"{name},{number}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,score", *rows]) + "\n")
    return tmp_path


def test_scenes_survive_size_compression_and_brightness(photographs: Path) -> None:
    found = check_dataset(read_dataset("csv", str(photographs)), scenes=True)
    assert found.scenes == {
        "c.png": 0,
        "a.png": 1,
        "b.png": 2,
        "a2.jpg": 1,
        "c2.png": 0,
        "a3.png": 1,
    }
    assert not found.faulty


def test_scenes_are_connected_components() -> None:
    angles = np.radians([0, 15, 30, 120, 300, 45])  # neighbours at 15 degrees correlate at .966
    thumbnails_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for rows in (1, 2, 100):
        assert group_scenes(thumbnails_ND, rows=rows).tolist() == [0, 0, 0, 1, 2, 0]
    assert group_scenes(np.empty((0, 4))).tolist() == []


def test_a_picture_of_one_colour_is_like_none() -> None:
    flat_HWC = np.full((50, 50, 3), 7, np.uint8)
    assert group_scenes(np.stack([thumbnail(flat_HWC)] * 2)).tolist() == [0, 1]


def test_the_command_writes_labels_that_split_by_scene(photographs: Path) -> None:
    target = photographs / "scenes.csv"
    answer = CliRunner().invoke(
        app, ["data", "check", "csv", str(photographs), "--group-scenes", "--out", str(target)]
    )
    assert answer.exit_code == 0, answer.output
    assert "3 of 6 images, the largest: 3, 2, 1" in answer.output
    again = read_dataset("csv", str(photographs), file="scenes.csv")
    assert {r.name: (r.score, r.group) for r in again.records} == {
        "c.png": (0, "0"),
        "a.png": (1, "1"),
        "b.png": (2, "2"),
        "a2.jpg": (3, "1"),
        "c2.png": (4, "0"),
        "a3.png": (5, "1"),
    }
    alone = CliRunner().invoke(app, ["data", "check", "csv", str(photographs), "--out", "x"])
    assert alone.exit_code == 2


def test_counts_scale_missing_and_surplus_files(tmp_path: Path) -> None:
    kadid(tmp_path)
    labels = (tmp_path / "dmos.csv").read_text().replace("4.20", "7.50", 1)
    (tmp_path / "dmos.csv").write_text(labels)
    (tmp_path / "images" / "I02_03_04.png").unlink()
    (tmp_path / "images" / "copy of I02.png").write_bytes(b"y")
    found = check_dataset(read_dataset("kadid10k", str(tmp_path)))
    assert (found.images, found.references, found.whole) == (375, 3, False)
    assert found.missing == ("I02_03_04.png",)
    assert found.surplus == ("images/copy of I02.png",)
    assert found.off_scale == ("I01_01_01.png (7.5)",)
    assert found.span == (1.0, 7.5)
    assert found.faulty


def test_the_undistorted_images_of_live_are_no_surplus(live: Path) -> None:
    found = check_dataset(read_dataset("live", str(live)))
    assert found.whole
    assert found.surplus == ()
    (live / "jpeg" / "img9999.bmp").write_bytes(b"z")
    assert check_dataset(read_dataset("live", str(live))).surplus == ("jpeg/img9999.bmp",)


def test_unreadable_pictures_are_named_where_pixels_are_needed(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    (tmp_path / "b.png").write_bytes(stream.getvalue()[:200])
    found = check_dataset(read_dataset("folder", str(tmp_path)), scenes=True)
    assert found.unreadable == ("b.png (truncated)",)
    assert found.scenes == {"a.png": 0}
    assert found.faulty
