"""Many independent pieces of work as Ray tasks, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from dri_iqa import storage
from dri_iqa.degradations.threads import pin_threads

T = TypeVar("T")


def run_tasks(
    work: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, cpus: float
) -> Iterator[T]:
    """Results of `work(*call)` for every call, as they come; without a cluster, one after the other here.

    Tasks of a lost node run again. Requests that workers had to repeat are counted by this process.

    Args:
        work: a function that any process can import.
        calls: its arguments, in the order in which work begins.
        cpus: reserved per task.
    """
    if not ray.is_initialized():
        for call in calls:
            yield work(*call)
        return
    task = ray.remote(num_cpus=cpus, max_retries=3)(_counted)
    at_most = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
    running: list[Any] = []
    begun = 0
    while begun < len(calls) or running:
        while begun < len(calls) and len(running) < at_most:
            running.append(task.remote(work, calls[begun]))
            begun += 1
        done, running = ray.wait(running, num_returns=1)
        for result, retries in ray.get(done):
            storage.add_retries(retries)
            yield result


def _counted(work: Callable[..., T], call: tuple[Any, ...]) -> tuple[T, int]:
    pin_threads()  # above all, memory that is freed is kept: decoding is several times faster
    before = storage.retries()
    result = work(*call)
    return result, storage.retries() - before
