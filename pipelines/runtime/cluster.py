"""Ray: start one on this machine or attach to a running one, and plan what each part of a job takes.

Three things are explicit because their defaults bite: the dashboard is on (Ray Train frees the resources of a
stopped trial through its State API), RAY_ADDRESS reaches every process (several Rays may run on one machine), and
RAY_AUTH_MODE is stated on both sides.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dri_iqa.processor import ALLOCATOR, keep_memory
from pipelines.runtime.config import ClusterConfig

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "dri-iqa"
LOOPBACK = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""Set to 0, a Ray is for this machine only (the name speaks of two systems on which that is the default)."""
TRIAL_CPUS = (
    0.01  # a Tune trial only waits for its training run; an empty request is refused by Tune
)


class ClusterError(ValueError):
    """The cluster cannot be reached or is too small; the message says what is missing and what to change."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each part of the job takes from the cluster."""

    workers: int
    min_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    cpus_per_data_task: float
    data_processes: int
    degrade_resource: float
    concurrent_trials: int
    threads: int
    max_failures: int
    max_preemptions: int
    resize_s: float
    total_cpus: float
    total_gpus: float
    object_store_bytes: float = 0.0

    def __str__(self) -> str:
        gpus = f", {self.total_gpus:g} GPUs" if self.total_gpus else ""
        fewest = f"{self.min_workers} to " if self.min_workers < self.workers else ""
        return (
            f"{self.total_cpus:g} CPUs{gpus}: "
            f"{fewest}{self.workers} training worker(s) x {self.cpus_per_worker:g} CPU, "
            f"up to {self.data_processes} data process(es) x {self.cpus_per_data_task:g} CPU, "
            f"{self.concurrent_trials} trial(s) at a time"
        )


def is_attached(config: ClusterConfig) -> bool:
    """Whether the job uses a running cluster instead of starting its own."""
    if config.kind == "auto":
        return bool(os.environ.get("RAY_ADDRESS"))
    return config.kind == "attached"


def fewest_workers(config: ClusterConfig) -> int:
    """Workers that a training needs before it starts.

    Raises:
        ClusterError: more than it may have, or none.
    """
    fewest = config.workers if config.min_workers is None else config.min_workers
    if not 1 <= fewest <= config.workers:
        raise ClusterError(
            f"cluster.min_workers={fewest} with cluster.workers={config.workers}\n"
            "set cluster.min_workers to 1 ... cluster.workers, or leave it out to wait for all workers"
        )
    return fewest


