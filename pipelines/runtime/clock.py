"""Where the time of a training run goes: waiting for data, and everything else; and how far a long count is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
SAID_EVERY = 60.0
"""Seconds between two words about how far a count is."""


def told(
    items: Iterable[T], count: int, what: str, kind: str, say: Callable[[str], object]
) -> Iterator[T]:
    """The same items; a word every so often while they come.

    Args:
        items: what is counted.
        count: how many there will be.
        what: what they are counted for.
        kind: what they are, in the plural.
        say: hears how far it is, and how long it goes on.
    """
    begun = said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) - said > SAID_EVERY:
            left = (now - begun) / number * (count - number)
            say(f"{what}: {number} of {count} {kind}, {left / 60:.1f} min left")
            said = now


@dataclass
class Span:
    """Time, waiting, steps and images since a moment."""

    begun: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    steps: int = 0
    images: int = 0

    def rates(self) -> dict[str, float]:
        """Seconds, steps and images per second, and the share of time spent waiting for data."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        return {
            "seconds": seconds,
            "steps_per_second": self.steps / seconds,
            "images_per_second": self.images / seconds,
            "data_wait_share": min(1.0, self.waited / seconds),
        }


class Clock:
    """Measures the current epoch and the time since the last report of steps."""

    def __init__(self) -> None:
        self.epoch, self.window = Span(), Span()
        self._begun = self._posted = time.monotonic()

    def total(self) -> float:
        """Seconds since the training began in this process."""
        return time.monotonic() - self._begun

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each arrives counts as waiting."""
        while True:
            begun = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            waited = time.monotonic() - begun
            self.epoch.waited += waited
            self.window.waited += waited
            yield batch

    def step(self, images: int) -> None:
        """A step over this many images of all ranks is done."""
        for span in (self.epoch, self.window):
            span.steps += 1
            span.images += images

    def due(self, interval: float) -> bool:
        """Whether the screen was last told this many seconds ago."""
        now = time.monotonic()
        if now - self._posted < interval:
            return False
        self._posted = now
        return True

    def end_of_window(self) -> dict[str, float]:
        """Rates since the last call."""
        rates, self.window = self.window.rates(), Span()
        return rates

    def end_of_epoch(self) -> dict[str, float]:
        """Rates of the epoch that ends here."""
        rates, self.epoch = self.epoch.rates(), Span()
        return rates
