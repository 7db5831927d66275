"""What a training will cost before it starts: a short pilot of the same configuration, on the same cluster."""

from __future__ import annotations

import copy
import secrets
import time
from dataclasses import dataclass
from typing import Any

from dri_iqa import storage
from dri_iqa.data.splits import load_splits
from pipelines.runtime.fit import RunSpec, fit
from pipelines.runtime.job import Job, Result

EPOCHS = 2
"""Of a pilot: the first waits for processes and first batches, the second runs as all later ones will."""
STEPS = 24
"""Of each of them at most: three tasks of batches, so that batches made ahead do not hide slow data."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one kind of training."""

    start: float
    """Until the first step, and after the last."""
    step: float
    validation: float
    """After an epoch that has one."""
    companion: float = 0.0
    """For every image that a companion is fitted on."""

    def seconds(self, *, epochs: int, steps: int, validations: int, companion: int = 0) -> float:
        """Of a training with so many epochs of so many steps, and images of a companion."""
        trained = epochs * steps * self.step + validations * self.validation
        return self.start + trained + companion * self.companion


def measure(job: Job, spec: RunSpec) -> tuple[Cost, Result]:
    """Run a pilot; its results lie in a folder of their own, which the caller deletes.

    Args:
        job: connected.
        spec: the training that is to be estimated.

    Returns:
        The cost, and the pilot's own result.
    """
    key, rows = f"{job.name}/pilot", list[dict[str, Any]]()

    def handle(record: dict[str, Any]) -> None:
        if record["run"] == key and "metrics" in record:
            rows.append(record["metrics"])

    begun = time.monotonic()
    small = pilot(spec)
    with job.journal.watch(handle):
        output = storage.join(job.output, "pilots", secrets.token_hex(4))
        result = fit(small, job.plan, output, journal=job.journal.name, key=key)
    wall = time.monotonic() - begun
    return cost_of(wall, rows, result["export_seconds"], companion_images(small)), result


def companion_images(spec: RunSpec) -> int:
    """What the companion of a training is fitted on, counted in images: a series of levels, with about half again as
    many crops and their degradations, is two. 0 where it has none.
    """
    if spec.stage == "pretrain":
        return 0
    train = load_splits(spec.inputs.split_uri)[0].train
    most = spec.config["stage2"]["max_images"] or len(train)
    companion = spec.config["model"]["companion"]
    images = min(len(train), most, companion["images"])
    return images + 2 * companion.get("order_series", 0) if images else 0


def cost_of(wall: float, rows: list[dict[str, Any]], export: float, companion: int) -> Cost:
    """What a pilot's times say.

    Args:
        wall: seconds of the whole pilot.
        rows: of its epochs: `seconds` (validation included), `validation_seconds`, `steps_per_second`.
        export: seconds of `wall` in which the finished model was written, its companion fitted before that.
        companion: images that it was fitted on, 0 without one.
    """
    last = rows[-1]
    training = last["seconds"] - last["validation_seconds"]
    steps = round(last["steps_per_second"] * last["seconds"])
    validations = sum(row["validation_seconds"] for row in rows)
    fitting = export if companion else 0.0
    return Cost(
        start=max(0.0, wall - len(rows) * training - validations - fitting),
        step=training / max(steps, 1),
        validation=last["validation_seconds"],
        companion=fitting / max(companion, 1),
    )


def pilot(spec: RunSpec) -> RunSpec:
    """The same training on fewer images for fewer epochs, with one validation or probe at least."""
    stage = "stage1" if spec.stage == "pretrain" else "stage2"
    config = copy.deepcopy(spec.config)
    optim = config[stage]["optim"]
    optim |= {"epochs": min(EPOCHS, optim["epochs"]), "t_max": None, "checkpoint_steps": None}
    images = STEPS * optim["batch_size"]
    if stage == "stage1":
        config[stage]["n_clean"] = min(images, config[stage]["n_clean"] or images)
    else:
        config[stage]["max_images"] = min(images, config[stage]["max_images"] or images)
        companion = config["model"]["companion"]
        companion["order_series"] = min(images, companion.get("order_series", 0))
    return RunSpec(stage=spec.stage, config=config, inputs=spec.inputs, workers=spec.workers)
