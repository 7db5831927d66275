"""JPEG and JPEG 2000 against Pillow, palettes, and the wavelet of fast fading."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dri_iqa.degradations import OPERATORS
from dri_iqa.degradations import codestream as codec
from dri_iqa.degradations.fading import band_boxes, unwavelet, wavelet

ASTRONAUT = np.ascontiguousarray(data.astronaut()[:224, 100:324])
COFFEE = np.ascontiguousarray(data.coffee()[80:304, 200:424])
NOISY = np.clip(COFFEE + np.random.default_rng(0).normal(0, 15, COFFEE.shape), 0, 255).astype(
    np.uint8
)
SMOOTH = np.ascontiguousarray(
    np.asarray(Image.fromarray(COFFEE).resize((40, 40)).resize((224, 224)))
)
PHOTOS = {"astronaut": ASTRONAUT, "coffee": COFFEE, "noisy": NOISY, "smooth": SMOOTH}
RATIOS = (16, 32, 45, 120, 170, 400)


def as_float(image: np.ndarray) -> np.ndarray:
    return (image / np.float32(255)).astype(np.float32)


def as_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(image * 255).astype(np.uint8)


def through_pillow(image: np.ndarray, **options: object) -> tuple[np.ndarray, int]:
    target = io.BytesIO()
    Image.fromarray(image).save(target, **options)  # pyright: ignore[reportArgumentType]
    return np.array(Image.open(target)), len(target.getvalue())


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(224, 224), (33, 97)])
def test_jpeg_is_pillows(level: int, size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(ASTRONAUT[: size[0], : size[1]])
    quality = int(OPERATORS["jpeg"].value(level))
    expected, _ = through_pillow(image, format="JPEG", quality=quality, subsampling="4:2:0")
    out = OPERATORS["jpeg"](as_float(image), level, np.random.default_rng(0))
    assert np.array_equal(as_bytes(out), expected)


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (33, 97)])
def test_jpeg2000_with_base_step_1_is_pillows(level: int, size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(ASTRONAUT[: size[0], : size[1]])
    ratio = OPERATORS["jpeg2000"].value(level)
    expected, _ = through_pillow(
        image, format="JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True
    )
    out = OPERATORS["jpeg2000"](as_float(image), level, np.random.default_rng(0), base_step=1)
    assert np.array_equal(as_bytes(out), expected)


@pytest.mark.parametrize("name", list(PHOTOS))
@pytest.mark.parametrize("ratio", RATIOS)
def test_coarser_steps_cost_no_quality(name: str, ratio: float) -> None:
    """At the same ratio the distortion stays that of OpenJPEG's own finest step, for every kind of image."""
    image = PHOTOS[name]
    own = codec.roundtrip(image, ratio, 1)
    ours = codec.roundtrip(image, ratio)
    assert psnr(ours, image) > psnr(own, image) - 0.25
    assert psnr(ours, own) > min(psnr(own, image) + 4, 40), (
        "the two differ by less than either from the image"
    )


@pytest.mark.parametrize("base_step", codec.STEPS)
def test_files_keep_the_ratio(base_step: int) -> None:
    for ratio in RATIOS[:5]:
        data_ = codec.encode(NOISY, ratio, base_step)
        assert len(data_) <= 1.03 * NOISY.size / ratio + 40
        assert len(data_) >= 0.9 * NOISY.size / ratio - 40, "the budget is used"


def test_the_step_is_as_large_as_the_image_allows() -> None:
    assert codec.predict_step(NOISY, 170) >= 8
    assert codec.predict_step(SMOOTH, 16) == 1
    steps = [codec.predict_step(COFFEE, ratio) for ratio in RATIOS]
    assert steps == sorted(steps)
    with pytest.raises(ValueError, match="got base_step 3, expected one of"):
        codec.roundtrip(NOISY, 16, 3)


