"""What every operator promises, whatever it does: shape, dtype, range, determinism, untouched input, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dri_iqa.degradations import GROUPS, OPERATORS, SETS, TYPE_IDS
from dri_iqa.degradations.levels import TABLES

NAMES = list(OPERATORS)
DEFAULT = [name for names in GROUPS.values() for name in names]
OPTIONAL = ["colour_quantisation", "denoise", "down_up", "fast_fading"]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Natural-like: smooth structure in three colours, an edge, some texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    planes = [
        0.5 + 0.25 * np.sin(x * (1 + 0.3 * c) + y) + 0.15 * np.cos(2 * y - c) for c in range(3)
    ]
    image = np.stack(planes, axis=-1) + rng.normal(0, 0.03, (height, width, 1))
    image[height // 3 :, width // 2 :] *= 0.6
    return np.clip(image, 0, 1).astype(np.float32)


def kinds(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    natural = picture(height, width)
    return {
        "natural": natural,
        "grey": np.repeat(natural[..., :1], 3, axis=2),
        "constant": np.full((height, width, 3), 0.37, np.float32),
        "black": np.zeros((height, width, 3), np.float32),
        "white": np.ones((height, width, 3), np.float32),
        "random": rng.random((height, width, 3), dtype=np.float32),
    }


def signs(name: str) -> tuple[int, ...]:
    return (1, -1) if OPERATORS[name].signed else (1,)


def check(name: str, image: np.ndarray, level: int, sign: int = 1) -> np.ndarray:
    before = image.copy()
    out = OPERATORS[name](image, level, np.random.default_rng(7), sign=sign)
    assert out.shape == image.shape
    assert out.dtype == np.float32
    assert not np.isnan(out).any()
    assert out.min() >= 0
    assert out.max() <= 1
    assert np.array_equal(image, before), "input was modified"
    assert not np.shares_memory(out, image)
    again = OPERATORS[name](image, level, np.random.default_rng(7), sign=sign)
    assert np.array_equal(out, again), "not a function of its rng"
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (33, 97), (97, 33)])
def test_small_images_of_every_kind(name: str, size: tuple[int, int]) -> None:
    for image in kinds(*size).values():
        for level in (1, 2, 3, 4, 5):
            for sign in signs(name):
                check(name, image, level, sign)


@pytest.mark.parametrize("name", NAMES)
def test_training_size(name: str) -> None:
    # Pillow takes a quarter of a second for each palette of a random image: two levels of that one are enough.
    levels = (1, 5) if name == "colour_quantisation" else (1, 2, 3, 4, 5)
    for image in kinds(224, 224).values():
        for level in levels:
            for sign in signs(name):
                check(name, image, level, sign)


def placed(image: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose first byte lies `offset` bytes after a cache line's start."""
    memory = np.empty(image.nbytes + 128, np.uint8)
    start = (offset - memory.ctypes.data) % 64
    copy = memory[start : start + image.nbytes].view(image.dtype).reshape(image.shape)
    copy[...] = image
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_where_arrays_lie(name: str) -> None:
    """Vector code may round differently at the ends of unaligned arrays; then processes would disagree."""
    image = np.random.default_rng(1).random((96, 101, 3), dtype=np.float32)
    first = None
    heap: list[np.ndarray] = []
    for trial in range(12):
        # Odd blocks move what the operator allocates.
        heap.append(np.empty(50_000 + 4_016 * trial, np.uint8))
        if trial % 3 == 2:
            del heap[0]
        source = placed(image, 4 * (trial % 16))
        out = OPERATORS[name](source, 4, np.random.default_rng(7))
        first = out if first is None else first
        assert np.array_equal(out, first), f"trial {trial}: {np.abs(out - first).max()}"


@pytest.fixture(scope="module")
def large() -> dict[str, np.ndarray]:
    return kinds(2040, 1356)


@pytest.mark.parametrize("name", [*DEFAULT, *OPTIONAL])
def test_large_images(name: str, large: dict[str, np.ndarray]) -> None:
    """Every kind of image, each at another level; twice only where something is drawn."""
    for level, (kind, image) in zip((3, 4, 1, 2, 5, 2), large.items(), strict=True):
        # Palettes of random colours take seconds and are no larger a test than those of smaller images.
        if (name, kind) != ("colour_quantisation", "random"):
            before = image[::97].copy()
            out = OPERATORS[name](image, level, np.random.default_rng(0))
            assert out.shape == image.shape
            assert out.dtype == np.float32
            assert 0 <= out.min() <= out.max() <= 1, "NaN would fail this too"
            assert np.array_equal(image[::97], before), "input was modified"
            assert kind != "natural" or not np.array_equal(out, image)


