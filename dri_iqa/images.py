"""Encoded bytes to pixels: the one decoder that ingest, training and scoring share.

What counts as a readable image, and why one was refused, must be the same everywhere; otherwise a
picture could be trained on and later not be scored. Pillow does the work; this file fixes the
accepted formats, the size limit, the conversion to 8-bit RGB and the reasons.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dri_iqa import jpeg_structure, png_structure

MAX_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels (Pillow's own default: 256 MiB of RGB)."""

# EPS and friends are left out on purpose: Pillow would start an external interpreter for them.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
"""File names that folders are searched for; explicit files may be called anything."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")


class ImageError(ValueError):
    """Bytes that are not a usable image; the message is a short reason, e.g. "truncated"."""


def decode(data: bytes, *, exif_transpose: bool = False) -> np.ndarray:
    """Decode JPEG, PNG, WebP, BMP, TIFF, GIF (first frame), PPM, JPEG 2000 or AVIF bytes.

    16-bit samples keep their high byte (grey and colour alike), CMYK and palettes become RGB, alpha
    is dropped without compositing, so the stored colour of a transparent pixel is what is seen.

    Args:
        data: the file's bytes.
        exif_transpose: turn the picture upright as its EXIF orientation says; by default the
            stored pixels are used, as the published label sets do.

    Returns:
        image_HWC, uint8 RGB, contiguous and writable.

    Raises:
        ImageError: "empty", "not an image", "truncated", "decompression bomb (...)",
            "corrupt (...)" or "unsupported pixels (...)".
    """
    image = _loaded(data)
    try:
        if exif_transpose:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"out of memory ({image.width}x{image.height})") from None
    except Exception as error:
        raise ImageError(_reason(error)) from None


def probe(data: bytes) -> tuple[int, int]:
    """(height, width) of an image that `decode` accepts, for less where it is a JPEG or a PNG.

    These are judged by their structure; only where that is broken or unusual, they are decoded.

    Raises:
        ImageError: as `decode`.
    """
    size = jpeg_structure.intact_size(data) or png_structure.intact_size(data, MAX_PIXELS)
    if size is not None and size[0] * size[1] <= MAX_PIXELS:
        return size
    height, width = decode(data).shape[:2]
    return height, width


def content_digest(image_HWC: np.ndarray) -> bytes:
    """SHA-256 of an image's pixels and shape: the same for every encoding of the same picture."""
    digest = hashlib.sha256(struct.pack("<3Q", *image_HWC.shape))
    digest.update(np.ascontiguousarray(image_HWC).data)
    return digest.digest()


def resize_short_side(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Enlarge an image bilinearly to a short side of `size`; larger ones are returned as is.

    Raises:
        ImageError: the image is so narrow that its enlarged form would pass the size limit.
    """
    height, width = image_HWC.shape[:2]
    if min(height, width) >= size:
        return image_HWC
    scale = size / min(height, width)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    if target[0] * target[1] > MAX_PIXELS:
        raise ImageError(f"too narrow ({width}x{height})")
    return resize(image_HWC, *target)


def middle(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image, at most `side` pixels high and wide, as it is."""
    height, width = (min(length, side) for length in image_HWC.shape[:2])
    top, left = (image_HWC.shape[0] - height) // 2, (image_HWC.shape[1] - width) // 2
    return np.ascontiguousarray(image_HWC[top : top + height, left : left + width])


def resize(image_HWC: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a uint8 image, with averaging where it shrinks (Pillow's definition)."""
    source = Image.fromarray(np.ascontiguousarray(image_HWC))
    return np.array(source.resize((width, height), Image.Resampling.BILINEAR))


def _loaded(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty")
    if _cut_short(data):
        raise ImageError("truncated")
    image = _open(data)
    if image.width * image.height > MAX_PIXELS:
        raise _bomb(image.width * image.height)
    try:
        image.load()
    except MemoryError:
        raise ImageError(f"out of memory ({image.width}x{image.height})") from None
    except Exception as error:  # Pillow's plugins raise almost anything on hostile bytes
        raise ImageError(_reason(error)) from None
    return image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The accepted formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        raise _bomb(int(count[1]) if count else MAX_PIXELS) from None
    except UnidentifiedImageError:
        known = data.startswith(_MAGIC) or data[4:12] == b"ftypavif"
        raise ImageError("truncated" if known else "not an image") from None
    except Exception as error:
        raise ImageError(_reason(error)) from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        value_HW = np.asarray(image)
        if value_HW.size and not 0 <= int(value_HW.min()) <= int(value_HW.max()) <= 0xFFFF:
            raise ImageError("unsupported pixels (32-bit integers)")
        grey_HW = (value_HW >> 8).astype(np.uint8)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("unsupported pixels (32-bit floats)")
    image.info.pop("transparency", None)  # a palette's transparency makes convert() warn
    return np.array(image.convert("RGB"))


def _bomb(pixels: int) -> ImageError:
    return ImageError(
        f"decompression bomb ({pixels // 1_000_000} megapixels, limit {MAX_PIXELS // 1_000_000})"
    )


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG's scan or a WebP's container ends early; decoders may paint the rest grey."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2  # walk the header's segments: a thumbnail inside one has an end marker of its own
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill byte
            position += 1
        elif data[position + 1] == 0xDA:  # start of scan: only an end-of-image marker may follow
            return data.rfind(b"\xff\xd9", position) < 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False  # an odd header: leave the judgement to the decoder


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    return f"corrupt ({text[:80] or type(error).__name__})"
