"""One decoder for everything: formats, sample depths, colour models, and why bytes were refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from dri_iqa.images import MAX_PIXELS, ImageError, decode, probe, resize_short_side
from dri_iqa.jpeg_structure import intact_size

RGB_HWC = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
IMAGE = Image.fromarray(RGB_HWC)
SMOOTH = Image.fromarray(
    cv2.resize(RGB_HWC[:5, :6], (60, 50), interpolation=cv2.INTER_CUBIC)  # codecs like it smooth
)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_lossless_formats_are_exact(form: str) -> None:
    image_HWC = decode(encoded(IMAGE, form))
    assert np.array_equal(image_HWC, RGB_HWC)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.c_contiguous
    assert image_HWC.flags.writeable


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_close(form: str) -> None:
    data = encoded(SMOOTH, form, quality=95)
    error = np.abs(decode(data).astype(int) - np.asarray(SMOOTH, dtype=int))
    assert error.mean() < 4


@pytest.mark.parametrize("form", [".png", ".tiff"])
def test_sixteen_bits_keep_the_high_byte(form: str) -> None:
    wide_HWC = RGB_HWC.astype(np.uint16) * 256 + 77
    colour = cv2.imencode(form, wide_HWC[:, :, ::-1])[1].tobytes()
    assert np.array_equal(decode(colour), RGB_HWC)
    grey = cv2.imencode(form, np.ascontiguousarray(wide_HWC[:, :, 0]))[1].tobytes()
    assert np.array_equal(decode(grey), np.repeat(RGB_HWC[:, :, :1], 3, axis=2))


def test_sixteen_bit_colour_with_alpha() -> None:
    wide_HWC = np.dstack([RGB_HWC[:, :, ::-1], RGB_HWC[:, :, :1]]).astype(np.uint16) * 257
    assert np.array_equal(decode(cv2.imencode(".png", wide_HWC)[1].tobytes()), RGB_HWC)


def test_cmyk_becomes_rgb() -> None:
    data = encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95)
    error = np.abs(decode(data).astype(int) - np.asarray(SMOOTH, dtype=int))
    assert error.mean() < 4


def test_alpha_is_dropped_without_compositing() -> None:
    image = IMAGE.convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(decode(encoded(image, "PNG")), RGB_HWC)


@pytest.mark.parametrize(
    ("form", "transparency"),
    [("PNG", None), ("PNG", 3), ("PNG", bytes(range(256))), ("GIF", None), ("GIF", 3)],
)
def test_palettes(form: str, transparency) -> None:
    palette = IMAGE.quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    data = encoded(palette, form, **options)
    assert np.array_equal(decode(data), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_becomes_three_equal_channels(mode: str) -> None:
    image = IMAGE.convert(mode)
    expected_HW = np.asarray(image.convert("L"))
    assert np.array_equal(
        decode(encoded(image, "PNG")), np.repeat(expected_HW[:, :, None], 3, axis=2)
    )


def test_orientation_is_ignored_unless_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    data = encoded(IMAGE, "PNG", exif=exif)
    assert np.array_equal(decode(data), RGB_HWC)
    assert np.array_equal(decode(data, exif_transpose=True), np.rot90(RGB_HWC, -1))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF"])
def test_half_a_file_is_truncated(form: str) -> None:
    data = encoded(SMOOTH, form)
    with pytest.raises(ImageError, match=r"^truncated$"):
        decode(data[: len(data) // 2])


def test_a_jpeg_whose_end_was_zeroed_is_not_scored_as_half_grey() -> None:
    data = encoded(SMOOTH, "JPEG", quality=95)
    half = len(data) // 2
    with pytest.raises(ImageError, match="truncated"):
        decode(data[:half] + bytes(len(data) - half))


def test_a_thumbnail_inside_the_header_does_not_hide_a_missing_end() -> None:
    thumbnail = encoded(IMAGE.resize((8, 8)), "JPEG")
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0" + thumbnail
    data = encoded(SMOOTH, "JPEG", quality=95)
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert decode(whole).shape == (50, 60, 3)
    with pytest.raises(ImageError, match="truncated"):
        decode(whole[: -len(data) // 3] + bytes(len(data) // 3))


def test_trailing_bytes_after_a_jpeg_are_fine() -> None:
    data = encoded(SMOOTH, "JPEG")
    assert np.array_equal(decode(data + bytes(64)), decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"<html><body>404</body></html>", "not an image"),
        (b"RIFF\xff\0\0\0WAVEfmt ", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{reason}$"):
        decode(data)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("side", "megapixels"), [(50_000, 2500), (10_000, 100)])
def test_decompression_bombs_are_refused_before_memory_is_taken(side: int, megapixels: int) -> None:
    with pytest.raises(ImageError, match=rf"decompression bomb \({megapixels} megapixels"):
        decode(png_header(side, side))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(dtype) -> None:
    wide = Image.fromarray(RGB_HWC[:, :, 0].astype(dtype) * 100_000)
    with pytest.raises(ImageError, match="unsupported pixels"):
        decode(encoded(wide, "TIFF"))


def test_random_damage_never_escapes_as_another_exception() -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"):
        clean = np.frombuffer(encoded(SMOOTH, form), np.uint8)
        for _ in range(60):
            damaged = clean.copy()
            damaged[rng.integers(0, len(clean), 5)] = rng.integers(0, 256, 5)
            try:
                image_HWC = decode(damaged.tobytes())
            except ImageError:
                continue
            assert image_HWC.ndim == 3
            assert image_HWC.dtype == np.uint8


def test_short_side_is_enlarged_and_never_shrunk() -> None:
    assert resize_short_side(RGB_HWC, 20) is RGB_HWC
    assert resize_short_side(RGB_HWC, 40).shape == (40, 48, 3)
    assert resize_short_side(np.zeros((1, 3, 3), np.uint8), 32).shape == (32, 96, 3)
    with pytest.raises(ImageError, match="too narrow"):
        resize_short_side(np.zeros((1, MAX_PIXELS // 100, 3), np.uint8), 32)


def judged(judge: Callable[[bytes], tuple[int, ...]], data: bytes) -> tuple[int, ...] | str:
    try:
        return judge(data)[:2]
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF"])
def test_a_probe_judges_as_the_decoder_does(form: str) -> None:
    whole = encoded(SMOOTH.convert("L") if form == "GIF" else SMOOTH, form)
    rng = np.random.default_rng(1)
    cases = [whole, b"", whole[:50], whole[: len(whole) // 2], whole[:-1]]
    for _ in range(150):  # broken in a random place
        data = bytearray(whole)
        start = int(rng.integers(len(data)))
        data[start : start + 4] = rng.bytes(int(rng.integers(8)))
        cases.append(bytes(data))
    verdicts = [judged(lambda d: decode(d).shape, data) for data in cases]
    assert [judged(probe, data) for data in cases] == verdicts
    assert verdicts[0] == (50, 60)
    assert any(isinstance(verdict, str) for verdict in verdicts[5:])


JPEG_OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0, "quality": 98},
    {"restart_marker_blocks": 2},
    {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "comment": b"\xff\xd9"},
)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("options", JPEG_OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_accepted_by_its_structure_can_be_decoded(
    mode: str, options: dict[str, object]
) -> None:
    """Headers and tables are broken more often than their share of the file: decoders refuse those."""
    whole = encoded(SMOOTH.convert(mode), "JPEG", **options)
    assert intact_size(whole) == (50, 60)
    header = whole.find(b"\xff\xda") + 14
    rng = np.random.default_rng(2)
    accepted = 0
    for number in range(400):
        data = bytearray(whole)
        start = int(rng.integers(2, header if number % 4 else len(data)))
        length = int(rng.integers(1, 9))
        data[start : start + length] = rng.bytes(int(rng.integers(0, 9))) if number % 2 else b""
        if number % 3 == 0:
            data = bytearray(whole)
            data[start] ^= 1 << int(rng.integers(8))
        size = intact_size(bytes(data))
        if size is not None:
            accepted += 1
            assert judged(lambda d: decode(d).shape, bytes(data)) == size
        assert judged(probe, bytes(data)) == judged(lambda d: decode(d).shape, bytes(data))
    assert accepted > 20


def test_a_jpeg_that_is_odd_is_left_to_the_decoder() -> None:
    whole = encoded(SMOOTH, "JPEG")
    stray = whole[:-40] + b"\xff\x05" + whole[-40:]
    for data in (whole[:-2], whole, stray, b"", b"\xff\xd8", encoded(SMOOTH, "PNG")):
        assert (intact_size(data) is None) == (data is not whole)
    two = encoded(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH.resize((20, 20))])
    assert probe(two) == (50, 60)


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:Image appears to be a malformed MPO"
)
@pytest.mark.parametrize(
    "name",
    [
        b"JFIF",
        b"JFIF\x00",
        b"Exif\x00\x00",
        b"Photoshop 3.0\x008BIM",
        b"ICC_PROFILE\x00",
        b"Adobe",
        b"MPF\x00",
        b"MPF\x00MM\x00*",
        b"FPXR\x00",
    ],
)
def test_odd_application_segments_are_judged_as_the_decoder_does(name: bytes) -> None:
    whole = encoded(SMOOTH, "JPEG")
    for number in range(0xE0, 0xF0):
        for payload in (name, name + b"\1", name + b"\0\0\0", name + b"\xff" * 5, name + bytes(20)):
            segment = bytes((0xFF, number)) + (len(payload) + 2).to_bytes(2, "big") + payload
            for rest in (whole[2:], whole[20:]):  # beside the usual first segment, and in its place
                data = whole[:2] + segment + rest
                assert judged(probe, data) == judged(lambda d: decode(d).shape, data)


def test_a_probe_of_odd_jpegs() -> None:
    for image in (SMOOTH.convert("CMYK"), SMOOTH.convert("L"), SMOOTH.resize((3, 500))):
        assert probe(encoded(image, "JPEG")) == (image.height, image.width)
