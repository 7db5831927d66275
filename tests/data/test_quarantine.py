"""Rows that cannot be used are set aside with their reason; odd ones that can be used are."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dri_iqa.data.readers.generic import read_csv
from dri_iqa.data.records import DataError, DataSet, Record
from tests.data.toys import encoded, ingest, picture, scored


def _png(width: int, height: int, mode: int, depth: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def _noisy_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return encoded(noise, "JPEG", quality=95)


def _zeroed() -> bytes:
    data = _noisy_jpeg()
    return data[: len(data) // 2] + bytes(len(data) // 2 - 2) + data[-2:]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: _noisy_jpeg()[:9000], "truncated"),
    "cut.png": (lambda: encoded(picture(1, 200, 200))[:300], "truncated"),
    "zeroed.jpg": (_zeroed, "corrupt"),
    "allzero.jpg": (lambda: bytes(5000), "not an image"),
    "page.jpg": (lambda: b"<html><body>404</body></html>", "not an image"),
    "empty.png": (lambda: b"", "empty"),
    "huge.png": (lambda: _png(60000, 60000, 2, 8, b"\0"), "decompression bomb"),
    "small.png": (lambda: encoded(picture(2, 31, 400)), "too small (400x31"),
}
GOOD: dict[str, Callable[[], bytes]] = {
    "deep.png": lambda: _png(40, 40, 0, 16, (b"\0" + bytes(range(80))) * 40),
    "cmyk.jpg": lambda: _converted("CMYK", "JPEG"),
    "alpha.png": lambda: _converted("RGBA", "PNG"),
    "grey.jpg": lambda: _converted("L", "JPEG"),
    "rotated.jpg": lambda: _rotated(),
}


def _converted(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(3)).convert(mode).save(stream, kind)
    return stream.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(picture(4), "JPEG", exif=exif)


def test_bad_files_are_set_aside_with_their_reason_and_odd_ones_used(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for name, make in GOOD.items():
        (source / name).write_bytes(make())
    for name, (make, _) in BAD.items():
        (source / name).write_bytes(make())
    (source / "twin.png").write_bytes(GOOD["alpha.png"]())
    rows = [f"{path.name},0.5" for path in sorted(source.iterdir())]
    rows += ["absent.png,0.5", "grey2.jpg,", "grey3.jpg,nan"]
    for name in ("grey2.jpg", "grey3.jpg"):
        (source / name).write_bytes(GOOD["grey.jpg"]())
    (source / "labels.csv").write_text("image,score\n" + "\n".join(rows))
    dataset = read_csv(str(source))
    with pytest.raises(DataError, match=r"12 of 17 rows cannot be used") as caught:
        ingest(dataset, tmp_path / "out")
    assert str(tmp_path / "out" / "quarantine.parquet") in str(caught.value)
    assert "2 no score" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()

    manifest = ingest(dataset, tmp_path / "out", max_bad=0.9)
    assert set(manifest.images()["name"].to_pylist()) == set(GOOD)
    assert manifest.counts["quarantined"] == 12
    reasons = {row["name"]: row["reason"] for row in manifest.quarantine().to_pylist()}
    for name, (_, reason) in BAD.items():
        assert reasons.pop(name).startswith(reason), name
    assert reasons == {
        "absent.png": "missing",
        "grey2.jpg": "no score",
        "grey3.jpg": "no score",
        "twin.png": "duplicate of alpha.png",
    }
    shapes = {row["name"]: (row["height"], row["width"]) for row in manifest.images().to_pylist()}
    assert shapes["rotated.jpg"] == (40, 48), "stored pixels, as label sets mean them"


def test_levels_that_change_nothing_are_no_duplicates(tmp_path: Path) -> None:
    same = encoded(picture(0))
    kinds = [("jpeg", 1, "a"), ("mean_shift", 3, "a"), ("jpeg", 1, "a"), ("jpeg", 2, "b")]
    records = tuple(
        Record(name=f"i{n}", data=same, score=1.0, group=group, type=kind, level=level)
        for n, (kind, level, group) in enumerate(kinds)
    )
    dataset = DataSet(name="toy", records=records)
    manifest = ingest(dataset, tmp_path, max_bad=0.5)
    assert manifest.images()["name"].to_pylist() == ["i0", "i1"]
    assert manifest.quarantine()["reason"].to_pylist() == ["duplicate of i0"] * 2


def test_images_of_an_unusable_reference_are_set_aside(tmp_path: Path) -> None:
    dataset = scored()
    broken = dataclasses.replace(dataset.references[0], data=b"no image")
    dataset = dataclasses.replace(dataset, references=(broken, dataset.references[1]))
    manifest = ingest(dataset, tmp_path, max_bad=0.9)
    assert set(manifest.images()["reference"].to_pylist()) == {"r1"}
    reasons = manifest.quarantine()["reason"].to_pylist()
    assert sorted(set(reasons)) == ["its reference r0 is set aside", "not an image"]
