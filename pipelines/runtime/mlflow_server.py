"""Where MLflow is, whether it answers, and what this machine keeps for it: light, because every node is asked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dri_iqa import storage

if TYPE_CHECKING:  # a node's report does without the configuration's libraries
    from mlflow import MlflowClient

    from pipelines.runtime.config import TrackingConfig

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@dataclass(frozen=True, kw_only=True)
class Server:
    """An MLflow that has answered."""

    client: MlflowClient
    experiment: str
    """Id of the experiment."""


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


def without_credentials(config: TrackingConfig) -> TrackingConfig:
    """The same with credentials of `http://user:password@host` where MLflow looks for them: in this process's
    environment, and so neither in a log, an artifact nor on a disk.
    """
    if not config.uri:
        return config
    parts = urllib.parse.urlsplit(config.uri)
    if parts.username is None:
        return config
    os.environ["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password or "")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return replace(config, uri=urllib.parse.urlunsplit(bare))


def spool_folder(config: TrackingConfig, directory: str) -> Path:
    """Where a job's records wait: below its folder, or on this machine's disk where that is in a bucket.

    Args:
        config: names the server; records for another one lie in another folder.
        directory: the job's folder or URI.
    """
    if storage.is_remote(directory):
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        place = Path(cache) / "dri-iqa" / "tracking" / directory.rpartition("/")[2]
    else:
        place = local_path(directory) / "tracking"
    server = hashlib.sha256((config.uri or "").encode()).hexdigest()[:8]
    return place / (server if config.kind == "server" else "embedded")


def connect(config: TrackingConfig, output: str) -> Server:
    """A client, and the experiment.

    Raises:
        TrackingError: MLflow refuses, or is not there.
    """
    uri = tracking_uri(config, output)
    if config.kind == "server":
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # Repeated by `Delivery`, which looks first whether the lost answer was to a request that was carried out.
        os.environ.setdefault(RETRIES, "0")
    else:
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient  # slow to import; nothing before a job's checks needs it
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        return Server(client=client, experiment=_ensure_experiment(client, config, output))
    except MlflowException as error:
        raise TrackingError(
            f"MLflow at {uri} refused: {str(error).splitlines()[0]}\ncheck tracking.uri"
        ) from None


def _ensure_experiment(client: MlflowClient, config: TrackingConfig, output: str) -> str:
    existing = client.get_experiment_by_name(config.experiment)
    if existing is not None:
        return existing.experiment_id
    location = None
    if config.kind == "embedded":
        location = storage.join(output, "mlartifacts")
        if not storage.is_remote(output):
            location = local_path(location).as_uri()
    return client.create_experiment(config.experiment, artifact_location=location)


def has_begun(config: TrackingConfig, directory: str) -> bool:
    """Whether a job has met this server before: then an outage is one, and not a wrong address."""
    return spool_folder(config, directory).is_dir()


def check_server(config: TrackingConfig, directory: str | None = None) -> None:
    """Whether an MLflow server answers where one is named: worth knowing before a cluster is started.

    Args:
        config: names it.
        directory: of a job that can wait for it, if it has begun before.

    Raises:
        TrackingError: `tracking=server` without an address, or nothing answers there.
    """
    if config.kind != "server":
        return
    uri = tracking_uri(config, "")
    if (reason := unreachable(uri)) and not (directory and has_begun(config, directory)):
        raise TrackingError(
            f"no MLflow server answers at {uri}: {reason}\n"
            "start one with `mlflow server --host 127.0.0.1 --port 5000`, or use tracking=embedded"
        )


@contextlib.contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """In the block, this MLflow is the one that `models:/...` and functions without an address mean.

    MLflow resolves such a URI with the process's registry, also where a call names another one; and setting that
    leaves variables in the environment, which are put back.
    """
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        mlflow.set_registry_uri(None)  # pyright: ignore[reportArgumentType]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def unreachable(uri: str) -> str | None:
    """Why the MLflow server at an address does not answer this machine; None where it does."""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