# Their error need not grow with the level, for the reason given.
NOT_MONOTONE = {
    "qpt_glass_blur": "the stronger blur around the larger displacements removes contrast they would misplace",
    "qpt_nearest": "depends on where the sampling grid falls",
    "qpt_bilinear": "reduces without a low-pass filter: aliasing depends on where the grid falls",
    "qpt_bicubic": "reduces without a low-pass filter: aliasing depends on where the grid falls",
    "down_up": "draws its interpolation",
    "fast_fading": "a level sets how often blocks are lost, which ones remains chance",
    "esrgan_resize": "of sign -1, enlarging more loses less when reduced again",
    "esrgan_resize2": "of sign -1, enlarging more loses less when reduced again",
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_MONOTONE])
def test_error_grows_with_the_level(name: str) -> None:
    images = [picture(224, 224, seed) for seed in range(4)]
    for sign in signs(name):
        errors = []
        for level in range(1, 6):
            total = 0.0
            for seed, image in enumerate(images):
                out = OPERATORS[name](image, level, np.random.default_rng(seed), sign=sign)
                total += float(np.mean((out.astype(np.float64) - image) ** 2))
            errors.append(total)
        assert errors[0] > 0, "level 1 is the identity"
        assert all(b >= a for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("levels", ["kadis", "arniqa"])
def test_error_grows_with_the_other_tables_too(levels: str) -> None:
    """Except for mean shift and contrast, whose columns there change sign and pass through the identity."""
    image = picture(224, 224)
    for name in DEFAULT:
        if name not in ("mean_shift", "linear_contrast"):
            errors = []
            for level in range(1, 6):
                out = OPERATORS[name](image, level, np.random.default_rng(0), levels=levels)
                errors.append(float(np.mean((out.astype(np.float64) - image) ** 2)))
            assert all(b >= a for a, b in itertools.pairwise(errors)), (name, errors)


@pytest.mark.parametrize("name", NAMES)
def test_a_view_with_strides_gives_what_its_copy_gives(name: str) -> None:
    image = picture(80, 120)
    view = image[::2, 8:88][:, ::-1]
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    from_view = OPERATORS[name](view, 3, rngs[0])
    assert np.array_equal(from_view, OPERATORS[name](view.copy(), 3, rngs[1]))


GOOD = picture(40, 40)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (GOOD.tolist(), "list"),
        ((GOOD * 255).astype(np.uint8), "uint8"),
        (GOOD.astype(np.float64), "float64"),
        (GOOD[..., :1], r"\(40, 40, 1\)"),
        (GOOD[..., 0], r"\(40, 40\)"),
        (GOOD.transpose(2, 0, 1), r"\(3, 40, 40\)"),
        (GOOD[:31], "31x40"),
        (GOOD[:, :31], "40x31"),
        (np.where(np.arange(40)[:, None, None] == 9, np.float32(np.nan), GOOD), "NaN"),
        (np.full((40, 40, 3), np.inf, np.float32), "inf"),
        (GOOD + np.float32(0.6), r"values in \[.*1\."),
        (GOOD - np.float32(0.9), r"values in \[-0"),
    ],
)
def test_bad_images_are_named(image: np.ndarray, got: str) -> None:
    for name, operator in OPERATORS.items():
        with pytest.raises(ValueError, match=rf"^{name}: got .*{got}.*; expected \(H, W, 3\)"):
            operator(image, 3, np.random.default_rng(0))


def test_negative_zero_is_zero() -> None:
    image = np.full((40, 40, 3), -0.0, np.float32)
    out = OPERATORS["saturation_lab"](image, 3, np.random.default_rng(0))
    assert np.abs(out).max() < 1e-6


@pytest.mark.parametrize("level", [0, 6, -1, 2.0, True, "3", None])
def test_bad_levels_are_named(level: object) -> None:
    for name, operator in OPERATORS.items():
        with pytest.raises(ValueError, match=f"^{name}: got level {level!r}, expected an integer"):
            operator(GOOD, level, np.random.default_rng(0))  # pyright: ignore[reportArgumentType]


def test_bad_sign_table_and_rng_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="jpeg: got sign -1"):
        OPERATORS["jpeg"](GOOD, 1, rng, sign=-1)
    with pytest.raises(ValueError, match="got sign 0"):
        OPERATORS["mean_shift"](GOOD, 1, rng, sign=0)
    with pytest.raises(ValueError, match="table 'kadis' fixes the sign"):
        OPERATORS["mean_shift"](GOOD, 1, rng, levels="kadis", sign=-1)
    with pytest.raises(
        ValueError, match="got levels 'matlab', expected one of default, kadis, arniqa"
    ):
        OPERATORS["jpeg"](GOOD, 1, rng, levels="matlab")
    with pytest.raises(ValueError, match="got rng of type RandomState"):
        OPERATORS["jpeg"](GOOD, 1, np.random.RandomState(0))  # pyright: ignore[reportArgumentType]


