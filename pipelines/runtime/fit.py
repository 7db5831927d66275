"""One training run on Ray Train, done once: its result is kept under the digest of what decided it.

A run is described by plain data. The same description finds the finished result, or the last checkpoint of the
run that was killed, or starts anew; so a search and the final training share what they have in common.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from dri_iqa import storage
from dri_iqa.config import to_dict
from pipelines.runtime.cluster import Plan
from pipelines.runtime.config import JobConfig, digest

if TYPE_CHECKING:  # they import torch, and so would the driver: seconds before it says what is wrong with its options
    from ray.train import UserCallback

    from pipelines.runtime.host import Host

Result = dict[str, Any]
FAILED_STARTS, FAILED_STARTS_ELASTIC = 3, 30
"""Groups of workers that found no place before a training gives up. A group of any size finds its size by trying."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The ingested data a run reads: manifests by URI and digest."""

    scored_uri: str
    scored_digest: str
    split_uri: str
    split_digest: str
    clean_uri: str
    clean_digest: str
    shuffle_scores: bool = False
    """Control experiment: permute the scores of training and validation images."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Plain data that decides a training run's result, and where it goes."""

    stage: str
    """`pretrain` or `train`."""
    config: dict[str, Any]
    """seed, model, stage1 and (for `train`) stage2, as plain data."""
    inputs: Inputs
    workers: int
    pretrained: Result | None = None
    """The stage-1 result that stage 2 starts from."""

    @property
    def identity(self) -> str:
        """Digest of everything that decides the result."""
        values = asdict(self)
        for place in ("scored_uri", "split_uri", "clean_uri"):
            values["inputs"].pop(place)
        if self.stage == "pretrain":  # stage 1 never looks at scores
            values["inputs"] = {"clean_digest": self.inputs.clean_digest}
        if self.pretrained:
            values["pretrained"] = self.pretrained["sha256"]
        return digest(values)

    @property
    def name(self) -> str:
        """Name of the run and of its folders."""
        return f"{self.stage}-{self.identity}"


def pretrain_spec(config: JobConfig, inputs: Inputs, workers: int) -> RunSpec:
    """Stage 1 as a configuration describes it."""
    values = to_dict(config)
    model = {name: values["model"][name] for name in ("crop", "dre")}
    return RunSpec(
        stage="pretrain",
        config={"seed": config.seed, "model": model, "stage1": values["stage1"]},
        inputs=inputs,
        workers=workers,
    )


def train_spec(
    config: JobConfig, inputs: Inputs, workers: int, pretrained: Result | None
) -> RunSpec:
    """Stage 2 as a configuration describes it."""
    values = to_dict(config)
    return RunSpec(
        stage="train",
        config={name: values[name] for name in ("seed", "model", "stage1", "stage2")},
        inputs=inputs,
        workers=workers,
        pretrained=pretrained,
    )


def finished(spec: RunSpec, output: str) -> Result | None:
    """The result of a run that was done before, by this or another job."""
    uri = _result_uri(spec, output)
    return storage.read_json(uri) if storage.exists(uri) else None


def fit(
    spec: RunSpec,
    plan: Plan,
    output: str,
    *,
    checkpoints: str | None = None,
    journal: str | None = None,
    key: str = "",
    threads: int | None = None,
    untrained: bool = False,
    callbacks: Sequence[UserCallback] = (),
) -> Result:
    """Train, or return what was trained before.

    Args:
        spec: what to train.
        plan: what it takes from the cluster.
        output: the job's output folder or URI; results go to `models/`, checkpoints to `checkpoints/`.
        checkpoints: another folder or URI for checkpoints.
        journal: name of the journal that progress goes to.
        key: the run's key in the journal and in MLflow.
        threads: torch threads per worker; None takes the plan's.
        untrained: also keep the model as it is before the first step, to compare with, tell its parts, and draw
            what it restores in the end.
        callbacks: Ray Train callbacks, e.g. the one that reports to Tune.

    Returns:
        Plain data: `uri` of the weights, their `sha256`, `history` (a row of metrics per epoch), and `seconds`
        that the process which finished it has trained.

    Raises:
        TrainingError: training cannot go on.
    """
    if done := finished(spec, output):
        return done
    settings = {
        "spec": asdict(spec),
        "target": storage.join(output, "models", spec.name),
        "checkpoints": storage.join(checkpoints or storage.join(output, "checkpoints"), spec.name),
        "journal": journal,
        "key": key,
        "threads": threads or plan.threads,
        "cpus_per_data_task": plan.cpus_per_data_task,
        "data_processes": plan.data_processes,
        "degrade_resource": plan.degrade_resource,
        "untrained": untrained,
    }
    if ray.is_initialized():
        _on_workers(settings, spec, plan, callbacks)
    else:
        _in_this_process(settings)
    done = finished(spec, output)
    if done is None:
        raise RuntimeError(f"training ended without a result at {_result_uri(spec, output)}")
    return done


