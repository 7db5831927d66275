"""MLflow through `MlflowClient` only: runs keyed by stable ids, so that a resumed job continues its runs.

The driver is the single writer (workers report through the journal), which is what SQLite needs and a server likes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dri_iqa import storage

if TYPE_CHECKING:  # a node's report asks the server and does without the configuration's libraries
    from pipelines.runtime.config import TrackingConfig

KEY_TAG = "dri_iqa.key"
PICTURES = "probe"
"""Folder of the pictures that a training run draws, below its target and in MLflow."""
MAX_PARAM = 500  # characters; the full configuration is an artifact


class TrackingError(ValueError):
    """The tracking server cannot be used; the message says where it was looked for and what to do."""


def tracking_uri(config: TrackingConfig, output: str) -> str:
    """The MLflow tracking URI of a job: a server's address, or an SQLite file in a local folder.

    Raises:
        TrackingError: `tracking=server` without an address.
    """
    if config.kind == "server":
        if not config.uri:
            raise TrackingError("tracking=server has no address\nadd tracking.uri=http://host:5000")
        return config.uri
    folder = str(Path("runs").resolve()) if storage.is_remote(output) else output
    return f"sqlite:///{local_path(folder) / 'mlflow.db'}"


def local_path(uri: str) -> Path:
    """The absolute path of a local URI."""
    return Path(storage.filesystem(uri)[1]).resolve()


class Tracker:
    """Runs of one job: a parent, and a nested run for each stage and trial."""

    def __init__(self, config: TrackingConfig, output: str) -> None:
        self.uri = tracking_uri(config, output)
        if config.kind == "server":
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        else:
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient  # slow to import; nothing before a job's checks needs it
        from mlflow.exceptions import MlflowException

        try:
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self._experiment = self._ensure_experiment(config, output)
        except MlflowException as error:
            raise TrackingError(
                f"MLflow at {self.uri} refused: {str(error).splitlines()[0]}\ncheck tracking.uri"
            ) from None
        self._runs: dict[str, str] = {}
        self._epochs: dict[str, int] = {}

    def run(
        self, key: str, name: str, parent: str | None = None, params: dict[str, Any] | None = None
    ) -> str:
        """The MLflow run with this stable key: found again on resume, created otherwise.

        Args:
            key: unique within the experiment, the same every time the same command runs.
            name: what people see.
            parent: key of the run it is nested in.
            params: logged when the run is created; nested dicts become dotted names.
        """
        if key in self._runs:
            return self._runs[key]
        found = self.client.search_runs(
            [self._experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1
        )
        if found:
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
            self._epochs[key] = int(run.data.metrics.get("epoch", -1))
        else:
            tags = {KEY_TAG: key, "mlflow.runName": name}
            if parent:
                tags["mlflow.parentRunId"] = self._runs[parent]
            run = self.client.create_run(self._experiment, tags=tags, run_name=name)
            self._log_params(run.info.run_id, params or {})
        self._runs[key] = run.info.run_id
        return run.info.run_id

    def epoch(self, key: str, epoch: int, metrics: dict[str, float]) -> None:
        """Metrics of one epoch, once: an epoch that was repeated after a restart is not logged again."""
        if epoch <= self._epochs.get(key, -1):
            return
        self._epochs[key] = epoch
        self.metrics(key, metrics | {"epoch": epoch}, step=epoch)

    def metrics(self, key: str, metrics: dict[str, float], step: int = 0) -> None:
        """One batch of metrics; non-finite values are dropped, because MLflow's stores refuse some of them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        if batch:
            self.client.log_batch(self._runs[key], metrics=batch)

    def tags(self, key: str, tags: dict[str, str]) -> None:
        """Searchable facts about a run."""
        for name, value in tags.items():
            self.client.set_tag(self._runs[key], name, value)

    def text(self, key: str, text: str, path: str) -> None:
        """A text artifact."""
        self.client.log_text(self._runs[key], text, path)

    def json(self, key: str, values: Any, path: str) -> None:
        """A JSON artifact."""
        self.text(key, json.dumps(values, indent=2, sort_keys=True), path)

    def file(self, key: str, local_path: str, folder: str | None = None) -> None:
        """A file artifact."""
        self.client.log_artifact(self._runs[key], local_path, folder)

    def folder(self, key: str, local_path: str, folder: str) -> None:
        """All files of a local folder as artifacts."""
        self.client.log_artifacts(self._runs[key], local_path, folder)

    def end(self, key: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        if key in self._runs:
            self.client.set_terminated(self._runs[key], status)

    @contextlib.contextmanager
    def closing(self, key: str) -> Iterator[None]:
        """End the run, and all still open below it, with the status that the block's outcome calls for."""
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            for run_key, run_id in self._runs.items():
                if run_key == key or run_key.startswith(key + "/"):
                    with contextlib.suppress(
                        Exception
                    ):  # the outcome of the job is what must be seen
                        if self.client.get_run(run_id).info.status == "RUNNING":
                            self.client.set_terminated(run_id, status)

    def _ensure_experiment(self, config: TrackingConfig, output: str) -> str:
        existing = self.client.get_experiment_by_name(config.experiment)
        if existing is not None:
            return existing.experiment_id
        location = None
        if config.kind == "embedded":
            location = storage.join(output, "mlartifacts")
            if not storage.is_remote(output):
                location = local_path(location).as_uri()
        return self.client.create_experiment(config.experiment, artifact_location=location)

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:MAX_PARAM]) for name, value in _flatten(params)]
        for start in range(0, len(flat), 100):  # the store's limit per call
            self.client.log_batch(run_id, params=flat[start : start + 100])


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_server(config: TrackingConfig) -> None:
    """Whether an MLflow server answers where one is named: worth knowing before a cluster is started.

    Raises:
        TrackingError: `tracking=server` without an address, or nothing answers there.
    """
    if config.kind != "server":
        return
    uri = tracking_uri(config, "")
    if reason := unreachable(uri):
        raise TrackingError(
            f"no MLflow server answers at {uri}: {reason}\n"
            "start one with `mlflow server --host 127.0.0.1 --port 5000`, or use tracking=embedded"
        )


def unreachable(uri: str) -> str | None:
    """Why the MLflow server at an address does not answer this machine; None where it does."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
