"""Recipes as values: text, hash, mask, and what applying them does."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import (
    OPERATORS,
    TYPE_IDS,
    Recipe,
    Step,
    apply_recipe,
    draw_recipe,
    parse_recipe,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
CHAIN = Recipe((Step("jpeg", 3), Step("mean_shift", 2, -1), Step("gaussian_blur", 1)))


def test_text_and_back() -> None:
    assert str(CHAIN) == "jpeg:3 mean_shift:-2 gaussian_blur:1"
    assert parse_recipe(str(CHAIN)) == CHAIN
    assert parse_recipe("  jpeg:3\tmean_shift:-2  gaussian_blur:1\n") == CHAIN
    assert str(Recipe()) == "pristine"
    assert parse_recipe("pristine") == parse_recipe("") == Recipe()


@pytest.mark.parametrize("name", ["default", "kadid25", "qpt", "realesrgan"])
def test_every_drawn_recipe_survives_its_text(name: str) -> None:
    config = DegradeConfig(set=name)  # pyright: ignore[reportArgumentType]
    rng = np.random.default_rng(0)
    for _ in range(200):
        recipe = draw_recipe(rng, config)
        assert parse_recipe(str(recipe)) == recipe


def test_recipes_are_values() -> None:
    same = parse_recipe(str(CHAIN))
    assert hash(same) == hash(CHAIN)
    assert same.hash == CHAIN.hash
    assert len({CHAIN, same, Recipe()}) == 2
    assert len(CHAIN) == 3
    assert len(Recipe()) == 0
    assert Recipe() < CHAIN
    with pytest.raises(AttributeError):
        CHAIN.steps = ()  # pyright: ignore[reportAttributeAccessIssue]


def test_type_mask_is_the_set_of_types() -> None:
    assert CHAIN.type_mask == sum(
        1 << TYPE_IDS[name] for name in ("jpeg", "mean_shift", "gaussian_blur")
    )
    other = Recipe((Step("gaussian_blur", 5), Step("mean_shift", 1), Step("jpeg", 1)))
    assert other.type_mask == CHAIN.type_mask
    assert other.hash != CHAIN.hash
    assert Recipe().type_mask == 0


def test_hash_sees_order_type_level_and_sign() -> None:
    texts = [
        "jpeg:3 pixelate:1",
        "pixelate:1 jpeg:3",
        "jpeg:2 pixelate:1",
        "mean_shift:3",
        "mean_shift:-3",
        "",
    ]
    hashes = {parse_recipe(text).hash for text in texts}
    assert len(hashes) == len(texts)
    assert all(-(2**63) <= value < 2**63 for value in hashes)
    assert np.int64(CHAIN.hash) == CHAIN.hash


def test_hash_is_stored_and_must_never_change() -> None:
    assert parse_recipe("jpeg:3 mean_shift:-2").hash == HASH
    code = "from dri_iqa.degradations import parse_recipe; print(parse_recipe('jpeg:3 mean_shift:-2').hash)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == HASH


HASH = 8114543840838281319


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg:3", r"unknown operator 'jpg' \(did you mean jpeg\?\)"),
        (
            "jpeg:3 gausian_blur:2",
            r"unknown operator 'gausian_blur' \(did you mean gaussian_blur\?\)",
        ),
        ("jpeg", "recipe step 'jpeg': expected name:level"),
        ("jpeg:", "recipe step 'jpeg:': expected name:level"),
        ("jpeg:2.5", "expected name:level"),
        ("jpeg:0", "jpeg: got level 0, expected an integer from 1 to 5"),
        ("jpeg:6", "jpeg: got level 6"),
        ("jpeg:-3", "jpeg: got sign -1, but only .*mean_shift, linear_contrast"),
        ("jpeg:3,mean_shift:2", "recipe step 'jpeg:3,mean_shift:2'"),
    ],
)
def test_bad_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(text)


def test_apply_is_the_composition_of_the_operators() -> None:
    rng = np.random.default_rng(5)
    expected = (IMAGE / np.float32(255)).astype(np.float32)
    for step in CHAIN.steps:
        expected = OPERATORS[step.name](expected, step.level, rng, sign=step.sign)
    out = apply_recipe(IMAGE, CHAIN, np.random.default_rng(5))
    assert out.dtype == np.uint8
    assert np.array_equal(out, np.rint(expected * 255).astype(np.uint8))


def test_apply_leaves_its_input_and_rounds_once() -> None:
    before = IMAGE.copy()
    out = apply_recipe(IMAGE, Recipe(), np.random.default_rng(0))
    assert np.array_equal(out, IMAGE)
    assert not np.shares_memory(out, IMAGE)
    apply_recipe(IMAGE, CHAIN, np.random.default_rng(0))
    assert np.array_equal(IMAGE, before)
    # Two shifts that cancel: rounding between them would not give the image back everywhere.
    grey = np.clip(IMAGE, 60, 190)
    there_and_back = parse_recipe("mean_shift:1 mean_shift:-1")
    assert np.array_equal(apply_recipe(grey, there_and_back, np.random.default_rng(0)), grey)


def test_apply_uses_the_configured_table() -> None:
    recipe = parse_recipe("mean_shift:3")
    kadis = apply_recipe(IMAGE, recipe, np.random.default_rng(0), DegradeConfig(levels="kadis"))
    assert np.array_equal(kadis, IMAGE), "level 3 of KADIS's mean shift is the identity"
    assert not np.array_equal(apply_recipe(IMAGE, recipe, np.random.default_rng(0)), IMAGE)
    with pytest.raises(ValueError, match="fixes the sign"):
        apply_recipe(
            IMAGE,
            parse_recipe("mean_shift:-3"),
            np.random.default_rng(0),
            DegradeConfig(levels="arniqa"),
        )


def test_apply_uses_the_configured_speckle() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    recipe = parse_recipe("multiplicative_noise:5")
    spread = {}
    for speckle in ("gaussian", "uniform"):
        config = DegradeConfig(speckle=speckle)
        out = (
            apply_recipe(grey, recipe, np.random.default_rng(0), config).astype(np.float64) / 128
            - 1
        )
        assert abs(out.std() / 0.05**0.5 - 1) < 0.03
        spread[speckle] = np.abs(out).max()
    assert spread["uniform"] < (3 * 0.05) ** 0.5 + 0.01 < spread["gaussian"]


@pytest.mark.parametrize(
    "bad", [IMAGE[..., 0], IMAGE[:31], IMAGE.astype(np.float32), IMAGE.tolist()]
)
def test_apply_refuses_other_images(bad: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"apply_recipe: got shape .*; expected \(H, W, 3\) uint8 RGB"
    ):
        apply_recipe(bad, CHAIN, np.random.default_rng(0))
