"""CIE L*a*b* (D65) in the coordinates the operators need.

Every operator here keeps or shifts L*, and scales or smooths a* and b*. With f the Lab function of X/Xn, Y/Yn, Z/Zn,
L* = 116 f_Y - 16, a* = 500 (f_X - f_Y), b* = 200 (f_Y - f_Z): so all of that is linear in (f_X, f_Y, f_Z), and L*a*b*
itself is never formed. cv2.cvtColor would be as fast, but its float32 Lab is off by up to 0.45 units.

Legend: H, W height and width; C = 3 channels (R, G, B) or (f_X, f_Y, f_Z).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dri_iqa.degradations.core import Image, array, lookup, strips, to_u16

DELTA = 6 / 29
"""Where the cube root of the Lab function meets its linear toe, on the f axis."""

# sRGB primaries to XYZ (IEC 61966-2-1), each row divided by the D65 white point so that white is (1, 1, 1).
_RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_FORWARD = (_RGB_TO_XYZ / _WHITE[:, None]).astype(np.float32)
_BACKWARD = np.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]).astype(np.float32)

_CODES = np.arange(65536, dtype=np.float64) / 65535
_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4)
_LINEAR = _LINEAR.astype(np.float32)
_ENCODED = np.where(_CODES <= 0.0031308, _CODES * 12.92, 1.055 * _CODES ** (1 / 2.4) - 0.055)
_ENCODED = _ENCODED.astype(np.float32)


def through_f(image_HWC: Image, edit: Callable[[Image], Image]) -> Image:
    """The image with a per-pixel change of (f_X, f_Y, f_Z).

    Args:
        image_HWC: RGB in [0, 1].
        edit: gets some rows of f, which it may overwrite, and returns the new ones.
    """
    out_HWC = np.empty_like(image_HWC)
    for rows in strips(image_HWC):
        f_to_rgb(edit(rgb_to_f(image_HWC[rows])), out_HWC[rows])
    return out_HWC


def whole_f(image_HWC: Image) -> Image:
    """(f_X, f_Y, f_Z) of a whole image, for operators that look at neighbours."""
    f_HWC = np.empty_like(image_HWC)
    for rows in strips(image_HWC):
        f_HWC[rows] = rgb_to_f(image_HWC[rows])
    return f_HWC


def rgb_to_f(image_HWC: Image) -> Image:
    """(f_X, f_Y, f_Z) of an sRGB image in [0, 1]; black is 4/29, white is 1."""
    xyz_HWC = array(cv2.transform(lookup(to_u16(image_HWC), _LINEAR), _FORWARD))
    # f is the cube root down to DELTA**3 and its tangent below: the sum of one term for each side.
    toe_HWC = _at_most(xyz_HWC, DELTA**3)
    xyz_HWC -= toe_HWC
    xyz_HWC += DELTA**3
    slope = 1 / (3 * DELTA**2)
    root_HWC = np.cbrt(xyz_HWC, out=xyz_HWC)
    return array(cv2.addWeighted(root_HWC, 1.0, toe_HWC, slope, -slope * DELTA**3, dst=root_HWC))


def f_to_rgb(f_HWC: Image, out_HWC: Image | None = None) -> Image:
    """The sRGB image of (f_X, f_Y, f_Z), colours outside the gamut clipped to [0, 1]. Overwrites its argument."""
    toe_HWC = _at_most(f_HWC, DELTA)
    f_HWC -= toe_HWC
    f_HWC += DELTA
    cube_HWC = f_HWC * f_HWC
    cube_HWC *= f_HWC
    slope = 3 * DELTA**2
    cv2.addWeighted(cube_HWC, 1.0, toe_HWC, slope, -slope * DELTA, dst=cube_HWC)
    codes_HWC = to_u16(array(cv2.transform(cube_HWC, _BACKWARD)))
    return array(cv2.LUT(codes_HWC, _ENCODED, dst=out_HWC))


def _at_most(values_HWC: Image, bound: float) -> Image:
    """The smaller of each value and the bound; four times as fast as numpy.minimum."""
    return array(cv2.threshold(values_HWC, bound, 0, cv2.THRESH_TRUNC)[1])
