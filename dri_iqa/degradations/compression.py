"""Compression: JPEG 2000 and JPEG.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from dri_iqa.degradations import codestream
from dri_iqa.degradations.core import Image, array, from_u8, to_u8


def jpeg2000(
    image_HWC: Image, value: float, rng: np.random.Generator, base_step: int | None = None
) -> Image:
    """JPEG 2000 with the irreversible 9/7 wavelet at a fixed compression ratio, through OpenJPEG (Pillow).

    Args:
        image_HWC: RGB in [0, 1]; rounded to 8 bits.
        value: ratio of 24 bits a pixel to the file's; 16 to 400; 16 means 1.5 bits a pixel.
        rng: not used.
        base_step: finest quantiser step of the code stream, 1, 2, 4 ... 32; 1 is OpenJPEG's own. By default the largest
            that the image's distortion allows (see codestream.py).

    Source: KADIS imcompressjpeg2k.m. With six resolutions (the default; eight fail below 65 pixels).
    """
    return from_u8(codestream.roundtrip(to_u8(image_HWC), value, base_step))


def jpeg(image_HWC: Image, value: float, rng: np.random.Generator) -> Image:
    """Baseline JPEG with 4:2:0 chroma.

    Args:
        image_HWC: RGB in [0, 1]; rounded to 8 bits.
        value: libjpeg's quality, 1 to 100.
        rng: not used.

    Source: KADIS imcompressjpeg.m. The pixels are Pillow's at the same quality: both use libjpeg-turbo.
    """
    bgr_HWC = cv2.cvtColor(to_u8(image_HWC), cv2.COLOR_RGB2BGR)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        int(value),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    done, data = cv2.imencode(".jpg", bgr_HWC, options)
    if not done:
        raise ValueError(f"jpeg: OpenCV could not encode an image of shape {image_HWC.shape}")
    return from_u8(array(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)))
