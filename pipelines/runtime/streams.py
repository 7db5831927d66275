"""Batches from CPU workers to a training worker, in the schedule's order.

A batch is a pure function of its step, so a stream is a range of steps mapped by one fused operator (fetch, decode,
crop, degrade). It is built inside the training function from the steps still to come: a restart continues where the
checkpoint stands, without replay, and there is no pause between epochs. On a cluster Ray Data maps it; without one
(`cluster=none`) a plain PyTorch DataLoader does, and gives the same bytes.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import ray

from dri_iqa import storage
from dri_iqa.degradations.threads import pin_threads
from pipelines.runtime.pacing import pace

Batch = dict[str, np.ndarray]
RETRIES = "retries"
"""Travels with a batch: requests to storage that were repeated for it elsewhere."""
log = logging.getLogger(__name__)


class MakeBatch(Protocol):
    """A batch as a pure function of its step; picklable."""

    @property
    def max_rows(self) -> int:
        """Most rows of the dimension B that a batch of this rank can have."""
        ...

    def __call__(self, step: int) -> Batch:
        """The batch of one step; array names end in their shape, e.g. `image_BCHW`."""
        ...


# A task makes this many batches, enough to pay for its start. Its batches arrive together, so the first tasks of a
# stream make fewer: training begins while they are still being made.
STEPS_PER_TASK = 8
FIRST_TASKS = (1, 1, 2, 4)
# Tasks known to Ray at a time: what a stream costs must not grow with the length of the run.
TASKS_PER_DATASET = 4096


def stream(
    make_batch: MakeBatch, start: int, stop: int, settings: dict[str, Any]
) -> Iterator[Batch]:
    """Batches for steps start..stop-1, by Ray Data where this process is part of a cluster.

    Args:
        make_batch: picklable; step -> arrays of fixed shapes.
        start: first step.
        stop: one past the last step.
        settings: the plan's `data_processes`, `cpus_per_data_task` and `degrade_resource`.
    """
    if not ray.is_initialized():
        from pipelines.runtime.loader import (
            loader_stream,  # imports torch, which data processes do without
        )

        return loader_stream(make_batch, start, stop, processes=settings["data_processes"])
    return ray_stream(
        make_batch,
        start,
        stop,
        cpus_per_process=settings["cpus_per_data_task"],
        max_processes=settings["data_processes"],
        degrade_resource=settings["degrade_resource"],
    )


def ray_stream(
    make_batch: MakeBatch,
    start: int,
    stop: int,
    *,
    cpus_per_process: float,
    max_processes: int = 1,
    degrade_resource: float = 0.0,
    report: Callable[[str], None] = log.info,
) -> Iterator[Batch]:
    """Batches for steps start..stop-1, made by Ray Data processes anywhere in the cluster.

    Args:
        make_batch: picklable; step -> arrays of fixed shapes.
        start: first step.
        stop: one past the last step.
        cpus_per_process: CPUs reserved per process.
        max_processes: most processes; Ray Data starts as many as the consumer needs.
        degrade_resource: amount of the custom resource `degrade` per process; 0 lets it run on any node.
        report: is told at the end where the time went, in Ray Data's words (production wait, transfer, ...).
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    pace(context)
    resources: dict[str, Any] = {"num_cpus": cpus_per_process}
    if degrade_resource:
        resources["resources"] = {"degrade": degrade_resource}

    segment = STEPS_PER_TASK * TASKS_PER_DATASET

    def opened(begin: int) -> Any:
        """The steps from `begin` on as a stream whose executor is on its way."""
        tasks = _tasks(begin, min(begin + segment, stop))
        # Items in memory, not `ray.data.range`: its read tasks want a whole CPU each, beside ours.
        dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
        dataset = dataset.map_batches(
            _Maker,
            fn_constructor_args=(make_batch,),
            batch_size=None,
            # Processes that stay: with plain tasks Ray may start a new one, with all its imports, every few seconds.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max_processes),
            **resources,
        )
        # One "split": the executor then runs in a process of its own. In this one it would fight the training
        # thread for the interpreter lock; steps of small models were several times slower.
        (mine,) = dataset.streaming_split(1, equal=False)
        return mine

    def batches(mine: Any) -> Iterator[Batch]:
        for row in mine.iter_batches(batch_size=1, prefetch_batches=2, batch_format="numpy"):
            rows = int(row.pop(_ROWS)[0])
            storage.add_retries(int(row.pop(RETRIES)[0]))
            yield {
                name: array[0][:rows] if _has_batch_axis(name) else array[0]
                for name, array in row.items()
            }
        report(mine.stats())

    if start >= stop:
        return iter(())
    # The first one here and now, not when the first batch is asked for.
    rest = (opened(begin) for begin in range(start + segment, stop, segment))
    return itertools.chain.from_iterable(map(batches, itertools.chain([opened(start)], rest)))


def _tasks(start: int, stop: int) -> list[dict[str, int]]:
    """The steps of a stream, dealt to tasks in order."""
    tasks: list[dict[str, int]] = []
    sizes = itertools.chain(FIRST_TASKS, itertools.repeat(STEPS_PER_TASK))
    while start < stop:
        end = min(start + next(sizes), stop)
        tasks.append({"first": start, "end": end})
        start = end
    return tasks


class _Maker:
    """What a process of the pool runs: its reader and caches live as long as the process."""

    def __init__(self, make_batch: MakeBatch) -> None:
        pin_threads()
        self._make_batch = make_batch

    def __call__(self, tasks: Any) -> Iterator[Any]:
        for first, end in zip(tasks["first"], tasks["end"], strict=True):
            for step in range(int(first), int(end)):
                # One row is one batch, so pixels keep a fixed shape and are never re-batched on the way.
                before = storage.retries()
                row = _pad(self._make_batch(step), self._make_batch.max_rows)
                yield row | {RETRIES: np.array([storage.retries() - before])}


_ROWS = "rows"


def _has_batch_axis(name: str) -> bool:
    return name.rpartition("_")[2].startswith("B")


def _pad(batch: Batch, max_rows: int) -> Batch:
    """Batches of an epoch may differ by one row; a column of tensors wants one shape."""
    rows = max(len(array) for name, array in batch.items() if _has_batch_axis(name))
    padded = {_ROWS: np.array([rows])}
    for name, array in batch.items():
        if _has_batch_axis(name) and rows < max_rows:
            array = np.concatenate(
                [array, np.zeros((max_rows - rows, *array.shape[1:]), array.dtype)]
            )
        padded[name] = array[None]
    return padded
