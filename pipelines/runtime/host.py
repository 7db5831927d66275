"""Where a training worker runs: under Ray Train, or in plain processes without a cluster.

A host says which rank this is, keeps checkpoints, finds the latest, and hears of preemption. The
loop is the same on both.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device

from dri_iqa import storage
from pipelines.runtime.leftovers import scratch_prefix

KEPT = 2
"""Checkpoints that a local host keeps."""


class Host(Protocol):
    """What the loop asks of its surroundings."""

    rank: int
    world: int
    device: torch.device
    scratch: str
    """How the names of temporary folders on this machine begin."""

    def latest(self) -> Any:
        """Context manager: a local folder with the latest checkpoint, or None."""
        ...

    def next_step(self) -> int | None:
        """The step that follows the latest checkpoint, by its name; None where it is not known yet."""
        ...

    def save(self, folder: Path | None, name: str, metrics: dict[str, float], wait: bool) -> None:
        """Take a checkpoint (rank 0's folder, None on the others) and forget the folder.

        Every rank calls it equally often. `wait` returns only when it and all before it are safe;
        otherwise training goes on while they are uploaded.
        """
        ...

    def preempted(self) -> bool:
        """Whether this machine is about to be taken away, said once; equal on all ranks, all call it
        equally often.
        """
        ...


class RayHost:
    """A worker of a Ray Train group.

    Args:
        checkpoints: URI of the run's folder of checkpoints.
    """

    def __init__(self, checkpoints: str) -> None:
        self._checkpoints = checkpoints
        self.scratch = scratch_prefix(checkpoints.rpartition("/")[0])
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        self._warned = False

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The latest checkpoint whose upload was verified and reported."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def next_step(self) -> int | None:
        """From the name that `save` was given."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        name = checkpoint.path.rstrip("/").rpartition("/")[2]
        kind, _, step = name.partition("_")
        return int(step) if kind == "step" and step.isdecimal() else None

    def save(self, folder: Path | None, name: str, metrics: dict[str, float], wait: bool) -> None:
        """Report to Ray Train, which uploads in a thread unless asked to wait."""
        if folder is None:
            ray.train.report(metrics)
            return
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.SYNC
            if wait
            else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=partial(_upload, self._checkpoints),
        )

    def preempted(self) -> bool:
        """Whether a node of the group is being drained, e.g. a spot machine that is reclaimed."""
        notice = ray.train.get_preemption_info() is not None
        first, self._warned = notice and not self._warned, notice
        return first


def _upload(directory: str, checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Copy to the run's storage and compare what arrived: pyarrow's copy, which Ray uses, can return
    normally although the store refused every byte.
    """
    uri = storage.join(directory, name)
    storage.upload_directory(Path(checkpoint.path), uri)
    system, path = storage.filesystem(uri)
    return Checkpoint(path, filesystem=system)


class LocalHost:
    """A plain process, or one of several that `torchrun` (or its environment variables) started.

    A context manager. SIGTERM is its notice of preemption: a checkpoint is taken at once and the
    process ends with 143.

    Args:
        folder: where checkpoints lie.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.scratch = scratch_prefix(str(self.folder.parent))
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        self._backend = "nccl" if cuda else "gloo"
        place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
        self.device = torch.device(place)
        self._notice = self._leaving = False

    def __enter__(self) -> LocalHost:
        self._joins = self.world > 1 and not dist.is_initialized()
        if self._joins:
            dist.init_process_group(self._backend)
        self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._joins:
            dist.destroy_process_group()

    def _hear(self, *_: object) -> None:
        self._notice = True

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest complete folder."""
        found = sorted(self.folder.glob("step_*"))
        yield found[-1] if found else None

    def next_step(self) -> int | None:
        """Not looked for: nothing is begun ahead without a cluster."""
        return None

    def save(self, folder: Path | None, name: str, metrics: dict[str, float], wait: bool) -> None:
        """Move the folder under its name and drop the oldest."""
        if folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            staged = self.folder / f".new-{name}"
            shutil.rmtree(staged, ignore_errors=True)
            shutil.move(folder, staged)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            staged.rename(self.folder / name)
            for old in sorted(self.folder.glob("step_*"))[:-KEPT]:
                shutil.rmtree(old)
        if self.world > 1:
            dist.barrier()
        if self._leaving:
            raise SystemExit(128 + signal.SIGTERM)

    def preempted(self) -> bool:
        """Whether any rank got SIGTERM."""
        notice = torch.tensor(int(self._notice), device=self.device)
        if self.world > 1:
            dist.all_reduce(notice, op=dist.ReduceOp.MAX)
        self._leaving = bool(notice)
        return self._leaving
