"""Whether a PNG is intact, without turning it into pixels: a third of the cost of decoding it.

Every chunk is judged by its checksum, the compressed rows by their number and their filters. What is unusual (16 bits,
palettes, interlacing, text of size) is left to the decoder. Source: Portable Network Graphics, third edition (W3C).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples of a pixel by colour type; palettes are left out."""
HARMLESS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
"""Chunks that say nothing about the pixels' layout, and their length."""
LAST_FILTER = 4


def intact_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of an 8-bit PNG that any decoder accepts, or None where only decoding can tell.

    Args:
        data: the file.
        max_pixels: larger images are left to the decoder, which refuses them.
    """
    if not data.startswith(SIGNATURE):
        return None
    pixels: tuple[int, int, int] | None = None
    rows = zlib.decompressobj()
    raw = bytearray()
    started = ended = False
    for kind, body in _chunks(data):
        if pixels is None:
            pixels = _header(body) if kind == b"IHDR" else None
            if pixels is None or pixels[0] * pixels[1] > max_pixels:
                return None
        elif kind == b"IDAT" and not ended:
            started = True
            height, width, channels = pixels
            room = height * (1 + width * channels) + 1 - len(raw)
            try:
                raw += rows.decompress(body, max(1, room))  # never more than the header allows
            except zlib.error:
                return None
            if rows.unconsumed_tail or rows.unused_data:
                return None
        elif kind == b"IEND":
            return _complete(raw, pixels) if rows.eof and not body else None
        elif HARMLESS.get(kind) != len(body):
            return None
        ended = started and kind != b"IDAT"
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of every chunk, up to the first that is cut short or whose checksum is wrong."""
    place, view = len(SIGNATURE), memoryview(data)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return
        yield data[place + 4 : place + 8], data[place + 8 : end]
        place = end + 4


def _header(body: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of a plain 8-bit image."""
    if len(body) != 13:
        return None
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", body
    )
    plain = depth == 8 and not (compression or filtering or interlace)
    if not plain or colour not in CHANNELS or not width or not height:
        return None
    return height, width, CHANNELS[colour]


def _complete(raw: bytearray, pixels: tuple[int, int, int]) -> tuple[int, int] | None:
    height, width, channels = pixels
    stride = 1 + width * channels
    if len(raw) != height * stride:
        return None
    filters_H = np.frombuffer(raw, np.uint8)[::stride]
    return (height, width) if int(filters_H.max()) <= LAST_FILTER else None
