"""Order and choice without lists: permutations and sets of ids that do not grow with what they are over.

An epoch of 10^9 images is shuffled by a function that is asked for the places of one step, and the images that take
part are a few runs of neighbouring ids; neither is ever written out.

Shape suffixes: N any number of places, R runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from dri_iqa.seeds import Purpose

ROUNDS = 8
"""Rounds of the Feistel network. Three of ideal functions look random (Luby and Rackoff 1988); small ranges, whose
halves have few values, need more: `tests/data/test_order.py` holds them to what true shuffles give."""
SMALLEST = 64
"""Fewest cells of the network's square, for the same reason; what lies outside the range is walked over."""


class Permutation:
    """A shuffle of 0..count-1 that is evaluated where it is asked for, in integer arithmetic alone: the same on every
    machine.

    A Feistel network over a rectangle of rows x columns that is little larger than the range (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains"); places that it sends outside go through it again until they are inside.

    Args:
        count: length of the range, below 2^62.
        run_seed: seed of the run, >= 0.
        purpose: which stream; streams with different purposes are independent.
        indices: non-negative integers that name the draw.
    """

    def __init__(self, count: int, run_seed: int, purpose: Purpose, *indices: int) -> None:
        self._count = np.uint64(count)
        rows = math.isqrt(max(count, SMALLEST) - 1) + 1
        columns = -(-max(count, SMALLEST) // rows)
        self._sides = np.array([rows, columns], dtype=np.uint64)
        seeds = np.random.SeedSequence((run_seed, int(purpose), *indices))
        self._keys = seeds.generate_state(ROUNDS, np.uint64)

    def __call__(self, place_N: np.ndarray) -> np.ndarray:
        """Where places go: int64, each below the count, for places below the count."""
        value_N = self._rounds(np.asarray(place_N).astype(np.uint64))
        while (outside_N := value_N >= self._count).any():
            value_N[outside_N] = self._rounds(value_N[outside_N])
        return value_N.astype(np.int64)

    def _rounds(self, value_N: np.ndarray) -> np.ndarray:
        rows, columns = self._sides
        left_N, right_N = value_N // columns, value_N % columns
        for key in self._keys:
            # the half that is moved alternates, and with it the number of values it can have
            left_N, right_N = right_N, (left_N + _mixed(right_N, key)) % rows
            rows, columns = columns, rows
        return left_N * columns + right_N


def _mixed(value_N: np.ndarray, key: np.uint64) -> np.ndarray:
    """64 bits that look drawn anew for each pair of value and key (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits_N = (value_N + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))


class IdSet(Collection[int]):
    """A set of numbers in ascending order, held as runs of neighbours: 16 bytes a run, however long.

    Args:
        first_R: first member of each run, ascending int64.
        length_R: how many members each has.
    """

    def __init__(self, first_R: np.ndarray, length_R: np.ndarray) -> None:
        self._first_R = first_R
        self._end_R = np.cumsum(length_R, dtype=np.int64)

    @classmethod
    def of(cls, ids: Collection[int] | np.ndarray) -> IdSet:
        """The set of these numbers; a range with step 1 is not listed.

        Raises:
            ValueError: a number is named twice.
        """
        if isinstance(ids, IdSet):
            return ids
        if isinstance(ids, range) and ids.step == 1:
            one = slice(0, 1 if ids else 0)
            return cls(np.array([ids.start])[one], np.array([len(ids)])[one])
        sorted_N = np.sort(np.fromiter(ids, dtype=np.int64, count=len(ids)))
        steps_N = np.diff(sorted_N)
        if (steps_N == 0).any():
            raise ValueError("a number is named twice")
        begins_R = np.flatnonzero(np.concatenate([[len(ids) > 0], steps_N > 1]))
        return cls(sorted_N[begins_R], np.diff(np.append(begins_R, len(ids))))

    def take(self, place_N: np.ndarray) -> np.ndarray:
        """The members at places of the ascending order, int64."""
        run_N = np.searchsorted(self._end_R, place_N, side="right")
        before_N = np.where(run_N > 0, self._end_R[run_N - 1], 0)
        return self._first_R[run_N] + (place_N - before_N)

    @classmethod
    def rest(cls, count: int, left_out: Collection[int]) -> IdSet:
        """0..count-1 without some of them: as many cuts in one run as those have runs."""
        cut = cls.of(left_out)
        first_R = np.append(0, cut._first_R + cut._lengths())
        length_R = np.append(cut._first_R, count) - first_R
        return cls(first_R[length_R > 0], length_R[length_R > 0])

    def _lengths(self) -> np.ndarray:
        return np.diff(self._end_R, prepend=0)

    def __len__(self) -> int:
        return int(self._end_R[-1]) if len(self._end_R) else 0

    def __iter__(self) -> Iterator[int]:
        for first, length in zip(self._first_R.tolist(), self._lengths().tolist(), strict=True):
            yield from range(first, first + length)

    def __contains__(self, member: object) -> bool:
        if not isinstance(member, int | np.integer):
            return False
        run = int(np.searchsorted(self._first_R, member, side="right")) - 1
        return run >= 0 and bool(member < self._first_R[run] + self._lengths()[run])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IdSet)
            and np.array_equal(self._first_R, other._first_R)
            and np.array_equal(self._end_R, other._end_R)
        )
