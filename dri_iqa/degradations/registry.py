"""Which operators there are: names, groups, stable ids, and the callable that checks its input.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dri_iqa.config import nearest
from dri_iqa.degradations import (
    blur,
    brightness,
    colour,
    compression,
    fading,
    noise,
    qpt,
    realesrgan,
    resize,
    sharpness,
    spatial,
)
from dri_iqa.degradations.core import Image, check_image
from dri_iqa.degradations.levels import NEGATIVE, TABLES


@dataclass(frozen=True)
class Operator:
    """One type of degradation at five levels."""

    name: str
    """Name in recipes."""
    group: str
    """Group of the chain that it belongs to."""
    function: Callable[..., Image]
    """`function(image_HWC, value, rng)` without checks; its docstring gives definition, unit, range and source."""
    unit: str
    """What the level's value is, for tables and pictures."""

    @property
    def signed(self) -> bool:
        """Whether the operator has two directions."""
        return self.name in NEGATIVE

    def draws_sign(self, levels: str) -> bool:
        """Whether a chain draws the sign: not where the table of levels gives each level a sign of its own."""
        return self.signed and TABLES[levels][self.name] == TABLES["default"][self.name]

    def value(self, level: int, levels: str = "default", sign: int = 1) -> float:
        """The parameter at a level, 1 to 5.

        Args:
            level: severity.
            levels: table, `default`, `kadis` or `arniqa`.
            sign: -1 for the opposite direction of signed types; the other two tables carry signs of their own.

        Raises:
            ValueError: no such level, table or sign.
        """
        if (
            isinstance(level, bool)
            or not isinstance(level, int | np.integer)
            or not 1 <= level <= 5
        ):
            raise ValueError(f"{self.name}: got level {level!r}, expected an integer from 1 to 5")
        if levels not in TABLES:
            known = ", ".join(TABLES)
            raise ValueError(f"{self.name}: got levels {levels!r}, expected one of {known}")
        if sign not in (1, -1):
            raise ValueError(f"{self.name}: got sign {sign!r}, expected 1 or -1")
        if sign == 1:
            return TABLES[levels][self.name][level - 1]
        if not self.signed:
            raise ValueError(
                f"{self.name}: got sign -1, but only {', '.join(NEGATIVE)} have a sign"
            )
        if not self.draws_sign(levels):
            raise ValueError(
                f"{self.name}: got sign -1, but table {levels!r} fixes the sign of each level"
            )
        return NEGATIVE[self.name][level - 1]

    def __call__(
        self,
        image_HWC: Image,
        level: int,
        rng: np.random.Generator,
        *,
        levels: str = "default",
        sign: int = 1,
        **options: Any,
    ) -> Image:
        """Degrade a copy of an image.

        Args:
            image_HWC: (H, W, 3) float32 RGB in [0, 1], sides of at least 32.
            level: severity, 1 to 5.
            rng: source of all randomness of the operator.
            levels: table of parameters, `default`, `kadis` or `arniqa`.
            sign: direction, for `mean_shift` and `linear_contrast`.
            options: variants of the operator's function, e.g. `distribution="uniform"` of multiplicative noise.

        Returns:
            Same shape and dtype, in [0, 1].

        Raises:
            ValueError: an image, level, table, sign or generator that cannot be used.
        """
        value = self.value(level, levels, sign)
        image_HWC = check_image(image_HWC, self.name)
        if not isinstance(rng, np.random.Generator):
            raise ValueError(
                f"{self.name}: got rng of type {type(rng).__name__}, expected numpy.random.Generator"
            )
        return self.function(image_HWC, value, rng, **options)