def plan_resources(config: ClusterConfig, totals: dict[str, float], trials: int = 0) -> Plan:
    """Fit the job into the cluster, down to the smallest machine.

    Args:
        config: what the user asked for.
        totals: the cluster's resources, as `ray.cluster_resources()` gives them.
        trials: trials of the search; 0 plans a single training run.

    Raises:
        ClusterError: one line with the arithmetic, one with what to change.
    """
    cpus, gpus = totals.get("CPU", 0.0), totals.get("GPU", 0.0)
    fewest = fewest_workers(config)
    per_run = fewest * config.cpus_per_worker + config.cpus_per_data_task + TRIAL_CPUS
    if per_run > cpus + 1e-9:
        raise ClusterError(
            f"not enough CPUs: {fewest} worker(s) x {config.cpus_per_worker:g} + one data task x "
            f"{config.cpus_per_data_task:g} + {TRIAL_CPUS:g} = {per_run:g}, the cluster has {cpus:g}\n"
            "lower cluster.workers or cluster.cpus_per_worker, or add nodes"
        )
    gpus_per_run = fewest * config.gpus_per_worker
    if gpus_per_run > gpus + 1e-9:
        raise ClusterError(
            f"not enough GPUs: {fewest} worker(s) x {config.gpus_per_worker:g} = {gpus_per_run:g}, "
            f"the cluster has {gpus:g}\nset cluster.gpus_per_worker=0 to train on CPUs, or add GPU nodes"
        )
    degrade = totals.get("degrade", 0.0)
    if config.degrade_resource > degrade:
        raise ClusterError(
            f"a data task asks for {config.degrade_resource:g} of the resource 'degrade', the cluster has {degrade:g}\n"
            "start worker nodes with --resources='{\"degrade\": N}', or set cluster.degrade_resource=0"
        )
    fits = int((cpus + 1e-9) // per_run)
    if gpus_per_run:
        fits = min(fits, int((gpus + 1e-9) // gpus_per_run))
    # without a cluster trainings share a process, and torch's global generator
    concurrent = 1 if config.kind == "none" else max(1, min(fits, trials or 1))
    cores = os.cpu_count() or 1
    processes = cpus / concurrent - config.workers * max(1.0, config.cpus_per_worker)
    if config.degrade_resource:
        # A fair share: no worker's processes can take the last place of another's.
        places = degrade / config.degrade_resource / concurrent / config.workers
        processes = min(processes, places)
    return Plan(
        workers=config.workers,
        min_workers=fewest,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker,
        cpus_per_data_task=config.cpus_per_data_task,
        data_processes=config.data_processes or max(1, int(processes)),
        degrade_resource=config.degrade_resource,
        concurrent_trials=concurrent,
        threads=config.threads or max(1, cores // config.workers // 2),
        max_failures=config.max_failures,
        max_preemptions=config.max_preemptions,
        resize_s=config.resize_s,
        total_cpus=cpus,
        total_gpus=gpus,
        object_store_bytes=totals.get("object_store_memory", 0.0),
    )


@contextmanager
def connect(config: ClusterConfig, *, verbose: bool = False) -> Iterator[dict[str, float]]:
    """Connect to Ray for the duration of a job; yields the cluster's total resources.

    A Ray started here ends with the block, and with this process should it be killed.

    With `cluster=none` there is no Ray: what this process can do by itself is done here, see `streams` and `tasks`.

    Raises:
        ClusterError: nothing answers at the address, or more than one process is asked for without a cluster.
    """
    quiet_libraries(verbose)
    if config.kind == "none":
        if config.workers != 1:
            raise ClusterError(
                f"cluster=none trains in this process, {config.workers} workers were asked for\n"
                "set cluster.workers=1, or use cluster=local"
            )
        keep_memory()
        yield {"CPU": float(config.num_cpus or os.cpu_count() or 1), "GPU": _visible_gpus()}
        return
    environment = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get(
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
        ),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": os.environ.get(
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{_start_timeout_s(config):.0f}"
        ),
        **{name: os.environ.get(name, value) for name, value in ALLOCATOR.items()},
    }
    os.environ.update(environment)
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if is_attached(config):
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, runtime_env={"env_vars": environment}, **common)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise ClusterError(
                f"no Ray cluster answers at {address}: {reason}\n"
                "start one with `ray start --head`, set RAY_ADDRESS, or use cluster=local"
            ) from None
        if len(ray.nodes()) > 1:
            _keep_ray_data_here()
    else:
        port = free_port()
        os.environ.pop("RAY_ADDRESS", None)
        # A search starts many small processes; the raylet would warn about each of them.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
        environment |= {
            "RAY_GCS_SERVER_PORT": str(port),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            # Nobody takes this machine away with notice; the watcher is one more process per training run.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            LOOPBACK: "0",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        # Inherited instead of a runtime environment: processes that Ray has ready can then be used for anything.
        with _set(environment), _loopback():
            ray.init(
                address="local",
                num_cpus=config.num_cpus or os.cpu_count(),
                include_dashboard=True,
                object_store_memory=_object_store_bytes(config),
                **common,
            )
    try:
        yield {name: float(amount) for name, amount in ray.cluster_resources().items()}
    finally:
        ray.shutdown()


def beside_the_driver(class_: type, **options: Any) -> Any:
    """An actor of this class, without a CPU, on the node that the job's driver runs on: another node may be lost.

    Args:
        class_: of an object that only keeps small things.
        options: of the actor.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(class_).options(scheduling_strategy=here, **options).remote()


def _start_timeout_s(config: ClusterConfig) -> float:
    """Seconds that a group of training workers waits for its places: a misfit fails loudly instead of waiting for ever.

    As long as for the job's first nodes, where those are waited for: lost ones take as long to come again. With fewer
    workers to go on with it asks again soon, because Ray counts lost nodes for up to twenty seconds.
    """
    if fewest_workers(config) < config.workers:
        return 25.0
    return max(120.0, config.wait_s)


def _keep_ray_data_here() -> None:
    """Start on the driver's node the two actors that all of the cluster's streams tell where and what they are.

    Ray Data pins them to the node of whoever asks first, else a training worker: when that node was lost, the training
    failed a second time as it started again.
    """
    from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_actor_location_tracker()
    get_or_create_stats_actor()


@contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _loopback() -> Iterator[None]:
    """Inside, a Ray that is started listens on the loopback interface alone, as it always does on a Mac.

    Its processes read LOOPBACK from the environment; here that was read when Ray was imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _object_store_bytes(config: ClusterConfig) -> int:
    if config.object_store_mb is not None:
        return config.object_store_mb * 1_000_000
    if not _visible_gpus():
        return 500_000_000
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5


def _visible_gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' progress bars and notices out of the job's own report."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    if verbose:
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.train", "ray.tune", "ray.data", "mlflow", "alembic", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its tracebacks say no more than the errors that it raises, which are told in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
