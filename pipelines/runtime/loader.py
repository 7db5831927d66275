"""Batches without Ray (`cluster=none`): a PyTorch DataLoader in the place of Ray Data, with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dri_iqa import storage
from dri_iqa.degradations.threads import pin_threads
from pipelines.runtime.streams import RETRIES, Batch, MakeBatch


def loader_stream(
    make_batch: MakeBatch, start: int, stop: int, *, processes: int
) -> Iterator[Batch]:
    """Batches for steps start..stop-1 from a PyTorch DataLoader on this machine, without Ray.

    Args:
        make_batch: picklable; step -> arrays.
        start: first step.
        stop: one past the last step.
        processes: worker processes; 0 makes the batches in this one.
    """
    loader = DataLoader(
        _Steps(make_batch, start, stop),
        batch_size=None,  # an item is a batch already
        num_workers=processes,
        worker_init_fn=_pin_worker,
        # Forked copies of clients of an object store do not work; children of a fork server outlive a killed job.
        multiprocessing_context="spawn" if processes else None,
    )
    for tensors in loader:  # tensors, because these pass between processes without a copy
        batch = {name: tensor.numpy() for name, tensor in tensors.items()}
        storage.add_retries(int(batch.pop(RETRIES)))
        yield batch


class _Steps(Dataset[Batch]):
    """The steps start..stop-1 as a data set of batches."""

    def __init__(self, make_batch: MakeBatch, start: int, stop: int) -> None:
        self._make_batch, self._start, self._count = make_batch, start, max(0, stop - start)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._count:
            raise IndexError(index)
        before = storage.retries()
        batch = self._make_batch(self._start + index)
        elsewhere = storage.retries() - before if get_worker_info() else 0
        return batch | {RETRIES: np.array(elsewhere)}


def _pin_worker(_: int) -> None:
    pin_threads()
