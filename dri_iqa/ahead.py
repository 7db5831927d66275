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


def ahead(
    work: Callable[[T], U],
    items: Iterable[T],
    *,
    at_once: int = AT_ONCE,
    threads: int | None = None,
) -> Iterator[tuple[T, Callable[[], U]]]:
    """Every item with what gives `work(item)` or raises its error, in order; the next few are under way meanwhile.

    Args:
        work: for one item.
        items: may be a generator; at most `at_once` of them are taken before they are needed.
        at_once: results in memory.
        threads: how many work; None for one a result.
    """
    with ThreadPoolExecutor(threads or at_once) as pool:
        waiting: deque[tuple[T, Future[U]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) == at_once:
                    first, future = waiting.popleft()
                    yield first, future.result
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result
        finally:
            for _, future in waiting:
                future.cancel()
