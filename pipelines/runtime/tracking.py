"""MLflow through `MlflowClient` only: runs keyed by stable ids, so that a resumed job continues its runs.

The driver is the single writer (workers report through the journal), which is what SQLite needs and a server likes.
It writes to its own disk (`spool`), and a thread brings that to MLflow (`delivery`): a server that is down, slow or
restarted costs a job nothing. A database in the output folder is written the same way.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dri_iqa import storage
from pipelines.runtime.delivery import Delivery, UnknownRunError
from pipelines.runtime.mlflow_server import (
    RETRIES,
    TrackingError,
    connect,
    spool_folder,
    tracking_uri,
    unreachable,
)
from pipelines.runtime.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.runtime.config import TrackingConfig

PICTURES = "probe"
"""Folder of the pictures that a training run draws, below its target and in MLflow."""
RESTORATION = "restoration.png"
"""File name in that folder: what stage 2 restores."""
AGAIN = "the same command again goes on where this stopped"


class Tracker:
    """Runs of one job: a parent, and a nested run for each stage and trial.

    Nothing here waits for MLflow or fails with it, but `run_id`, `client` and what is `needed`: records go to a spool
    on this machine's disk, and a thread delivers them.

    Args:
        config: where to.
        output: the job's output.
        folder: of the spool, see `spool_folder`.
        say: tells the person about outages.

    Raises:
        TrackingError: MLflow refuses, or is not there and never was for this job.
    """

    def __init__(
        self, config: TrackingConfig, output: str, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.uri = tracking_uri(config, output)
        known, server = folder.is_dir(), None
        try:
            server = connect(config, output)
        except TrackingError:
            if not (known and self._unreachable()):
                raise
        self._spool = Spool(folder)
        self._delivery = Delivery(
            self._spool,
            lambda: connect(config, output),
            self._unreachable,
            say,
            server,
            embedded=config.kind == "embedded",
        )
        self._runs: set[str] = set()
        first = "make room for it" if config.kind == "embedded" else "start the server"
        self._again = f"{first}, then {AGAIN}"

    @property
    def client(self) -> MlflowClient:
        """For what cannot be delivered later.

        Raises:
            TrackingError: MLflow has not answered so far.
        """
        if self._delivery.server is None:
            raise self._waits("this step needs MLflow")
        return self._delivery.server.client

    def run(
        self, key: str, name: str, parent: str | None = None, params: dict[str, Any] | None = None
    ) -> None:
        """Begin the run with this stable key: found again on resume, created otherwise.

        Args:
            key: unique within the experiment, the same every time the same command runs.
            name: what people see.
            parent: key of the run it is nested in.
            params: logged once; nested dicts become dotted names.
        """
        if key in self._runs:
            return
        self._runs.add(key)
        flat = {name: str(value) for name, value in _flatten(params or {})}
        self._post("run", key, name=name, parent=parent, params=flat)

    def run_id(self, key: str) -> str:
        """MLflow's id of a run that was begun.

        Raises:
            TrackingError: MLflow does not answer, or has not got this run.
        """
        if not self._delivery.drain():
            raise self._waits(f"the run {key} must be in MLflow")
        try:
            return self._delivery.run_id(key)
        except UnknownRunError as error:
            raise TrackingError(
                f"MLflow has {error}: it was deleted\nrestore it, or choose another run=NAME"
            ) from None

    def epoch(self, key: str, epoch: int, metrics: dict[str, float]) -> None:
        """Metrics of one epoch."""
        self.metrics(key, metrics | {"epoch": epoch}, step=epoch)

    def metrics(self, key: str, metrics: dict[str, float], step: int | None = None) -> None:
        """Metrics of a step, each of them once whoever repeats it; without a step, a result of the run, which may
        change. Non-finite values are dropped, because MLflow's stores refuse some of them.
        """
        values = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        if values:
            self._post("metrics", key, step=step or 0, again=step is None, values=values)

    def tags(self, key: str, tags: dict[str, str]) -> None:
        """Searchable facts about a run."""
        self._post("tags", key, values=tags)

    def text(self, key: str, text: str, path: str) -> None:
        """A text artifact."""
        folder, _, name = path.rpartition("/")
        self._post("artifact", key, file=self._spool.keep_text(text, name), folder=folder or None)

    def json(self, key: str, values: Any, path: str) -> None:
        """A JSON artifact."""
        self.text(key, json.dumps(values, indent=2, sort_keys=True), path)

    def file(self, key: str, local_path: str, folder: str | None = None) -> None:
        """A file artifact."""
        self._post("artifact", key, file=self._spool.keep_copy(local_path), folder=folder)

    def folder(self, key: str, local_path: str, folder: str) -> None:
        """All files of a local folder as artifacts."""
        self.file(key, local_path, folder)

    def end(self, key: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        if key in self._runs:
            self._post("end", key, status=status)

    @contextlib.contextmanager
    def closing(self, key: str) -> Iterator[None]:
        """End the run, and all still open below it, with the status that the block's outcome calls for."""
        try:
            yield
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | SystemExit)
            with contextlib.suppress(storage.StorageError):  # what ended the job says more
                self._post("close", key, status="KILLED" if killed else "FAILED")
            raise
        self._post("close", key, status="FINISHED")

    @contextlib.contextmanager
    def needed(self, what: str) -> Iterator[None]:
        """A block that speaks with MLflow itself; what was recorded before is there then.

        Raises:
            TrackingError: MLflow does not answer, before or in the block.
        """
        if not self._delivery.drain():
            raise self._waits(f"{what} needs MLflow")
        before = os.environ.get(RETRIES)
        os.environ[RETRIES] = "3" if before in (None, "0") else before
        try:
            yield
        except Exception as error:
            if (reason := self._unreachable()) is None or isinstance(error, TrackingError):
                raise
            raise TrackingError(
                f"{what} needs MLflow, which does not answer at {self.uri}: {reason}\n{self._again}"
            ) from None
        finally:
            if before is None:
                del os.environ[RETRIES]
            else:
                os.environ[RETRIES] = before

    def close(self) -> str | None:
        """Deliver what is left, if MLflow answers; else a sentence about what waits and where."""
        done = self._delivery.close()
        self._spool.close()
        if done:
            return None
        return f"{self._delivery.outage()}\n    kept in {self._spool.folder}; {self._again}"

    def _waits(self, what: str) -> TrackingError:
        return TrackingError(
            f"{what}: {self._delivery.outage()}\n{self._again}; the records lie in {self._spool.folder}"
        )

    def _unreachable(self) -> str | None:
        return None if self.uri.startswith("sqlite:") else unreachable(self.uri)

    def _post(self, op: str, key: str, **values: Any) -> None:
        record = {"op": op, "key": key, "time": int(time.time() * 1000), **values}
        self._spool.append(record, sync=op != "metrics")


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def undelivered(config: TrackingConfig, directory: str) -> bool:
    """Whether an earlier process of a job left records that MLflow has not got."""
    folder = spool_folder(config, directory)
    if not folder.is_dir():
        return False
    spool = Spool(folder)
    spool.close()
    return spool.waiting > 0
