"""Maps of a picture's halves as 8-bit grey pictures, for services and tables that speak JSON.

Shapes: h x w positions of a map.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, PngImagePlugin


def unit(map_hw: np.ndarray) -> np.ndarray:
    """A map stretched from its own smallest and largest value to [0, 1], float32; constant: zeros."""
    low, high = float(map_hw.min()), float(map_hw.max())
    return ((map_hw - low) / (high - low if high > low else 1.0)).astype(np.float32)


def heat(map_hw: np.ndarray) -> str:
    """A map as base64 text of an 8-bit grey PNG, one pixel a position of the map.

    0 is the map's smallest and 255 its largest value; the file's text entries `low` and `high` say
    which these are, so that magnitudes of different pictures can still be compared.
    """
    entries = PngImagePlugin.PngInfo()
    entries.add_text("low", repr(float(map_hw.min())))
    entries.add_text("high", repr(float(map_hw.max())))
    buffer = io.BytesIO()
    grey_hw = np.rint(255 * unit(map_hw)).astype(np.uint8)
    Image.fromarray(grey_hw).save(buffer, "PNG", pnginfo=entries)
    return base64.b64encode(buffer.getvalue()).decode()
