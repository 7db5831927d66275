"""What is taken for an intact PNG, the decoder takes too."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dri_iqa import png_structure
from dri_iqa.images import MAX_PIXELS, ImageError, decode, probe
from dri_iqa.png_structure import SIGNATURE

PIXELS_HWC = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8), (60, 50)
)
PICTURE = Image.fromarray(PIXELS_HWC)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def intact_size(data: bytes) -> tuple[int, int] | None:
    return png_structure.intact_size(data, MAX_PIXELS)


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], len(SIGNATURE)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in parts)


def judged(judge, data: bytes):
    try:
        return judge(data)
    except ImageError as error:
        return str(error)


def agree(data: bytes) -> bool:
    """Whether it was found intact; then the decoder must say so as well."""
    size = intact_size(data)
    decoded = judged(lambda d: decode(d).shape[:2], data)
    if size is not None:
        assert decoded == size
    assert judged(probe, data) == decoded
    return size is not None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_plain_files_need_no_decoder(mode: str) -> None:
    for level in (1, 6):
        assert intact_size(encoded(PICTURE.convert(mode), compress_level=level)) == (50, 60)
    assert intact_size(encoded(PICTURE.convert(mode), dpi=(72, 72))) == (50, 60)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_broken_files_are_left_to_the_decoder(mode: str) -> None:
    whole = encoded(PICTURE.convert(mode))
    rng = np.random.default_rng(1)
    for number in range(600):
        data = bytearray(whole)
        start = int(rng.integers(8, len(data) if number % 2 else 60))
        if number % 3 == 0:
            data[start] ^= 1 << int(rng.integers(8))
        else:
            length = int(rng.integers(1, 9))
            data[start : start + length] = rng.bytes(int(rng.integers(0, 9)))
        assert not agree(bytes(data)) or bytes(data) == whole


@pytest.mark.filterwarnings("error")
def test_broken_contents_under_right_checksums_too() -> None:
    whole = chunks(encoded(PICTURE.convert("RGB"), dpi=(72, 72)))
    raw = zlib.decompress(b"".join(body for kind, body in whole if kind == b"IDAT"))
    rng, intact = np.random.default_rng(2), 0
    for number in range(600):
        parts = list(whole)
        place = int(rng.integers(len(parts)))
        kind, body = parts[place]
        if number % 2 and kind == b"IDAT":
            rows = bytearray(raw)
            rows[int(rng.integers(50)) * 181] = int(rng.integers(8))  # a row's filter
            if number % 3 == 0:
                del rows[int(rng.integers(len(rows))) :]
            body = zlib.compress(bytes(rows))
        elif body:
            changed = bytearray(body)
            changed[int(rng.integers(len(body)))] = int(rng.integers(256))
            body = bytes(changed)
        parts[place] = (kind, body)
        intact += agree(joined(parts))
    assert intact > 50


def test_odd_orders_and_kinds_of_chunks_are_judged_as_the_decoder_does() -> None:
    header, *rest = chunks(encoded(PICTURE.convert("RGB")))
    (data,) = [body for kind, body in rest if kind == b"IDAT"]
    halves = [(b"IDAT", data[:700]), (b"IDAT", data[700:])]
    end, text, gamma = (b"IEND", b""), (b"tEXt", b"Title\0x"), (b"gAMA", bytes(4))
    assert agree(joined([header, *halves, end]))
    assert agree(joined([header, gamma, *halves, gamma, end]))
    assert agree(joined([header, (b"IDAT", b""), *halves, end]))
    for odd in (
        [header, halves[0], gamma, halves[1], end],
        [header, halves[0], end],
        [header, *halves],
        [*halves, end],
        [header, end],
        [header, text, *halves, end],
        [header, (b"ABCD", b"x"), *halves, end],
        [header, *halves, (b"IDAT", b"more"), end],
        [header, (b"PLTE", bytes(3)), *halves, end],
        [header, header, *halves, end],
    ):
        assert not agree(joined(odd))
    for size in ((0, 0), (2**31, 2**31), (60, 51), (61, 50)):
        body = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + header[1][8:]
        assert not agree(joined([(b"IHDR", body), *halves, end]))


def test_what_is_unusual_is_decoded() -> None:
    palette = PICTURE.convert("RGB").quantize(8)
    wide = Image.fromarray(PIXELS_HWC[..., 0].astype(np.uint16) * 256)
    for image in (palette, wide, PICTURE.convert("1")):
        data = encoded(image)
        assert intact_size(data) is None
        assert probe(data) == (50, 60)
