"""The live channel from workers to the driver: progress and metrics of an epoch, as plain records.

Rank 0 of each training run appends; the driver drains, shows progress and is the only writer of MLflow. Losing a
record loses a line on a screen: the history that counts is in the checkpoints.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from pipelines.runtime.cluster import NAMESPACE, beside_the_driver

Record = dict[str, Any]
POLL_S = 0.5


class _Records:
    def __init__(self) -> None:
        self._records: list[Record] = []

    def append(self, record: Record) -> None:
        self._records.append(record)

    def drain(self) -> list[Record]:
        records, self._records = self._records, []
        return records


# Without a cluster both ends live in this process.
_HERE: dict[str, _Records] = {}


class Journal:
    """The driver's end. Use `name` to find it from a worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None
        if not ray.is_initialized():
            _HERE[name] = _Records()
            return
        self._actor = beside_the_driver(
            _Records, name=name, namespace=NAMESPACE, get_if_exists=True
        )
        ray.get(self._actor.drain.remote())

    @contextlib.contextmanager
    def watch(self, handle: Callable[[Record], None]) -> Iterator[None]:
        """Call `handle` for every record that arrives during the block, from one background thread."""
        stop = threading.Event()
        failure: list[BaseException] = []

        def poll() -> None:
            while True:
                last = stop.wait(POLL_S)
                try:
                    for record in self._drain():
                        handle(record)
                except RayError:
                    pass  # the cluster is busy or going away; training itself will say so
                except Exception as error:
                    failure.append(error)
                    return
                if last:
                    return

        thread = threading.Thread(target=poll, name="journal", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=60)
        if failure:
            raise failure[0]

    def _drain(self) -> list[Record]:
        if self._actor is None:
            return _HERE[self.name].drain()
        return ray.get(self._actor.drain.remote(), timeout=30)

    def close(self) -> None:
        """End the actor, so that nothing stays behind on a shared cluster."""
        if self._actor is None:
            del _HERE[self.name]
            return
        with contextlib.suppress(RayError):
            ray.kill(self._actor)


class JournalWriter:
    """A worker's end; never blocks and never fails a training run."""

    def __init__(self, name: str | None) -> None:
        self._actor = None
        self._here = _HERE.get(name or "")
        if name and self._here is None:
            with contextlib.suppress(ValueError, RayError):
                self._actor = ray.get_actor(name, namespace=NAMESPACE)

    def post(self, **record: Any) -> None:
        """Append one record."""
        if self._here is not None:
            self._here.append(record)
        elif self._actor is not None:
            self._actor.append.remote(record)