def test_a_step_that_was_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "predict_step", lambda image, ratio: 16)
    tried = []
    encode = codec.encode
    monkeypatch.setattr(
        codec, "encode", lambda image, ratio, step: tried.append(step) or encode(image, ratio, step)
    )
    out = codec.roundtrip(SMOOTH, 16)
    assert tried[0] == 16
    assert len(tried) > 1
    assert psnr(out, SMOOTH) > psnr(codec.decode(encode(SMOOTH, 16)), SMOOTH) - 0.25


def test_scaled_steps_decode_to_the_scaled_image() -> None:
    """Without loss to speak of, dividing the contrast and multiplying the steps is the identity up to rounding."""
    for step in codec.STEPS:
        out = codec.decode(codec.encode(SMOOTH, 4, step)).astype(np.float64)
        assert np.abs(out - SMOOTH).max() <= 1.5 * step + 2
        assert abs((out - SMOOTH).mean()) < 0.6 + step / 64


@pytest.mark.parametrize("step", codec.STEPS[:-1])
@pytest.mark.parametrize("height", [64, 63, 62, 61])
def test_reduced_contrast(step: int, height: int) -> None:
    image = np.random.default_rng(step).integers(step, 255 - step, (height, 40, 3), dtype=np.uint8)
    before = image.copy()
    plain = codec.reduce_contrast(image, step, shaped=False)
    assert np.array_equal(plain, np.rint(128 + (image.astype(float) - 128) / step))
    shaped = codec.reduce_contrast(image, step, shaped=True)
    error = image.astype(float) - (128 + (shaped.astype(float) - 128) * step)
    assert np.abs(error).max() <= step
    # In runs of four down a column the errors add up to that of one rounding, not to that of four.
    sums = error[: height // 4 * 4].reshape(-1, 4, 40, 3).sum(axis=1)
    assert np.abs(sums).max() <= step / 2
    assert np.array_equal(image, before)


def test_a_header_without_steps_is_refused() -> None:
    broken = codec.encode(SMOOTH, 16).replace(b"\xff\x5c", b"\xff\x64")
    with pytest.raises(ValueError, match="no scalar quantisation"):
        codec._scale_steps(broken, 2)


@pytest.mark.parametrize("level", [1, 3, 5])
def test_colour_quantisation_dithers(level: int) -> None:
    operator = OPERATORS["colour_quantisation"]
    out = operator(as_float(ASTRONAUT), level, np.random.default_rng(0))
    colours = int(operator.value(level))
    assert len(np.unique(as_bytes(out).reshape(-1, 3), axis=0)) <= colours
    flat = np.array(Image.fromarray(ASTRONAUT).quantize(colors=colours).convert("RGB"))
    # Error diffusion is worse sample by sample, and keeps the means of small blocks better.
    errors = [image.astype(np.float64) - ASTRONAUT for image in (as_bytes(out), flat)]
    assert np.mean(errors[0] ** 2) > np.mean(errors[1] ** 2)
    means = [np.abs(error.reshape(14, 16, 14, 16, 3).mean(axis=(1, 3))).mean() for error in errors]
    assert means[0] < means[1]


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (50, 41), (224, 224)])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_wavelet_is_invertible_and_nearly_orthonormal(size: tuple[int, int], levels: int) -> None:
    rng = np.random.default_rng(0)
    plane = rng.standard_normal(size).astype(np.float32)
    coefficients = wavelet(plane, levels)
    assert np.abs(unwavelet(coefficients, levels) - plane).max() < 1e-5
    assert 0.7 < (coefficients**2).sum() / (plane**2).sum() < 1.4
    flat = wavelet(np.ones(size, np.float32), levels)
    boxes = band_boxes(*size, levels)
    assert sum((box[1] - box[0]) * (box[3] - box[2]) for box in boxes) == plane.size
    for top, bottom, left, right in boxes[1:]:
        assert np.abs(flat[top:bottom, left:right]).max() < 1e-5 * 2**levels, (
            "details of a constant vanish"
        )
