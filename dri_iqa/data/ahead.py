"""Work that mostly waits, done a little ahead of who needs its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AT_ONCE = 8
"""Pieces of work that one process has under way."""


def ahead(work: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, Callable[[], U]]]:
    """Every item with what gives `work(item)` or raises its error, in order; the next few are under way meanwhile."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: deque[tuple[T, Future[U]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) == AT_ONCE:
                first, future = waiting.popleft()
                yield first, future.result
        for first, future in waiting:
            yield first, future.result