def test_type_ids_are_frozen() -> None:
    """Bits of stored type masks: new operators may be appended, nothing may move."""
    first = [
        "gaussian_blur",
        "lens_blur",
        "motion_blur",
        "colour_diffusion",
        "colour_shift",
        "saturation_hsv",
        "saturation_lab",
        "jpeg2000",
        "jpeg",
        "white_noise",
        "white_noise_ycbcr",
        "impulse_noise",
        "multiplicative_noise",
        "brighten",
        "darken",
        "mean_shift",
        "jitter",
        "non_eccentricity_patch",
        "pixelate",
        "quantisation",
        "colour_block",
        "high_sharpen",
        "linear_contrast",
        "non_linear_contrast",
        "colour_quantisation",
        "denoise",
        "down_up",
        "fast_fading",
    ]
    assert [TYPE_IDS[name] for name in first] == list(range(28))
    assert TYPE_IDS["qpt_sharpen"] == 28
    assert TYPE_IDS["esrgan_blur"] == 49
    assert TYPE_IDS["esrgan_sinc"] == 59
    assert max(TYPE_IDS.values()) < 63, "a type mask is a positive int64"


def test_sets_and_groups() -> None:
    sizes = {group: len(names) for group, names in GROUPS.items()}
    assert sizes == {
        "blur": 3,
        "colour": 4,
        "compression": 2,
        "noise": 4,
        "brightness": 3,
        "spatial": 5,
        "sharpness": 3,
    }
    assert sum(len(names) for names in SETS["kadid25"].values()) == 25
    assert sum(len(names) for names in SETS["qpt"].values()) == 21
    assert len(GROUPS) == len(SETS["kadid25"]) == len(SETS["qpt"]) == 7


# Spec of the default column, written out again: a slip of the pen in levels.py would otherwise go unnoticed.
SPEC = """
gaussian_blur .5 1 2 3.5 5 | .1 .5 1 2 5
lens_blur 1 2 4 6 8
motion_blur 3 5 8 12 16 | 1 2 4 6 10
colour_diffusion 1 3 6 8 12
colour_shift 1 3 6 8 12
saturation_hsv .4 .2 .1 0 -.4
saturation_lab 1.5 2 3 6 9 | 1 2 3 6 9
jpeg2000 16 32 45 120 170 | 16 32 45 120 400 | 16 32 45 120 170
jpeg 43 36 24 7 4
white_noise .001 .002 .003 .005 .01
white_noise_ycbcr .0001 .0005 .001 .002 .003
impulse_noise .001 .005 .01 .02 .03
multiplicative_noise .001 .005 .01 .02 .05
brighten .1 .2 .4 .7 1.1
darken .05 .1 .2 .4 .8
mean_shift .03 .06 .09 .12 .15 | .15 .08 0 -.08 -.15 | 0 .08 -.08 .15 -.15
jitter .05 .1 .2 .5 1
non_eccentricity_patch 20 40 60 80 100
pixelate .01 .05 .1 .2 .5
quantisation 20 16 13 10 7
colour_block 2 4 6 8 10
high_sharpen 1 2 3 6 12
linear_contrast .1 .15 .2 .25 .3 | .3 .15 0 -.4 -.6 | 0 .15 -.4 .3 -.6
non_linear_contrast .4 .3 .2 .1 .05
colour_quantisation 64 48 32 16 8
denoise .01 .03 .05 .1 .15
down_up 2 3 4 8 16
fast_fading 26 23 20.5 18 15.5
"""


def test_levels_are_the_specified_ones() -> None:
    for line in SPEC.split("\n")[1:-1]:
        columns = line.split(" | ")
        name, *first = columns[0].split()
        rows = [first, *(column.split() for column in columns[1:])]
        # A missing column repeats the one before it: default, then KADIS, then ARNIQA.
        while len(rows) < 3:
            rows.append(rows[-1])
        for levels, row in zip(("default", "kadis", "arniqa"), rows, strict=True):
            values = [OPERATORS[name].value(level, levels) for level in range(1, 6)]
            assert values == [float(number) for number in row], (name, levels)
    contrast = [OPERATORS["linear_contrast"].value(level, sign=-1) for level in range(1, 6)]
    assert contrast == [-0.2, -0.3, -0.4, -0.5, -0.6]


def test_tables_are_complete_and_kadis_is_kadis() -> None:
    for table in TABLES.values():
        assert set(table) == set(OPERATORS)
        assert all(len(values) == 5 for values in table.values())
    value = OPERATORS["jpeg2000"].value
    assert [value(5, levels) for levels in ("default", "kadis", "arniqa")] == [170, 400, 170]
    shift = OPERATORS["mean_shift"].value
    assert [shift(level, "kadis") for level in range(1, 6)] == [0.15, 0.08, 0, -0.08, -0.15]
    assert [shift(level, "arniqa") for level in range(1, 6)] == [0, 0.08, -0.08, 0.15, -0.15]
    assert shift(2, sign=-1) == -0.06


@pytest.mark.parametrize("levels", ["kadis", "arniqa"])
def test_the_other_tables_run(levels: str) -> None:
    for name in DEFAULT:
        for level in (1, 5):
            out = OPERATORS[name](GOOD, level, np.random.default_rng(0), levels=levels)
            assert out.shape == GOOD.shape
            assert out.min() >= 0
            assert out.max() <= 1
