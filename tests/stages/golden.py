"""The golden curve: stage 1 at the tiny preset's scale, its losses per step for one seed.

    python -m tests.stages.golden     # writes tests/assets/stage1_losses.csv: only when numerics change on purpose

Everything from recipes to the optimiser takes part. The images are computed here, so that no data set and no codec of
clean images can change them, and the settings are written out, so that a preset can be tuned without touching this.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dri_iqa.config import (
    DegradeConfig,
    DREConfig,
    MoCoConfig,
    ModelConfig,
    OptimConfig,
    Stage1Config,
)
from dri_iqa.data.samples import stage1_batch
from dri_iqa.data.schedule import Schedule
from dri_iqa.stages import PretrainStage
from pipelines.runtime.host import LocalHost
from pipelines.runtime.loop import Training, train

ASSET = Path(__file__).resolve().parents[1] / "assets" / "stage1_losses.csv"
COLUMNS = ("loss_deg", "loss_qual", "grad_norm", "negatives_deg", "negatives_qual")
MODEL = ModelConfig(crop=64, dre=DREConfig(width=8, norm="gn", proj_dim=32))
STAGE1 = Stage1Config(
    degrade=DegradeConfig(region=96),
    moco=MoCoConfig(queue_size=256, momentum=0.99),
    optim=OptimConfig(batch_size=16, epochs=4, lr=1e-3),
)
IMAGES, SIDE, SEED = 64, 112, 0


class Scenes:
    """Smooth random colour fields with an edge: what `stage1_batch` reads."""

    def read(self, image_id: int) -> dict[str, Any]:
        rng = np.random.default_rng(image_id)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        scene_HWC = np.array(coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        ramp = np.linspace(0.6, 1.0, SIDE)[:, None, None]
        stream = io.BytesIO()
        Image.fromarray((scene_HWC * ramp).astype(np.uint8)).save(stream, "PNG")
        return {"bytes": stream.getvalue()}

    def ids_at(self, place_N: np.ndarray) -> list[int]:
        return place_N.tolist()

    def expect(self, image_ids: Iterable[int]) -> None:
        """They are made when they are read."""

    row = read
    reference_id = None


def curve() -> list[list[float]]:
    """One row of COLUMNS a step."""
    torch.set_num_threads(1)
    optim = STAGE1.optim
    schedule = Schedule(
        ids=tuple(range(IMAGES)),
        batch_size=16,
        epochs=optim.epochs,
        run_seed=SEED,
        remainder="drop",
    )

    def stream(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, stop):
            rows = schedule.batch(*divmod(step, schedule.steps_per_epoch))
            yield stage1_batch(
                Scenes(), rows, run_seed=SEED, degrade=STAGE1.degrade, crop=MODEL.crop
            )

    found: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder, LocalHost(folder) as host:
        training = Training(
            stage=PretrainStage(MODEL, STAGE1, seed=SEED, global_batch=16),
            stream=stream,
            steps_per_epoch=schedule.steps_per_epoch,
            optim=optim,
            seed=SEED,
            on_step=lambda _, metrics: found.append([metrics[name] for name in COLUMNS]),
        )
        train(training, host)
    return found


def read() -> list[list[float]]:
    """The asset."""
    with ASSET.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [[float(value) for value in row[1:]] for row in rows]


def write() -> None:
    """Make the asset anew."""
    with ASSET.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *COLUMNS])
        for step, row in enumerate(curve()):
            writer.writerow([step, *(f"{value:.6g}" for value in row)])


if __name__ == "__main__":
    write()
