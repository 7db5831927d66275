"""The best few values for a histogram: one-dimensional optimal quantisation by dynamic programming.

Legend: N = 256 bins; K number of levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def optimal_levels(histogram_N: NDArray[np.int64], levels: int) -> NDArray[np.float32]:
    """For each of the bins' values i / 255, the level that replaces it.

    Classes are intervals of bins; a class's level is its mean; the classes minimise the summed squared error. That is
    multi-level Otsu thresholding and the optimum of Lloyd-Max quantisation.

    Args:
        histogram_N: counts of the values 0..255.
        levels: number of classes, at least 1.

    Returns:
        256 float32 in [0, 1].
    """
    bins = np.flatnonzero(histogram_N)
    table = np.arange(256, dtype=np.float64)
    if bins.size > levels:
        starts = _partition(bins.astype(np.float64), histogram_N[bins].astype(np.float64), levels)
        ends = np.append(starts[1:], bins.size)
        for start, end in zip(starts, ends, strict=True):
            weights = histogram_N[bins[start:end]]
            table[bins[start:end]] = np.average(bins[start:end], weights=weights)
    return (table / 255).astype(np.float32)


def _partition(values: NDArray[np.float64], weights: NDArray[np.float64], levels: int) -> list[int]:
    """First index of each of `levels` intervals of `values` with the least weighted squared error."""
    size = values.size
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    first = np.concatenate([[0.0], np.cumsum(weights * values)])
    # gain[j, i]: what the interval [i, j) does not lose, i.e. (sum w v)^2 / sum w; the larger the better.
    span = mass[:, None] - mass[None, :]
    gain = np.square(first[:, None] - first[None, :])
    gain /= np.where(span > 0, span, 1.0)
    gain[span <= 0] = -np.inf
    best = gain[:, 0].copy()
    choices = np.zeros((levels, size + 1), dtype=np.intp)
    total = np.empty_like(gain)
    ends = np.arange(size + 1)
    for level in range(1, levels - 1):
        np.add(gain, best, out=total)
        choices[level] = total.argmax(axis=1)
        best = total[ends, choices[level]]
    if levels > 1:
        choices[levels - 1, size] = (gain[size] + best).argmax()
    starts = []
    end = size
    for level in range(levels - 1, -1, -1):
        end = int(choices[level, end]) if level else 0
        starts.append(end)
    return starts[::-1]