# The order is that of the ids, which are bits of type masks in stored queues and files: append, never reorder.
_ALL = (
    Operator("gaussian_blur", "blur", blur.gaussian_blur, "sigma, px"),
    Operator("lens_blur", "blur", blur.lens_blur, "radius, px"),
    Operator("motion_blur", "blur", blur.motion_blur, "length, px"),
    Operator("colour_diffusion", "colour", colour.colour_diffusion, "amplification"),
    Operator("colour_shift", "colour", colour.colour_shift, "distance, px"),
    Operator("saturation_hsv", "colour", colour.saturation_hsv, "factor"),
    Operator("saturation_lab", "colour", colour.saturation_lab, "factor"),
    Operator("jpeg2000", "compression", compression.jpeg2000, "ratio"),
    Operator("jpeg", "compression", compression.jpeg, "quality"),
    Operator("white_noise", "noise", noise.white_noise, "variance"),
    Operator("white_noise_ycbcr", "noise", noise.white_noise_ycbcr, "variance"),
    Operator("impulse_noise", "noise", noise.impulse_noise, "density"),
    Operator("multiplicative_noise", "noise", noise.multiplicative_noise, "variance"),
    Operator("brighten", "brightness", brightness.brighten, "lift"),
    Operator("darken", "brightness", brightness.darken, "depth"),
    Operator("mean_shift", "brightness", brightness.mean_shift, "shift"),
    Operator("jitter", "spatial", spatial.jitter, "sigma, px"),
    Operator("non_eccentricity_patch", "spatial", spatial.non_eccentricity_patch, "patches"),
    Operator("pixelate", "spatial", spatial.pixelate, "strength"),
    Operator("quantisation", "spatial", spatial.quantisation, "levels"),
    Operator("colour_block", "spatial", spatial.colour_block, "blocks"),
    Operator("high_sharpen", "sharpness", sharpness.high_sharpen, "amount"),
    Operator("linear_contrast", "sharpness", sharpness.linear_contrast, "knot shift"),
    Operator("non_linear_contrast", "sharpness", sharpness.non_linear_contrast, "half range"),
    Operator("colour_quantisation", "colour", colour.colour_quantisation, "colours"),
    Operator("denoise", "noise", noise.denoise, "variance"),
    Operator("down_up", "resize", resize.down_up, "factor"),
    Operator("fast_fading", "compression", fading.fast_fading, "SNR, dB"),
    Operator("qpt_sharpen", "sharpness", qpt.sharpen, "amount"),
    Operator("qpt_gaussian_blur", "blur", qpt.gaussian_blur, "sigma, px"),
    Operator("qpt_motion_blur", "blur", qpt.motion_blur, "share of 7 px"),
    Operator("qpt_median_blur", "blur", qpt.median_blur, "side, px"),
    Operator("qpt_glass_blur", "blur", qpt.glass_blur, "distance, px"),
    Operator("qpt_generalised_blur", "blur", qpt.generalised_blur, "sigma, px"),
    Operator("qpt_defocus", "blur", qpt.defocus, "radius, px"),
    Operator("qpt_zoom_blur", "blur", qpt.zoom_blur, "zoom"),
    Operator("qpt_iso_noise", "noise", qpt.iso_noise, "intensity"),
    Operator("qpt_colour_noise", "noise", qpt.colour_noise, "sigma, /255"),
    Operator("qpt_grey_noise", "noise", qpt.grey_noise, "sigma, /255"),
    Operator("qpt_multiplicative_noise", "noise", qpt.multiplicative_noise, "half width"),
    Operator("qpt_brightness", "tone", qpt.brightness, "factor"),
    Operator("qpt_contrast", "tone", qpt.contrast, "factor"),
    Operator("qpt_gamma", "tone", qpt.gamma, "exponent"),
    Operator("qpt_hue", "colour", qpt.hue, "turns"),
    Operator("qpt_saturation", "colour", qpt.saturation, "factor"),
    Operator("qpt_jpeg", "compression", compression.jpeg, "quality"),
    Operator("qpt_nearest", "resize", qpt.nearest, "factor"),
    Operator("qpt_bilinear", "resize", qpt.bilinear, "factor"),
    Operator("qpt_bicubic", "resize", qpt.bicubic, "factor"),
    *(
        Operator(name, group, make(name), unit)
        for suffix in ("", "2")
        for name, group, make, unit in (
            (f"esrgan_blur{suffix}", "blur", realesrgan.make_blur, "sigma to, px"),
            (f"esrgan_resize{suffix}", "resize", realesrgan.make_resize, "scale to"),
            (f"esrgan_gaussian{suffix}", "noise", realesrgan.make_gaussian, "sigma to, /255"),
            (f"esrgan_poisson{suffix}", "noise", realesrgan.make_poisson, "scale to"),
            (f"esrgan_jpeg{suffix}", "compression", realesrgan.make_jpeg, "quality to"),
        )
    ),
    Operator("esrgan_sinc", "blur", realesrgan.sinc, "cut-off to"),
)

OPERATORS: dict[str, Operator] = {operator.name: operator for operator in _ALL}
"""Every operator by name."""

TYPE_IDS: dict[str, int] = {operator.name: index for index, operator in enumerate(_ALL)}
"""Bit of each operator in a recipe's type mask."""


def _groups(names: list[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        group = OPERATORS[name].group
        groups[group] = (*groups.get(group, ()), name)
    return groups


_DEFAULT = [operator.name for operator in _ALL[:24]]
_KADID25 = [name for name in _DEFAULT if name != "non_linear_contrast"]

SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "default": _groups(_DEFAULT),
    "kadid25": _groups([*_KADID25, "colour_quantisation", "denoise"]),
    "qpt": _groups([name for name in OPERATORS if name.startswith("qpt_")]),
    "realesrgan": _groups([name for name in OPERATORS if name.startswith("esrgan_")]),
}
"""Operators of each set, by group. The chain of `realesrgan` has an order of its own and does not use its groups."""

GROUPS: dict[str, tuple[str, ...]] = SETS["default"]
"""The seven groups of the default set."""


def get_operator(name: str) -> Operator:
    """The operator of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in OPERATORS:
        raise ValueError(
            f"unknown operator {name!r}{nearest(name, list(OPERATORS))}; known: {', '.join(OPERATORS)}"
        )
    return OPERATORS[name]
