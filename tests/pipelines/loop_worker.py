"""One rank of a small training run without a cluster; tests start it, kill it and start it again.

    python -m tests.pipelines.loop_worker FOLDER TASK...

Every step's metrics go to `FOLDER/<run>.<rank>.jsonl`, checkpoints to `FOLDER/<run>/`. Tasks: `whole` trains run `a`;
`killed` trains run `b` and kills itself with SIGKILL at step KILL_AT; `resumed` goes on with it; `spoilt` trains run
`c`, in which one image makes its rank's loss nan.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dri_iqa.config import DREConfig, MoCoConfig, OptimConfig
from dri_iqa.stages import PretrainStage
from dri_iqa.stages.base import Batch, Metrics
from pipelines.runtime.host import LocalHost
from pipelines.runtime.loop import Training, train
from tests.tiny import tiny_model, tiny_stage1

CROP, BATCH, PER_EPOCH, EPOCHS, SAVED_EVERY, KILL_AT = 32, 8, 20, 5, 10, 57
SPOILT = 7
OPTIM = OptimConfig(
    batch_size=BATCH, epochs=EPOCHS, lr=2e-3, warmup_epochs=1, clip_norm=1.0, ema=0.9,
    checkpoint_steps=SAVED_EVERY, accumulate=2,
)  # fmt: skip


class SpoiltStage(PretrainStage):
    """Its loss is nan where the image SPOILT is in the batch."""

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = super().forward(batch)
        bad = bool((batch["image_id_B"] == SPOILT).any())
        return loss * (float("nan") if bad else 1.0), metrics


def stage(kind: type[PretrainStage] = PretrainStage, norm: str = "gn") -> PretrainStage:
    dre = DREConfig(width=4, norm=norm, proj_dim=16)  # type: ignore[arg-type]
    stage1 = tiny_stage1(moco=MoCoConfig(queue_size=64), optim=OPTIM)
    return kind(tiny_model(crop=CROP, dre=dre), stage1, seed=0, global_batch=BATCH)


def batches(rank: int = 0, world: int = 1):
    """A step's rows of this rank, from nothing but the step."""

    def stream(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, stop):
            rng = np.random.default_rng(step)
            whole = {
                "crops_B4CHW": rng.integers(0, 256, (BATCH, 4, 3, CROP, CROP), dtype=np.uint8),
                "type_mask_B2": rng.integers(1, 8, (BATCH, 2)),
                "recipe_hash_B2": rng.integers(1, 1000, (BATCH, 2)),
                "image_id_B": BATCH * (step % 3) + np.arange(BATCH),
            }
            share = BATCH // world
            yield {name: rows[rank * share : (rank + 1) * share] for name, rows in whole.items()}

    return stream


def training(stage: PretrainStage, host: LocalHost, **changes) -> Training:
    settings = {
        "stage": stage,
        "stream": batches(host.rank, host.world),
        "steps_per_epoch": PER_EPOCH,
        "optim": OPTIM,
        "seed": 0,
        "identity": {"model": {"dre": {"width": 4}}, "data": {"clean_manifest": "abc"}},
    }
    return Training(**(settings | changes))


def run(folder: Path, task: str) -> None:
    name = {"whole": "a", "killed": "b", "resumed": "b", "spoilt": "c"}[task]
    with LocalHost(folder / name) as host, (folder / f"{name}.{host.rank}.jsonl").open("a") as log:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            log.write(json.dumps({"step": step} | metrics) + "\n")
            log.flush()
            if task == "killed" and step == KILL_AT:
                os.kill(os.getpid(), signal.SIGKILL)

        if task == "spoilt":
            optim = replace(OPTIM, epochs=1, max_non_finite=7)
            train(training(stage(SpoiltStage, "bn"), host, on_step=on_step, optim=optim), host)
        else:
            train(training(stage(), host, on_step=on_step), host)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with LocalHost(sys.argv[1]):  # one process group for all tasks
        for task in sys.argv[2:]:
            run(Path(sys.argv[1]), task)
