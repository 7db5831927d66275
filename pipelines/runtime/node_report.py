"""What one node of the cluster sees, in one short task: versions, store, tracking, space, files, time.

The task takes no CPU and imports little, so a process that Ray has ready does it in a fraction of a second.
"""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dri_iqa import storage
from dri_iqa.processor import lacks_bf16
from pipelines.runtime.mlflow_server import unreachable

MUST_AGREE = ("ray", "torch")
SHARED_MEMORY = "/dev/shm"

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What every node is asked."""

    store: str
    """Folder that the driver has written `driver` into."""
    token: str
    """What stands in that file."""
    mlflow: str | None
    """Address of the MLflow server, where one is used."""
    weights: dict[str, str]
    """Configuration key -> path or URI of weights that must be there."""
    data: dict[str, str]
    """The same for data."""
    bf16: str | None = None
    """The configuration key that wants bf16 on processors, where one does."""


def report(questions: Questions, node: str, scratch: str, state_api: bool) -> Report:
    """Answers as plain data. For a check that can only pass or fail: None, or why it failed.

    Args:
        questions: equal for all nodes.
        node: this node's name, unique in the cluster.
        scratch: folder on the disk that Ray spills to.
        state_api: whether this node asks the State API.
    """
    before = storage.retries()
    answer: Report = {"versions": versions(), "store": _store(questions, node)}
    if questions.mlflow:
        answer["MLflow"] = unreachable(questions.mlflow)
    if state_api:
        answer["State API"] = _state_api()
    places = [scratch] if storage.is_remote(questions.store) else [scratch, questions.store]
    answer["disks"] = [_space(place) for place in places if Path(place).is_dir()]
    answer["shared_memory"] = _space(SHARED_MEMORY if Path(SHARED_MEMORY).is_dir() else scratch)
    if questions.bf16:
        slow = f"{questions.bf16}=bf16, and this processor has no bf16 products"
        answer["precision"] = slow if lacks_bf16() else None
    answer["weights"] = _missing(questions.weights)
    answer["data"] = _missing(questions.data)
    answer["retries"] = storage.retries() - before
    # Last, because it is compared with the moment at which the answer arrives.
    answer["clock"] = time.time()
    return answer


def versions() -> dict[str, str]:
    """Versions of what must be equal on all nodes of a job."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in MUST_AGREE
    }


def _store(questions: Questions, node: str) -> str | None:
    try:
        seen = storage.read_bytes(storage.join(questions.store, "driver"))
        if seen != questions.token.encode():
            return "it holds another file than the driver wrote"
        storage.write_bytes(storage.join(questions.store, node), seen)
    except FileNotFoundError:
        return "the file that the driver wrote is not there: no folder that all nodes share"
    except (storage.StorageError, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _state_api() -> str | None:
    import ray
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        # this cluster's, however many run on the machine
        list_nodes(ray.get_runtime_context().gcs_address, limit=1, timeout=10)
    except (RayStateApiException, ConnectionError, RuntimeError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _space(folder: str) -> dict[str, int]:
    usage = shutil.disk_usage(folder)
    return {"total": usage.total, "free": usage.free}


def _missing(files: dict[str, str]) -> str | None:
    for key, uri in files.items():
        try:
            if not storage.exists(uri):
                return f"{key}: {uri} does not exist"
        except (storage.StorageError, OSError) as error:
            return f"{key}: {str(error).splitlines()[0]}"
    return None
