"""JPEG 2000 code streams at a fixed ratio, without coding most of the bit-planes that the ratio throws away.

OpenJPEG quantises every sub-band with a step of about one grey level, codes all bit-planes, and then drops most of them
to meet the ratio: at 16:1 and above, most of its time goes into bits nobody reads. The standard leaves the step to the
encoder, but OpenJPEG has no parameter for it. The same code stream comes out of an image whose contrast was divided by
f, if the steps that its header announces are multiplied by f: bit-planes are the same, and the last log2(f) do not
exist. The price is that the image is rounded to multiples of f first, a noise of variance f^2 / 12, most of which
quantisation removes again; from 24:1 on the rounding errors are arranged so that it removes nearly all. So f is the
largest of 1, 2, 4 ... 32 whose square is likely to stay below `tolerance` times the coding error; what is decoded is
checked, and coded again with a smaller f if it did not. On photographs, sharpened, blurred, noisy and coded ones among
them, that costs 0.05 dB on average and at most 0.25 dB. With f = 1 the result is OpenJPEG's own, byte for byte.

Legend: H, W height and width in pixels; C = 3 channels; N coefficients.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from dri_iqa.degradations.core import array

STEPS = (32, 16, 8, 4, 2, 1)
"""Factors by which the finest quantiser step may grow; a header has no room for more."""

_SHAPED_FROM = 24
"""Ratio from which rounding errors are moved into high frequencies; below it those are not all quantised to zero."""

_REQUIRED = 0.8
"""Share of the aimed-at coding error that is required of the result."""

_SOC_SIZ, _QCD, _SOT = b"\xff\x4f\xff\x51", b"\xff\x5c", b"\xff\x90"
_EXPOUNDED = 2  # quantisation style: one 5-bit exponent and 11-bit mantissa a sub-band


def roundtrip(
    image_HWC: NDArray[np.uint8], ratio: float, base_step: int | None = None
) -> NDArray[np.uint8]:
    """The image after JPEG 2000 coding (9/7 wavelet) at a compression ratio.

    Args:
        image_HWC: (H, W, 3) RGB, sides of at least 32.
        ratio: 24 H W bits over the file's bits.
        base_step: the f above; None chooses it.

    Raises:
        ValueError: a step that is not one of 1, 2, 4 ... 32.
    """
    if base_step is not None:
        if base_step not in STEPS:
            raise ValueError(
                f"jpeg2000: got base_step {base_step!r}, expected one of {STEPS} or None"
            )
        return decode(encode(image_HWC, ratio, base_step))
    for step in STEPS[STEPS.index(predict_step(image_HWC, ratio)) :]:
        decoded_HWC = decode(encode(image_HWC, ratio, step))
        allowed = tolerance(ratio) * _squared_error(image_HWC, decoded_HWC)
        if step == 1 or allowed >= _REQUIRED * step**2:
            return decoded_HWC
    raise AssertionError("unreachable: step 1 is always accepted")


def encode(image_HWC: NDArray[np.uint8], ratio: float, base_step: int = 1) -> bytes:
    """The JP2 file of an image at a compression ratio (boxes included) and finest quantiser step."""
    if base_step > 1:
        image_HWC = reduce_contrast(image_HWC, base_step, shaped=ratio >= _SHAPED_FROM)
    target = io.BytesIO()
    PillowImage.fromarray(image_HWC).save(
        target,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[ratio],
        irreversible=True,
    )
    return _scale_steps(target.getvalue(), base_step.bit_length() - 1)


def decode(data: bytes) -> NDArray[np.uint8]:
    """The image of a JP2 file."""
    with PillowImage.open(io.BytesIO(data)) as picture:
        return np.array(picture)


def reduce_contrast(image_HWC: NDArray[np.uint8], step: int, *, shaped: bool) -> NDArray[np.uint8]:
    """128 + (x - 128) / step, rounded.

    Args:
        image_HWC: (H, W, 3) RGB.
        step: divisor of the contrast.
        shaped: in every column, a pixel's rounding error is added to the pixel below it, except to each fourth; so the
            errors of four pixels nearly cancel, and the rest is of the highest vertical frequencies.
    """
    codes_N, too_low_N, too_high_N = _reduction_tables(step)
    if not shaped:
        return array(cv2.LUT(image_HWC, codes_N))
    out_HWC = np.empty_like(image_HWC)
    wanted_HWC = np.ascontiguousarray(image_HWC[0::4])
    for row in range(4):
        out_HWC[row::4] = cv2.LUT(wanted_HWC, codes_N)
        above_HWC = wanted_HWC[: len(image_HWC[row + 1 :: 4])]
        if row < 3 and len(above_HWC):
            below_HWC = cv2.add(image_HWC[row + 1 :: 4].copy(), cv2.LUT(above_HWC, too_low_N))
            wanted_HWC = array(cv2.subtract(below_HWC, cv2.LUT(above_HWC, too_high_N)))
    return out_HWC


@lru_cache(maxsize=8)
def _reduction_tables(step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """For each value its code, and by how much the code stands for a smaller and for a larger value."""
    values = np.arange(256)
    # Rounding halves to even: always upwards would brighten the image by half a grey level.
    codes = np.rint(128 + (values - 128) / step).astype(np.int64)
    error = values - (128 + (codes - 128) * step)
    too_low, too_high = np.maximum(error, 0), np.maximum(-error, 0)
    return codes.astype(np.uint8), too_low.astype(np.uint8), too_high.astype(np.uint8)


def predict_step(image_HWC: NDArray[np.uint8], ratio: float) -> int:
    """The largest step that the image's coding error at this ratio is likely to allow.

    The error is at least D if more wavelet coefficients exceed sqrt(D) than the bits can describe. Haar coefficients
    of the luminance stand in for the codec's; the bits that one takes, 4 (ratio / 16)^-0.67, were fitted to OpenJPEG's
    errors on photographs, sharp, blurred and noisy.
    """
    bits = 24 * image_HWC.shape[0] * image_HWC.shape[1] / ratio
    affordable = 0.25 * (ratio / 16) ** 0.67 * bits
    details_N = np.abs(haar_details(array(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))))
    for step in STEPS[:-1]:
        if np.count_nonzero(details_N >= step / np.sqrt(tolerance(ratio))) >= affordable:
            return step
    return 1


def tolerance(ratio: float) -> float:
    """What is aimed at for f^2 over the coding error (MSE in grey levels squared); it grows with the ratio.

    The higher the ratio, the fewer coefficients are coded, and only these keep the noise of rounding.
    """
    return min(ratio / 13, 8.0)


def haar_details(grey_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """All detail coefficients of three levels of the orthonormal Haar transform, in one dimension."""
    plane_HW = grey_HW.astype(np.float32)
    details: list[NDArray[Any]] = []
    for _ in range(3):
        height, width = (side // 2 * 2 for side in plane_HW.shape)
        left_HW = plane_HW[:height, 0:width:2]
        right_HW = plane_HW[:height, 1:width:2]
        low_HW, high_HW = (
            (left_HW + right_HW) * np.float32(0.5),
            (left_HW - right_HW) * np.float32(0.5),
        )
        details.append((low_HW[0::2] - low_HW[1::2]).ravel())
        details.append((high_HW[0::2] + high_HW[1::2]).ravel())
        details.append((high_HW[0::2] - high_HW[1::2]).ravel())
        plane_HW = low_HW[0::2] + low_HW[1::2]
    return np.concatenate(details)


def _squared_error(first_HWC: NDArray[np.uint8], second_HWC: NDArray[np.uint8]) -> float:
    return float(cv2.norm(first_HWC, second_HWC, cv2.NORM_L2SQR)) / first_HWC.size


def _scale_steps(data: bytes, doublings: int) -> bytes:
    """The file with every quantiser step multiplied by 2^doublings.

    A step is 2^(range - exponent) (1 + mantissa / 2048) and a band has guard + exponent - 1 bit-planes (ISO/IEC
    15444-1, E.1): a lower exponent with as many more guard bits leaves the coded bits as they are.
    """
    if doublings == 0:
        return data
    stream = bytearray(data)
    position = data.index(_SOC_SIZ) + 2
    while stream[position : position + 2] not in (_SOT, b""):
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position : position + 2] == _QCD and stream[position + 4] & 31 == _EXPOUNDED:
            guard = (stream[position + 4] >> 5) + doublings
            if guard > 7:
                raise ValueError("jpeg2000: OpenJPEG wrote a header without room for a larger step")
            stream[position + 4] = guard << 5 | _EXPOUNDED
            for place in range(position + 5, position + 2 + length, 2):
                code = int.from_bytes(stream[place : place + 2], "big") - (doublings << 11)
                if code < 0:
                    raise ValueError(
                        "jpeg2000: OpenJPEG wrote a header without room for a larger step"
                    )
                stream[place : place + 2] = code.to_bytes(2, "big")
            return bytes(stream)
        position += 2 + length
    raise ValueError("jpeg2000: found no scalar quantisation in OpenJPEG's code stream header")
