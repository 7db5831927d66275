"""The parameter of every operator at its five levels.

`kadis` is the column of KADIS's MATLAB generator (imdist_generator.m), `arniqa` that of ARNIQA (utils/utils_data.py).
`default` departs from KADIS where a KADIS level is the identity or where severity does not grow with the level: mean
shift and contrast, whose signs are drawn instead; level 1 of Gaussian blur, motion blur and Lab saturation; and level 5
of JPEG 2000, where ARNIQA's 170 is kept. An identity inside a chain would make different recipes give equal images.
"""

from __future__ import annotations

from dri_iqa.degradations.realesrgan import ENLARGE, RANGES, fifths

Levels = tuple[float, float, float, float, float]

DEFAULT: dict[str, Levels] = {
    "gaussian_blur": (0.5, 1, 2, 3.5, 5),
    "lens_blur": (1, 2, 4, 6, 8),
    "motion_blur": (3, 5, 8, 12, 16),
    "colour_diffusion": (1, 3, 6, 8, 12),
    "colour_shift": (1, 3, 6, 8, 12),
    "saturation_hsv": (0.4, 0.2, 0.1, 0, -0.4),
    "saturation_lab": (1.5, 2, 3, 6, 9),
    "jpeg2000": (16, 32, 45, 120, 170),
    "jpeg": (43, 36, 24, 7, 4),
    "white_noise": (0.001, 0.002, 0.003, 0.005, 0.01),
    "white_noise_ycbcr": (0.0001, 0.0005, 0.001, 0.002, 0.003),
    "impulse_noise": (0.001, 0.005, 0.01, 0.02, 0.03),
    "multiplicative_noise": (0.001, 0.005, 0.01, 0.02, 0.05),
    "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),
    "darken": (0.05, 0.1, 0.2, 0.4, 0.8),
    "mean_shift": (0.03, 0.06, 0.09, 0.12, 0.15),
    "jitter": (0.05, 0.1, 0.2, 0.5, 1),
    "non_eccentricity_patch": (20, 40, 60, 80, 100),
    "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),
    "quantisation": (20, 16, 13, 10, 7),
    "colour_block": (2, 4, 6, 8, 10),
    "high_sharpen": (1, 2, 3, 6, 12),
    "linear_contrast": (0.1, 0.15, 0.2, 0.25, 0.3),
    "non_linear_contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "colour_quantisation": (64, 48, 32, 16, 8),
    "denoise": (0.01, 0.03, 0.05, 0.1, 0.15),
    "down_up": (2, 3, 4, 8, 16),
    "fast_fading": (26, 23, 20.5, 18, 15.5),
    # The set `qpt`: as in tw's QualityAwareTransform.
    "qpt_sharpen": (0.5, 0.7, 0.9, 1.1, 1.3),
    "qpt_gaussian_blur": (0.5, 1, 1.5, 2, 2.5),
    "qpt_motion_blur": (0.2, 0.4, 0.6, 0.8, 1),
    "qpt_median_blur": (3, 5, 7, 9, 11),
    "qpt_glass_blur": (1, 2, 3, 4, 5),
    "qpt_generalised_blur": (0.5, 1, 1.5, 2, 2.5),
    "qpt_defocus": (3, 4, 5, 6, 7),
    "qpt_zoom_blur": (1.02, 1.04, 1.06, 1.08, 1.1),
    "qpt_iso_noise": (0.1, 0.3, 0.5, 0.7, 0.9),
    "qpt_colour_noise": (4, 8, 12, 16, 18),
    "qpt_grey_noise": (4, 8, 12, 16, 18),
    "qpt_multiplicative_noise": (0.05, 0.1, 0.15, 0.2, 0.25),
    "qpt_brightness": (1.05, 1.1, 1.15, 1.2, 1.25),
    "qpt_contrast": (1.05, 1.1, 1.15, 1.2, 1.25),
    "qpt_gamma": (1.025, 1.05, 1.075, 1.1, 1.125),
    "qpt_hue": (0.01, 0.02, 0.03, 0.04, 0.05),
    "qpt_saturation": (1.1, 1.2, 1.3, 1.4, 1.5),
    "qpt_jpeg": (90, 70, 50, 30, 10),
    "qpt_nearest": (2, 2.5, 3, 3.5, 4),
    "qpt_bilinear": (2, 2.5, 3, 3.5, 4),
    "qpt_bicubic": (2, 2.5, 3, 3.5, 4),
    # The set `realesrgan`: strong ends of the fifths of each range.
    **{name: fifths(limits) for name, limits in RANGES.items()},
}

NEGATIVE: dict[str, Levels] = {
    "mean_shift": (-0.03, -0.06, -0.09, -0.12, -0.15),
    "linear_contrast": (-0.2, -0.3, -0.4, -0.5, -0.6),
    "qpt_brightness": (0.95, 0.9, 0.85, 0.8, 0.75),
    "qpt_contrast": (0.95, 0.9, 0.85, 0.8, 0.75),
    "qpt_gamma": (0.95, 0.925, 0.9, 0.875, 0.85),
    "qpt_hue": (-0.01, -0.02, -0.03, -0.04, -0.05),
    "qpt_saturation": (0.9, 0.8, 0.7, 0.6, 0.5),
    **{name: fifths(limits) for name, limits in ENLARGE.items()},
}
"""Default levels of the types that have a sign, for sign -1. Contrast loss needs larger values to be seen as much."""

KADIS: dict[str, Levels] = {
    **DEFAULT,
    "gaussian_blur": (0.1, 0.5, 1, 2, 5),
    "motion_blur": (1, 2, 4, 6, 10),
    "saturation_lab": (1, 2, 3, 6, 9),
    "jpeg2000": (16, 32, 45, 120, 400),
    "mean_shift": (0.15, 0.08, 0, -0.08, -0.15),
    "linear_contrast": (0.3, 0.15, 0, -0.4, -0.6),
}

ARNIQA: dict[str, Levels] = {
    **KADIS,
    "jpeg2000": (16, 32, 45, 120, 170),
    "mean_shift": (0, 0.08, -0.08, 0.15, -0.15),
    "linear_contrast": (0, 0.15, -0.4, 0.3, -0.6),
}

TABLES = {"default": DEFAULT, "kadis": KADIS, "arniqa": ARNIQA}
