"""Whether a JPEG file is whole, from its markers alone: a tenth of the time that decoding takes.

A decoder learns nothing from a damaged scan either: libjpeg fills the gap with grey and goes on. What it does refuse
are broken tables and headers, and those are checked here. Whatever is unusual, though it may be fine, is left to a
decoder.

Source: ITU-T T.81, annex B (markers and segments), annex C (Huffman codes), annex G (progressive scans).
"""

from __future__ import annotations

import re
from functools import lru_cache

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a scan's data: stuffed zeros, restart markers and fill bytes belong to it."""
_SEQUENTIAL, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_DHT, _EOI, _SOS, _DQT, _DRI, _COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_APP = range(0xE0, 0xF0)


def intact_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that is whole as far as its structure tells.

    None where something is missing, broken or unusual: then only a decoder can judge.
    """
    return _Walk(data).run()


class _Walk:
    """One pass over the segments, with the tables that were defined so far."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.frame: int | None = None
        self.size = (0, 0)
        self.components: set[int] = set()
        self.shown: set[int] = set()
        self.huffman: set[int] = set()
        self.quantisers: set[int] = set()

    def run(self) -> tuple[int, int] | None:
        data, position = self.data, 2
        if not data.startswith(b"\xff\xd8"):
            return None
        while position + 2 <= len(data) and data[position] == 0xFF:
            marker = data[position + 1]
            if marker == 0xFF:  # fill byte
                position += 1
                continue
            if marker == _EOI:
                return self.size if self.shown and self.shown == self.components else None
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            segment = data[position + 4 : position + 2 + length]
            if len(segment) != length - 2 or not self._segment(marker, segment):
                return None
            position += 2 + length
            if marker == _SOS:
                end = _MARKER.search(data, position)
                if end is None:
                    return None
                position = end.start()
        return None

    def _segment(self, marker: int, segment: bytes) -> bool:
        """Whether a segment is as a decoder needs it."""
        if marker == _DHT:
            tables = _huffman_tables(segment)
            self.huffman |= tables
            return bool(tables)
        if marker == _DQT:
            return self._quantisers(segment)
        if marker == _SOS:
            return self._scan(segment)
        if marker in (_SEQUENTIAL, _EXTENDED, _PROGRESSIVE):
            return self._frame(marker, segment)
        if marker == _DRI:
            return len(segment) == 2
        if marker in _APP:
            # An index of further pictures, or a header too short to be one of the known ones, is the decoder's.
            least = 14 if segment.startswith(b"ICC_PROFILE") else 12
            return len(segment) >= least and not segment.startswith(b"MPF\0")
        return marker == _COM

    def _frame(self, marker: int, segment: bytes) -> bool:
        if self.frame is not None or len(segment) < 6 or segment[0] != 8:
            return False
        self.frame = marker
        self.size = (int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big"))
        count = segment[5]
        if len(segment) != 6 + 3 * count or count not in (1, 3, 4):
            return False
        self.components = set(segment[6::3])
        sampling, tables = segment[7::3], segment[8::3]
        return (
            min(self.size) > 0
            and len(self.components) == count
            and all({value >> 4, value & 15} <= {1, 2, 4} for value in sampling)
            and sum((value >> 4) * (value & 15) for value in sampling) <= 10  # blocks of a unit
            and self.quantisers.issuperset(tables)
        )

    def _quantisers(self, segment: bytes) -> bool:
        position = 0
        while position < len(segment):
            precision, number = segment[position] >> 4, segment[position] & 15
            position += 1 + 64 * (precision + 1)
            if precision > 1 or number > 3:
                return False
            self.quantisers.add(number)
        return position == len(segment)

    def _scan(self, segment: bytes) -> bool:
        count = segment[0] if segment else 0
        if not 1 <= count <= 4 or len(segment) != 4 + 2 * count or self.frame is None:
            return False
        scanned, tables = segment[1 : 1 + 2 * count : 2], segment[2 : 2 + 2 * count : 2]
        first, last, bits = segment[-3:]
        high, low = bits >> 4, bits & 15
        if not self.components.issuperset(scanned) or len(set(scanned)) != count:
            return False
        needed = {head >> 4 for head in tables} if first == 0 and not high else set()
        if self.frame != _PROGRESSIVE:
            if (first, last, bits) != (0, 63, 0):
                return False
            needed |= {16 + (head & 15) for head in tables}
        elif first == 0:
            if last or low > 13 or (high and high != low + 1):
                return False
        else:
            if count > 1 or not first <= last <= 63 or low > 13 or (high and high != low + 1):
                return False
            needed |= {16 + (head & 15) for head in tables}
        self.shown.update(scanned)
        return self.huffman.issuperset(needed)


@lru_cache(maxsize=256)  # most files have the standard's tables
def _huffman_tables(segment: bytes) -> frozenset[int]:
    """The tables of a segment by class and number; none where one is broken."""
    found: set[int] = set()
    position = 0
    while position + 17 <= len(segment):
        head, counts = segment[position], segment[position + 1 : position + 17]
        symbols = segment[position + 17 : position + 17 + sum(counts)]
        position += 17 + sum(counts)
        if head & 0xEF > 3 or len(symbols) != sum(counts) or len(symbols) > 256:
            return frozenset()
        if head < 16 and any(symbol > 15 for symbol in symbols):  # a table of DC differences
            return frozenset()
        code = 0
        for bits, number in enumerate(counts, start=1):
            code += number
            if code >= 1 << bits:  # the code of ones alone is not allowed
                return frozenset()
            code <<= 1
        found.add(head)
    return frozenset(found) if position == len(segment) else frozenset()
