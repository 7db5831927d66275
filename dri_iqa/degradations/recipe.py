"""A degradation recipe is a value: an ordered tuple of (operator, level, sign).

Legend: H, W height and width in pixels; C = 3 channels.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations.core import MIN_SIDE, from_u8, to_u8
from dri_iqa.degradations.registry import OPERATORS, TYPE_IDS, get_operator

PRISTINE = "pristine"
"""How the empty recipe is written."""

_STEP = re.compile(r"(?P<name>[^\s:]+):(?P<level>-?\d+)")


@dataclass(frozen=True, order=True)
class Step:
    """One operator at one level; `sign` is -1 for the opposite direction of mean shift and contrast.

    Raises:
        ValueError: unknown operator, level outside 1..5, or a sign that the operator does not have.
    """

    name: str
    level: int
    sign: int = 1

    def __post_init__(self) -> None:
        get_operator(self.name).value(self.level, sign=self.sign)

    def __str__(self) -> str:
        return f"{self.name}:{self.sign * self.level}"


@dataclass(frozen=True, order=True)
class Recipe:
    """Operators in the order in which they are applied; hashable, comparable, printable."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return " ".join(str(step) for step in self.steps) or PRISTINE

    def __len__(self) -> int:
        return len(self.steps)

    def __bool__(self) -> bool:
        return True  # an empty recipe is a recipe

    @property
    def type_mask(self) -> int:
        """The set of operator types as an int64 bit mask over `TYPE_IDS`."""
        mask = 0
        for step in self.steps:
            mask |= 1 << TYPE_IDS[step.name]
        return mask

    @property
    def hash(self) -> int:
        """An int64 that identifies the ordered list of (type, level, sign), the same in every process and version."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def parse_recipe(text: str) -> Recipe:
    """The recipe that prints as `text`: `name:level` separated by blanks, a minus before the level for sign -1.

    Raises:
        ValueError: a step that is not of that form, an unknown operator (the nearest is named), a bad level or sign.
    """
    if text.strip() in ("", PRISTINE):
        return Recipe()
    steps = []
    for word in text.split():
        match = _STEP.fullmatch(word)
        if match is None:
            raise ValueError(
                f"recipe step {word!r}: expected name:level, as in 'jpeg:3 mean_shift:-2'"
            )
        level = int(match["level"])
        steps.append(Step(match["name"], abs(level), -1 if level < 0 else 1))
    return Recipe(tuple(steps))


def apply_recipe(
    image_HWC: NDArray[np.uint8],
    recipe: Recipe,
    rng: np.random.Generator,
    config: DegradeConfig | None = None,
) -> NDArray[np.uint8]:
    """Degrade a copy of an 8-bit image by a recipe (paper 3.1, Eq. 1).

    Works in float32, clipped to [0, 1] after every operator and rounded to 8 bits once, at the end.

    Args:
        image_HWC: (H, W, 3) RGB, sides of at least 32.
        recipe: what to apply, in order.
        rng: source of the operators' randomness.
        config: which table of levels and which speckle; the default configuration if None.

    Raises:
        ValueError: another shape or dtype, or a recipe that the table of levels does not allow.
    """
    check_u8(image_HWC, "apply_recipe")
    config = config or DegradeConfig()
    degraded_HWC = from_u8(image_HWC)
    if not recipe.steps:
        return image_HWC.copy()
    for step in recipe.steps:
        operator = OPERATORS[step.name]
        value = operator.value(step.level, config.levels, step.sign)
        options = {"distribution": config.speckle} if step.name == "multiplicative_noise" else {}
        degraded_HWC = operator.function(degraded_HWC, value, rng, **options)
    return to_u8(degraded_HWC)


def check_u8(image_HWC: NDArray[np.uint8], name: str) -> None:
    """Raise ValueError unless the image is (H, W, 3) uint8 with sides of at least 32."""
    shape = getattr(image_HWC, "shape", None)
    dtype = getattr(image_HWC, "dtype", type(image_HWC).__name__)
    if (
        dtype != np.uint8
        or shape is None
        or len(shape) != 3
        or shape[2] != 3
        or min(shape[:2]) < MIN_SIDE
    ):
        raise ValueError(
            f"{name}: got shape {shape}, dtype {dtype}; expected (H, W, 3) uint8 RGB, sides >= {MIN_SIDE}"
        )
