"""Do scores fall when a photograph is degraded in steps? Every operator at its five levels, on pictures of one's own.

It needs no human scores: a level of an operator is worse than the one before by construction, whatever the picture.

Shapes: N pictures, R operators (one row for each sign), L = 6 levels of which the first is the picture as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dri_iqa.degradations.recipe import check_u8
from dri_iqa.degradations.steps import LEVELS, at_levels, directions
from dri_iqa.images import ImageError
from dri_iqa.pictures import Picture, read_pixels, reason
from dri_iqa.scoring import Scorer
from dri_iqa.seeds import Purpose

CROPS = "uniform9"
"""Crops at the same places of every level: random ones follow from the pixels, and would differ between levels."""


@dataclass(frozen=True)
class Falls:
    """How scores of pictures follow one operator."""

    operator: str
    """Name, with a minus before it for the operator's other direction."""
    steps: int
    """Pairs of neighbouring levels: five a picture."""
    falling: int
    """Of them, those where the worse level has the lower score."""
    scores_L: tuple[float, ...]
    """Mean score over pictures at every level, in units of the labels."""

    @property
    def share(self) -> float:
        """Of steps that fall, 0 to 1; NaN without any."""
        return self.falling / self.steps if self.steps else float("nan")


def score_levels(
    scorer: Scorer,
    pictures: Iterable[Picture],
    *,
    crops: str | int = CROPS,
    levels: str = "default",
    seed: int = 0,
) -> Iterator[np.ndarray | str]:
    """Scores of every operator at every level, picture by picture.

    The noise of an operator is the same at its five levels, so that a step changes its strength and nothing else.

    Args:
        scorer: the model.
        pictures: paths, encoded bytes, or uint8 RGB arrays (H, W, 3), sides of at least 32.
        crops: see `crop_positions`; random ones lie elsewhere at every level.
        levels: table of parameters, `default`, `kadis` or `arniqa`.
        seed: of the operators' noise.

    Yields:
        (R, L) float64 scores in units of the labels, rows as in `directions`; or why there are none.
    """
    rows = directions(levels)
    for index, picture in enumerate(pictures):
        try:
            image_HWC = read_pixels(picture, scorer.head.scoring.exif_transpose)
            check_u8(image_HWC, "degradations")
        except (ImageError, OSError, ValueError) as error:
            yield reason(error)
            continue
        series = _degraded(image_HWC, rows, levels, seed, index)
        found = list(scorer.iter_rows(series, crops=crops))
        if failed := [row["error"] for row in found if row["error"] is not None]:
            yield failed[0]
            continue
        first, *rest = (row["score"] for row in found)
        scores_RL = np.full((len(rows), LEVELS), first)
        scores_RL[:, 1:] = np.reshape(rest, (len(rows), LEVELS - 1))
        yield scores_RL


def _degraded(
    image_HWC: np.ndarray, rows: list[tuple[str, int]], levels: str, seed: int, index: int
) -> Iterator[np.ndarray]:
    """The picture, and then every row's levels."""
    yield image_HWC
    for number, (name, sign) in enumerate(rows):
        noise = (seed, Purpose.DEGRADE, 0, index, number)
        yield from at_levels(image_HWC, name, sign, range(1, LEVELS), seed=noise, levels=levels)


def summarise(
    tables: Iterable[np.ndarray], *, higher_is_better: bool, levels: str = "default"
) -> list[Falls]:
    """One row an operator, and last one named `all`.

    Args:
        tables: (R, L) scores of each picture.
        higher_is_better: which way the labels go.
        levels: table of parameters that they were made with.
    """
    names = ["-" * (sign < 0) + name for name, sign in directions(levels)]
    scores_NRL = np.reshape(list(tables), (-1, len(names), LEVELS))
    worse_NRL = -np.diff(scores_NRL) if higher_is_better else np.diff(scores_NRL)
    falls_NRL = worse_NRL > 0
    steps = len(scores_NRL) * (LEVELS - 1)
    mean_RL = scores_NRL.mean(0) if len(scores_NRL) else np.full(scores_NRL.shape[1:], np.nan)
    table = [
        Falls(name, steps, int(falls_NRL[:, row].sum()), tuple(map(float, mean_RL[row])))
        for row, name in enumerate(names)
    ]
    total = tuple(map(float, mean_RL.mean(0)))
    return [*table, Falls("all", steps * len(names), int(falls_NRL.sum()), total)]
