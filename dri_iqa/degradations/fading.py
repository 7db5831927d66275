"""Fast fading (not in the default set): a wavelet-coded picture whose packets are lost in bursts.

Damaging bits of a real JPEG 2000 code stream makes decoders fail unpredictably, so loss is simulated where it acts: on
code-blocks of a CDF 9/7 wavelet transform in YCbCr.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dri_iqa.degradations.core import Image, array, clip01

LEVELS = 5
"""Levels of the wavelet transform, fewer for images whose side is below 64."""

CODE_BLOCK = 64
"""Side of a code-block, coefficients."""

MEAN_BURST = 4.0
"""Mean length of a fade, code-blocks."""

MARGIN = 20.0
"""Signal-to-noise ratio, as a power ratio, below which a block is lost."""

# Lifting steps of the CDF 9/7 wavelet (ISO/IEC 15444-1, annex F), and the scaling that makes it nearly orthonormal:
# the square root of 2 over the standard's K.
_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_SCALE = math.sqrt(2) / 1.230174104914001
_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def fast_fading(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Lose code-blocks of a wavelet-coded image in bursts.

    A two-state (Gilbert-Elliott) channel runs over the code-blocks in coding order. Its share of fades is the
    probability 1 - exp(-20 / snr) that the momentary ratio of a Rayleigh channel is below 20 (13 dB): 5 to 43 % at the
    five levels, in bursts of 4 blocks on average. A faded block keeps its top two to four bit-planes, or (one in four,
    and never in the lowest band) nothing.

    Args:
        image_HWC: RGB in [0, 1].
        value: signal-to-noise ratio of the channel, 15.5 to 26 dB (LIVE's lies in 15.5 to 26.1).
        rng: draws the channel's states and what a faded block keeps.

    Source: after the fast-fading class of the LIVE database (release 2); the channel model is ours.
    """
    levels = LEVELS
    while levels > 1 and min(image_HWC.shape[:2]) < 2 ** (levels + 1):
        levels -= 1
    ycbcr_HWC = array(cv2.transform(image_HWC, _TO_YCBCR.astype(np.float32)))
    planes_CHW = [wavelet(ycbcr_HWC[..., channel], levels) for channel in range(3)]
    boxes = band_boxes(image_HWC.shape[0], image_HWC.shape[1], levels)
    fade = 1 - math.exp(-MARGIN / 10 ** (value / 10))
    leave = 1 / MEAN_BURST
    enter = leave * fade / (1 - fade)
    bad = bool(rng.random() < fade)
    for band, (top, bottom, left, right) in enumerate(boxes):
        for coefficients in planes_CHW:
            for y in range(top, bottom, CODE_BLOCK):
                for x in range(left, right, CODE_BLOCK):
                    if bad:
                        block = coefficients[
                            y : min(y + CODE_BLOCK, bottom), x : min(x + CODE_BLOCK, right)
                        ]
                        _damage(block, band == 0, rng)
                    bad = bool(rng.random() < (1 - leave if bad else enter))
    restored = cv2.merge([unwavelet(coefficients, levels) for coefficients in planes_CHW])
    return clip01(array(cv2.transform(restored, np.linalg.inv(_TO_YCBCR).astype(np.float32))))


def _damage(block: NDArray[np.float32], lowest: bool, rng: np.random.Generator) -> None:
    """What is left of a code-block when the refinement of its coefficients does not arrive, in place."""
    keep, lost = int(rng.integers(2, 5)), bool(rng.random() < 0.25)
    peak = float(np.abs(block).max())
    if peak == 0:
        return
    if lost and not lowest:
        block[...] = 0
        return
    step = np.float32(2.0 ** (np.floor(np.log2(peak)) + 1 - keep))
    magnitude = np.floor(np.abs(block) / step)
    block[...] = np.sign(block) * np.where(magnitude > 0, (magnitude + np.float32(0.5)) * step, 0)


def band_boxes(height: int, width: int, levels: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of each sub-band in the array that `wavelet` returns, from coarse to fine."""
    sizes = [(height, width)]
    for _ in range(levels):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    boxes = [(0, sizes[-1][0], 0, sizes[-1][1])]
    for (full_y, full_x), (low_y, low_x) in zip(sizes[-2::-1], sizes[:0:-1], strict=True):
        boxes.append((0, low_y, low_x, full_x))
        boxes.append((low_y, full_y, 0, low_x))
        boxes.append((low_y, full_y, low_x, full_x))
    return boxes


def wavelet(plane_HW: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """CDF 9/7 transform with whole-sample symmetric borders; low bands lie at the top left."""
    out_HW = plane_HW.copy()
    height, width = out_HW.shape
    for _ in range(levels):
        part = out_HW[:height, :width]
        part[...] = _analyse(_analyse(part).T).T
        height, width = (height + 1) // 2, (width + 1) // 2
    return out_HW


def unwavelet(coefficients_HW: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Inverse of `wavelet`."""
    out_HW = coefficients_HW.copy()
    sizes = [out_HW.shape]
    for _ in range(levels - 1):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    for height, width in reversed(sizes):
        part = out_HW[:height, :width]
        part[...] = _synthesise(_synthesise(part.T).T)
    return out_HW


def _analyse(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """One level along the first axis: low-pass half, then high-pass half."""
    even, odd = signal[0::2].copy(), signal[1::2].copy()
    for step, factor in enumerate(_LIFTING):
        if step % 2 == 0:
            odd += np.float32(factor) * _right_sum(even, len(odd))
        else:
            even += np.float32(factor) * _left_sum(odd, len(even))
    return np.concatenate([even * np.float32(_SCALE), odd * np.float32(1 / _SCALE)])


def _synthesise(bands: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of `_analyse`."""
    half = (len(bands) + 1) // 2
    even = bands[:half] * np.float32(1 / _SCALE)
    odd = bands[half:] * np.float32(_SCALE)
    for step in range(3, -1, -1):
        if step % 2 == 0:
            odd -= np.float32(_LIFTING[step]) * _right_sum(even, len(odd))
        else:
            even -= np.float32(_LIFTING[step]) * _left_sum(odd, len(even))
    out = np.empty_like(bands)
    out[0::2], out[1::2] = even, odd
    return out


def _right_sum(even: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """For each odd sample the sum of its two even neighbours; the last is mirrored."""
    after = even[1:] if len(even) > count else np.concatenate([even[1:], even[-1:]])
    return even[:count] + after


def _left_sum(odd: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """For each even sample the sum of its two odd neighbours; the first and last are mirrored."""
    before = np.concatenate([odd[:1], odd])[:count]
    after = odd if len(odd) == count else np.concatenate([odd, odd[-1:]])
    return before + after
