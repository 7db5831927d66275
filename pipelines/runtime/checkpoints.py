"""Checkpoints in an object store: uploaded by us, because what Ray uploads with is silent about failures."""

from __future__ import annotations

from pathlib import Path

from ray.train import Checkpoint

from dri_iqa import storage


def upload_checkpoint(directory: str, checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Upload a local checkpoint and verify it; what `ray.train.report(checkpoint_upload_fn=...)` calls.

    Args:
        directory: URI of the run's checkpoints.
        checkpoint: a folder on this machine.
        name: of the checkpoint, below the directory.

    Raises:
        StorageError: the store refused or kept failing.
    """
    uri = storage.join(directory, name)
    storage.upload_directory(Path(checkpoint.path), uri)
    system, path = storage.filesystem(uri)
    return Checkpoint(path, filesystem=system)
