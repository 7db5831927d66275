"""Noise: white in RGB and YCbCr, impulse, multiplicative, and (not in the default set) noise that was removed again.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from dri_iqa.degradations.core import Image, array, clip01, lookup, noise_table, normals, random_u16

# Studio-range YCbCr of ITU-R BT.601: Y in [16, 235] / 255, Cb and Cr in [16, 240] / 255 (MATLAB's rgb2ycbcr).
_TO_YCBCR = (
    np.array(
        [
            [65.481, 128.553, 24.966],
            [-37.797, -74.203, 112.0],
            [112.0, -93.786, -18.214],
        ]
    )
    / 255
)
_YCBCR_OFFSET = np.array([16.0, 128.0, 128.0]) / 255
_FORWARD = np.hstack([_TO_YCBCR, _YCBCR_OFFSET[:, None]]).astype(np.float32)
_INVERSE = np.linalg.inv(_TO_YCBCR)
_BACKWARD = np.hstack([_INVERSE, -(_INVERSE @ _YCBCR_OFFSET)[:, None]]).astype(np.float32)


def white_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Add independent Gaussian noise to every channel.

    Args:
        image_HWC: RGB in [0, 1].
        value: variance, for values in [0, 1]; 0.001 to 0.01.
        rng: draws the noise.

    Source: KADIS imnoisegauss.m.
    """
    noise_HWC = normals(image_HWC.shape, math.sqrt(value), rng)
    return clip01(np.add(image_HWC, noise_HWC, out=noise_HWC))


def white_noise_ycbcr(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Add Gaussian noise to studio-range YCbCr, clip there to [0, 1], and convert back.

    Args:
        image_HWC: RGB in [0, 1].
        value: variance, for YCbCr divided by 255; 0.0001 to 0.003.
        rng: draws the noise.

    Source: KADIS imnoisecolormap.m (imnoise on rgb2ycbcr). Full-range YCbCr would give about 14 % less noise.
    """
    ycbcr_HWC = array(cv2.transform(image_HWC, _FORWARD))
    ycbcr_HWC += normals(image_HWC.shape, math.sqrt(value), rng)
    return clip01(array(cv2.transform(clip01(ycbcr_HWC), _BACKWARD)))


def impulse_noise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Set single channel samples to 0 or 1 (coloured salt and pepper).

    Args:
        image_HWC: RGB in [0, 1].
        value: probability of a sample to be replaced, 0.001 to 0.03; 0 and 1 are equally likely.
        rng: draws places and values.

    Source: KADIS imnoiseimpulse.m (imnoise 'salt & pepper' on a three-channel image).
    """
    out_HWC = image_HWC.copy()
    flat = out_HWC.reshape(-1)
    # The gaps between hits of a Bernoulli process are geometric: this draws 1 number a hit instead of 1 a sample.
    start, batch = -1, int(flat.size * value * 1.1) + 16
    while start < flat.size:
        places = start + np.cumsum(rng.geometric(value, batch))
        start = int(places[-1])
        places = places[places < flat.size]
        flat[places] = rng.integers(0, 2, places.size, dtype=np.uint8)
    return out_HWC


def multiplicative_noise(
    image_HWC: Image, value: float, rng: np.random.Generator, distribution: str = "gaussian"
) -> Image:
    """x + x n with independent n of mean 0 (speckle).

    Args:
        image_HWC: RGB in [0, 1].
        value: variance of n, 0.001 to 0.05.
        rng: draws n.
        distribution: `gaussian`, or `uniform` on +-sqrt(3 value) as MATLAB's imnoise draws it.

    Source: KADIS imnoisemultiplicative.m; Gaussian as in ARNIQA and Re-IQA.
    """
    if distribution == "gaussian":
        table = noise_table(math.sqrt(value), 1.0)
    elif distribution == "uniform":
        centred = (np.arange(65536) + 0.5) / 32768 - 1
        table = (1 + math.sqrt(3 * value) * centred).astype(np.float32)
    else:
        raise ValueError(
            f"multiplicative_noise: got distribution {distribution!r}, expected gaussian or uniform"
        )
    factor_HWC = lookup(random_u16(image_HWC.shape, rng), table)
    return clip01(np.multiply(image_HWC, factor_HWC, out=factor_HWC))


def denoise(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Add white noise, then smooth it away: with a Gaussian (sigma = 3) or a 5 x 5 mean, equally likely.

    Args:
        image_HWC: RGB in [0, 1].
        value: variance of the noise, 0.01 to 0.15.
        rng: draws the filter and the noise.

    Source: KADID-10k type 15 (there the denoiser is a network); the two filters are Re-IQA's.
    """
    gaussian = bool(rng.integers(0, 2))
    noisy_HWC = white_noise(image_HWC, value, rng)
    if gaussian:
        out = cv2.GaussianBlur(noisy_HWC, (13, 13), 3.0, borderType=cv2.BORDER_REPLICATE)
    else:
        out = cv2.blur(noisy_HWC, (5, 5), borderType=cv2.BORDER_REPLICATE)
    return clip01(array(out))
