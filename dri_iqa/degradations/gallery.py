"""Pictures of the operators, one row each with its five levels, and of random chains of them.

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations.chain import draw_recipe
from dri_iqa.degradations.core import MIN_SIDE, from_u8, to_u8
from dri_iqa.degradations.recipe import PRISTINE, Recipe, apply_recipe, check_u8
from dri_iqa.degradations.registry import GROUPS, Operator, get_operator
from dri_iqa.images import middle
from dri_iqa.seeds import Purpose, generator

_MARGIN = 12
_LABEL = 148
_CAPTION = 17
_HEADER = 26
_INK, _FAINT, _PAPER = (25, 25, 25), (110, 110, 110), (255, 255, 255)


def gallery(
    image_HWC: NDArray[np.uint8],
    *,
    operators: Sequence[str] | None = None,
    levels: str = "default",
    tile: int = 128,
    context: int = 384,
    columns: int = 1,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """The original and every operator at five levels, shown pixel by pixel (nothing is rescaled).

    The middle of the image is degraded, and the middle of that is shown. Operators with a sign get two rows.

    Args:
        image_HWC: (H, W, 3) RGB, sides of at least 32.
        operators: names, in the order wanted; by default the 24 of the default set.
        levels: table of parameters, `default`, `kadis` or `arniqa`.
        tile: side of a shown piece in pixels, at least 32; less if the image is smaller.
        context: side of the piece that is degraded, for operators that look far and codecs whose files have headers.
        columns: number of columns of operators.
        seed: of the operators' randomness.

    Returns:
        An (H, W, 3) uint8 picture.

    Raises:
        ValueError: an image, operator, table or size that cannot be used.
    """
    check_u8(image_HWC, "gallery")
    if tile < MIN_SIDE or columns < 1:
        raise ValueError(
            f"gallery: got tile {tile} and columns {columns}, expected at least {MIN_SIDE} and 1"
        )
    names = (
        list(operators)
        if operators is not None
        else [n for names in GROUPS.values() for n in names]
    )
    if not names:
        raise ValueError("gallery: got no operators, expected at least one name")
    rows: list[tuple[Operator, int]] = []
    for name in names:
        operator = get_operator(name)
        operator.value(1, levels)
        rows.append((operator, 1))
        if operator.draws_sign(levels):
            rows.append((operator, -1))

    side = min(tile, *image_HWC.shape[:2])
    original_HWC = middle(image_HWC, side)
    deep = -(-len(rows) // columns)
    column_width = _LABEL + 6 * (side + 4) + _MARGIN
    row_height = side + _CAPTION + 6
    size = (2 * _MARGIN + columns * column_width, 2 * _MARGIN + _HEADER + deep * row_height)
    picture = PillowImage.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for column in range(columns):
        for place, title in enumerate(("original", *(f"level {level}" for level in range(1, 6)))):
            x = _MARGIN + column * column_width + _LABEL + place * (side + 4)
            draw.text((x, _MARGIN), title, fill=_FAINT, font=_font(13))
    for index, (operator, sign) in enumerate(rows):
        left = _MARGIN + index // deep * column_width
        top = _MARGIN + _HEADER + index % deep * row_height
        _label(draw, operator, sign, left, top)
        picture.paste(PillowImage.fromarray(original_HWC), (left + _LABEL, top))
        piece_HWC = from_u8(middle(image_HWC, max(_reach(operator, context), tile)))
        for level in range(1, 6):
            rng = generator(seed, Purpose.DEGRADE, 0, index, level)
            degraded_HWC = operator(piece_HWC, level, rng, levels=levels, sign=sign)
            x = left + _LABEL + level * (side + 4)
            picture.paste(PillowImage.fromarray(middle(to_u8(degraded_HWC), side)), (x, top))
            value = operator.value(level, levels, sign)
            draw.text((x, top + side + 1), _parameter(operator, value), fill=_FAINT, font=_font(11))
    return np.array(picture)


def chain_gallery(
    image_HWC: NDArray[np.uint8],
    config: DegradeConfig | None = None,
    *,
    chains: int = 16,
    tile: int = 160,
    context: int = 384,
    columns: int = 4,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """One picture under random chains as training draws them (paper 3.1, Eq. 1), each with its steps below it.

    Args:
        image_HWC: (H, W, 3) RGB, sides of at least 32.
        config: what chains are drawn from; the default configuration if None.
        chains: how many.
        tile: side of a shown piece in pixels, at least 32; less if the image is smaller.
        context: side of the piece that is degraded.
        columns: chains side by side.
        seed: of the chains and of their operators' randomness.

    Returns:
        An (H, W, 3) uint8 picture.

    Raises:
        ValueError: an image or size that cannot be used.
    """
    check_u8(image_HWC, "gallery")
    if tile < MIN_SIDE or columns < 1 or chains < 1:
        raise ValueError(
            f"gallery: got tile {tile}, columns {columns} and {chains} chains, expected at least "
            f"{MIN_SIDE}, 1 and 1"
        )
    config = config or DegradeConfig()
    piece_HWC = middle(image_HWC, max(context, tile))
    made: list[tuple[Recipe, NDArray[np.uint8]]] = []
    for number in range(chains):
        rng = generator(seed, Purpose.DEGRADE, 1, number)
        recipe = draw_recipe(rng, config)
        made.append((recipe, apply_recipe(piece_HWC, recipe, rng, config)))
    side = min(tile, *image_HWC.shape[:2])
    width = max(side, _LABEL) + _MARGIN
    height = side + 14 * max(1, *(len(recipe) for recipe, _ in made)) + _MARGIN
    size = (_MARGIN + columns * width, _MARGIN + -(-chains // columns) * height)
    picture = PillowImage.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (recipe, degraded_HWC) in enumerate(made):
        left, top = _MARGIN + number % columns * width, _MARGIN + number // columns * height
        picture.paste(PillowImage.fromarray(middle(degraded_HWC, side)), (left, top))
        lines = [str(step).replace("_", " ") for step in recipe.steps] or [PRISTINE]
        for line, text in enumerate(lines):
            draw.text((left, top + side + 1 + 14 * line), text, fill=_INK, font=_font(11))
    return np.array(picture)


def _reach(operator: Operator, context: int) -> int:
    """Side of the piece to degrade: small where few places of a large piece change, most of them out of sight."""
    return min(context, 192) if operator.unit in ("patches", "blocks") else context


def _label(draw: ImageDraw.ImageDraw, operator: Operator, sign: int, left: int, top: int) -> None:
    words = operator.name.split("_")
    if operator.signed:
        words.append("(+)" if sign > 0 else "(-)")
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < 17:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    for number, line in enumerate(lines):
        draw.text((left, top + 17 * number), line, fill=_INK, font=_font(14))
    draw.text((left, top + 17 * len(lines) + 3), operator.group, fill=_FAINT, font=_font(11))


def _parameter(operator: Operator, value: float) -> str:
    what, _, unit = operator.unit.partition(", ")
    return f"{what} {value:g} {unit}".rstrip()


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib ships, or Pillow's own font without matplotlib."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
