"""The schedule is data: what is seen, in which order, is known before it is run.

A schedule is a pure function (epoch, step, rank, world) -> rows, so any number of workers sees the
same batches, a run resumes at any step without replay, and tests can compare what was seen with
what was meant. No order is ever written out: a schedule of 10^9 images takes a few kilobytes, and
a step asks the epoch's permutation for its own places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dri_iqa.data.order import IdSet, Permutation
from dri_iqa.data.records import DataError
from dri_iqa.seeds import Purpose


class Row(NamedTuple):
    """One sample of a schedule; epoch and image id seed everything random about it."""

    epoch: int
    position: int
    """Place in the epoch, 0-based; unique in the epoch."""
    image_id: int


@dataclass(frozen=True)
class Schedule:
    """Order of images over the epochs of a run. Every epoch has a fresh permutation.

    What happens to the n mod batch images that do not fill a batch:

    - `balance` (default): ceil(n / batch) steps whose sizes differ by at most one. Every image is
      seen exactly once an epoch, and no step is tiny.
    - `drop`: floor(n / batch) full steps; a different remainder sits out in each epoch. For losses
      that want a fixed number of keys, as DataLoader's `drop_last`. None where n is a multiple.
    - `wrap`: ceil(n / batch) full steps; the last one is filled up with the first images of the
      same epoch, whose positions go on counting from n.

    A global batch is dealt to the ranks in turn, so all ranks take the same number of steps and
    their rows differ by at most one; together they are the global batch, whatever the world size.
    """

    ids: Collection[int]
    """Image ids, in any order; kept as an `IdSet`, over whose order the permutation is drawn."""
    batch_size: int
    """Largest number of rows of one step over all ranks."""
    epochs: int
    run_seed: int = 0
    purpose: Purpose = Purpose.SCHEDULE
    """Keeps the orders of several streams of a run independent (SCHEDULE or AUXILIARY)."""
    remainder: Literal["balance", "drop", "wrap"] = "balance"

    def __post_init__(self) -> None:
        try:
            ids = IdSet.of(self.ids)
        except ValueError:
            raise DataError("a schedule names an image twice\nMake the ids unique.") from None
        object.__setattr__(self, "ids", ids)
        if self.batch_size < 1 or self.epochs < 0:
            raise DataError(
                f"a schedule of {self.epochs} epochs with batches of {self.batch_size}\n"
                "Use a batch size of at least 1 and a number of epochs of at least 0."
            )
        if self.steps_per_epoch < 1:
            raise DataError(
                f"{len(self.ids)} images do not fill one batch of {self.batch_size}\n"
                "Use more images or a smaller batch."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""
        full, rest = divmod(len(self.ids), self.batch_size)
        return full if self.remainder == "drop" else full + (rest > 0)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def bounds(self, step: int) -> tuple[int, int]:
        """First and one-past-last position of a step in its epoch."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        if self.remainder == "balance":
            count, steps = len(self.ids), self.steps_per_epoch
            return step * count // steps, (step + 1) * count // steps
        return step * self.batch_size, (step + 1) * self.batch_size

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> list[Row]:
        """Rows of one rank in one step; with the defaults, the whole global batch.

        Raises:
            IndexError: epoch, step or rank outside the schedule.
            DataError: fewer rows in a step than ranks.
        """
        if not 0 <= epoch < self.epochs or not 0 <= rank < world:
            raise IndexError(f"epoch {epoch} of {self.epochs}, rank {rank} of {world}")
        start, stop = self.bounds(step)
        if stop - start < world:
            raise DataError(
                f"a batch of {stop - start} images cannot be dealt to {world} workers\n"
                "Use a larger batch, more images or fewer workers."
            )
        place_N = np.arange(start + rank, stop, world)
        order = Permutation(len(self.ids), self.run_seed, self.purpose, epoch)
        id_N = IdSet.of(self.ids).take(order(place_N % len(self.ids)))
        rows = zip(place_N.tolist(), id_N.tolist(), strict=True)
        return [Row(epoch, place, image_id) for place, image_id in rows]

    def remaining(
        self,
        epoch: int = 0,
        step: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        stop: int | None = None,
    ) -> Iterator[list[Row]]:
        """The batches of one rank from a position on: what a resumed run has still to see.

        Args:
            epoch: epoch of the next step.
            step: the next step in it (steps_per_epoch means the start of the next epoch).
            rank: this worker.
            world: number of workers.
            stop: epoch to end before; None for the last one.
        """
        first = epoch * self.steps_per_epoch + step
        end = (self.epochs if stop is None else min(stop, self.epochs)) * self.steps_per_epoch
        for position in range(first, end):
            yield self.batch(*divmod(position, self.steps_per_epoch), rank, world)

    def table(self, epoch: int) -> list[Row]:
        """All rows of an epoch in order."""
        return [row for step in range(self.steps_per_epoch) for row in self.batch(epoch, step)]


def choose(ids: Collection[int], count: int | None, run_seed: int) -> IdSet:
    """A seeded choice of `count` images (all where there are fewer).

    The paper's 3392 clean images are such a choice out of DIV2K and Flickr2K (4.1).
    """
    everything = IdSet.of(ids)
    if count is None or count >= len(everything):
        return everything
    order = Permutation(len(everything), run_seed, Purpose.LIMIT)
    return IdSet.of(everything.take(order(np.arange(count))))