def _on_workers(
    settings: dict[str, Any],
    spec: RunSpec,
    plan: Plan,
    callbacks: Sequence[UserCallback],
) -> None:
    """Train on a group of the cluster's workers."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": plan.cpus_per_worker}
    if plan.gpus_per_worker:
        resources["GPU"] = plan.gpus_per_worker
    elastic = plan.min_workers < plan.workers
    system, place = storage.filesystem(settings["checkpoints"].rpartition("/")[0])
    trainer = TorchTrainer(
        _work,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=(plan.min_workers, plan.workers) if elastic else plan.workers,
            elastic_resize_monitor_interval_s=plan.resize_s,
            use_gpu=bool(plan.gpus_per_worker),
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if plan.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=spec.name,
            storage_path=place,
            storage_filesystem=system,
            callbacks=list(callbacks),
            failure_config=FailureConfig(
                max_failures=plan.max_failures,
                max_preemption_failures=plan.max_preemptions,
                controller_failure_limit=FAILED_STARTS_ELASTIC if elastic else FAILED_STARTS,
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    ended = trainer.fit().return_value
    del trainer
    gc.collect()  # its controller is a process that ends with the last reference to it
    if ended is not None:
        from pipelines.runtime.failures import TrainingError

        raise TrainingError(ended)


def _work(settings: dict[str, Any]) -> str | None:
    """What each worker of the group runs; returns why training cannot go on, where it cannot.

    After any other error Ray Train starts the group again; after one that all ranks have found at the same step, that
    would only take the time to find it again. (A rank that went alone would leave the others waiting for it.)
    """
    from pipelines.runtime.failures import EveryRankError
    from pipelines.runtime.host import RayHost

    try:
        _train(settings, RayHost(settings["checkpoints"]))
    except EveryRankError as error:
        return str(error)
    return None


def _in_this_process(settings: dict[str, Any]) -> None:
    """Train here, without a cluster (`cluster=none`)."""
    from pipelines.runtime.host import LocalHost

    folder = storage.filesystem(settings["checkpoints"])[1]
    if storage.is_remote(settings["checkpoints"]):
        # Checkpoints of a process lie on its own disk; only results go to the store.
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        name = settings["checkpoints"].rpartition("/")[2]
        folder = Path(cache) / "dri-iqa" / "checkpoints" / name
    with LocalHost(folder) as host:
        _train(settings, host)


def _train(settings: dict[str, Any], host: Host) -> None:
    """Set up the stage, run the loop, keep the result."""
    from pipelines.runtime.feeds import BATCHES, Feed

    values: dict[str, Any] = dict(settings["spec"])
    values["inputs"] = Inputs(**values["inputs"])
    spec = RunSpec(**values)
    batches = BATCHES[spec.stage](spec, host.rank, host.world)
    start = host.next_step()
    looks_first = spec.config["model"].get("predictor", {}).get("readout", "none") != "none"
    # where the first epoch is looked at before it is trained on, two streams at once would want twice the CPUs
    feed = Feed(batches, settings, None if looks_first and start == 0 else start)

    import torch

    from pipelines.runtime.journal import JournalWriter
    from pipelines.runtime.loop import train
    from pipelines.runtime.setups import SETUPS, export, parts_table

    torch.set_num_threads(settings["threads"])
    torch.set_flush_denormal(
        True
    )  # arithmetic on denormal numbers is a hundred times slower on a CPU
    training, describe = SETUPS[spec.stage](spec, settings, batches, feed)
    if host.rank == 0:
        training.journal = JournalWriter(settings["journal"])
        training.key = settings["key"]
    before = storage.join(settings["target"], "untrained")
    if settings["untrained"] and host.rank == 0 and not storage.exists(before):
        export(training.stage, spec, before, describe, finished=False)
        training.journal.post(run=training.key, parts=parts_table(spec, describe))
    begun = time.monotonic()
    history = train(training, host)
    seconds = time.monotonic() - begun
    if storage.retries():
        training.journal.post(
            run=training.key, say=f"{storage.retries()} requests to storage were repeated"
        )
    if host.rank == 0:
        begun = time.monotonic()
        result = export(
            training.stage,
            spec,
            settings["target"],
            describe,
            say=lambda words: training.journal.post(run=training.key, say=words),
        )
        result |= {
            "history": history,
            "seconds": round(seconds, 2),
            "export_seconds": round(time.monotonic() - begun, 2),
        }
        if settings["untrained"]:
            from pipelines.runtime.restoring import show_restoration

            result["restoration"] = show_restoration(training.stage, spec, settings["target"])
        storage.write_json(storage.join(settings["target"], "result.json"), result)


def untrained_bundle(result: Result) -> str:
    """Where `fit(..., untrained=True)` keeps the model as it was before the first step."""
    return storage.join(result["uri"].rpartition("/")[0], "untrained", "bundle")


def _result_uri(spec: RunSpec, output: str) -> str:
    return storage.join(output, "models", spec.name, "result.json")
