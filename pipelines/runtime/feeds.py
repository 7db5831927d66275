"""What a run reads, as a function of the step: its batches, and the processes that make them.

Free of torch, and begun before a worker imports it: the processes of a stream take seconds to start, and so do a
worker's own imports and its models. Side by side, a training starts sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from dri_iqa import plan
from dri_iqa.config import (
    MOST_HELD_OUT,
    ConfigError,
    ModelConfig,
    OptimConfig,
    Stage1Config,
    Stage2Config,
    from_dict,
)
from dri_iqa.data.batches import OrderBatches, Source, Stage1Batches, Stage2Batches
from dri_iqa.data.order import IdSet, Permutation
from dri_iqa.data.records import DataError
from dri_iqa.data.samples import Streams, score_range, shuffled_scores
from dri_iqa.data.schedule import Schedule, choose
from dri_iqa.data.splits import Split, load_splits
from dri_iqa.seeds import Purpose
from pipelines.runtime.fit import Inputs, RunSpec
from pipelines.runtime.streams import Batch, stream

Batches = Stage1Batches | Stage2Batches


class Feed:
    """The batches of a rank for the steps from `start` on; on a cluster their processes start with this object.

    Args:
        batches: step -> batch.
        settings: see `streams.stream`.
        start: first step that is expected to be asked for; None begins nothing ahead.
    """

    def __init__(
        self,
        batches: Batches,
        settings: dict[str, Any],
        start: int | None = None,
    ) -> None:
        self._batches, self._settings = batches, settings
        self._begun: tuple[tuple[int, int], Iterator[Batch], Future[Batch]] | None = None
        stop = batches.schedule.total_steps
        if start is None or start >= stop or not ray.is_initialized():
            return
        batches_ahead = stream(batches, start, stop, settings)
        first = ThreadPoolExecutor(1).submit(next, batches_ahead)
        self._begun = ((start, stop), batches_ahead, first)

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches for the steps start..stop-1; what was begun is given once, for these steps alone."""
        begun, self._begun = self._begun, None
        if begun is None or begun[0] != (start, stop):
            del begun  # what nobody asked for ends with its last reference, and frees its processes
            yield from stream(self._batches, start, stop, self._settings)
            return
        _, rest, first = begun
        yield first.result()
        yield from rest


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The clean images of a run."""

    train: IdSet
    """What stage 1 may see: places in the manifest's order, which every process turns into ids for itself."""
    fit: tuple[int, ...]
    """Ids that probes are fitted on."""
    test: tuple[int, ...]
    """Ids of other photographs that probes are tested on; never in `train` where some are held
    out."""


def clean_parts(source: Source, stage1: Stage1Config, seed: int) -> Parts:
    """Divide the clean images by photograph: sub-images of one never lie on both sides.

    Nothing is listed: photographs are drawn by their images (so one of many sub-images is drawn before others), and
    what stage 1 may see is the rest.
    """
    reader = source.open()
    counts = reader.manifest.counts
    everything = counts["images"]

    def some(photographs: int) -> IdSet:
        order = Permutation(everything, seed, Purpose.HELD_OUT)
        drawn = (int(order(np.array([turn]))[0]) for turn in range(everything))
        found: set[int] = set()
        for _ in range(min(photographs, MOST_HELD_OUT)):
            found.update(reader.neighbours(next(place for place in drawn if place not in found)))
        return IdSet.of(found)

    def ids(places: IdSet, count: int) -> tuple[int, ...]:
        chosen = choose(places, count, seed)
        return tuple(reader.ids_at(chosen.take(np.arange(len(chosen)))))

    held = some(round(stage1.held_out * counts["groups"]))
    # without held-out photographs a third of all tests the probes, though not the extractor
    test = held or some(counts["groups"] // 3)
    third = stage1.probe.images // 3
    return Parts(
        train=choose(IdSet.rest(everything, held), stage1.n_clean, seed),
        fit=ids(IdSet.rest(everything, test), stage1.probe.images - third),
        test=ids(test, third),
    )


def pretrain_batches(spec: RunSpec, rank: int, world: int) -> Stage1Batches:
    """Stage 1's batches as a function of the step, for one rank."""
    seed = spec.config["seed"]
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    ids = clean_parts(source, stage1, seed).train
    schedule = Schedule(
        ids=ids,
        batch_size=min(stage1.optim.batch_size, len(ids)),
        epochs=stage1.optim.epochs,
        run_seed=seed,
        remainder="drop",  # the queues want the same number of keys at every step
    )
    check_batch(stage1.optim, schedule.batch_size, world, "stage1")
    return Stage1Batches(
        clean=source,
        schedule=schedule,
        degrade=stage1.degrade,
        crop=spec.config["model"]["crop"],
        run_seed=seed,
        rank=rank,
        world=world,
        share_recipes=stage1.moco.deg_positive == "cross_content",
    )


def train_batches(spec: RunSpec, rank: int, world: int) -> Stage2Batches:
    """Stage 2's batches as a function of the step, for one rank: scored images, and clean ones where the variant reads
    them.
    """
    seed, inputs = spec.config["seed"], spec.inputs
    model = from_dict(ModelConfig, spec.config["model"], "model")
    stage2 = from_dict(Stage2Config, spec.config["stage2"], "stage2")
    scored = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = scored.open().manifest
    split = load_split(inputs)
    table = manifest.table()
    low, high = score_range(table, split.train)
    wanted = plan.stage2_streams(stage2, manifest.counts["references"] > 0)
    train_ids = choose(split.train, stage2.max_images, seed)
    steps = _steps_per_epoch(len(train_ids), stage2.optim.batch_size)
    total_steps = steps * stage2.optim.epochs
    auxiliary, order = _clean_streams(spec, wanted, total_steps, rank, world)
    batches = Stage2Batches(
        scored=scored,
        schedule=Schedule(
            ids=train_ids,
            batch_size=stage2.optim.batch_size,
            epochs=stage2.optim.epochs,
            run_seed=seed,
            remainder="wrap",  # every rank brings the same number of keys to the queues at every step
        ),
        streams=Streams(reference=wanted.reference, views=wanted.views),
        crop=model.crop,
        run_seed=seed,
        score_lo=low,
        score_hi=high,
        higher_is_better=manifest.higher_is_better,
        train_ids=train_ids,
        scores=_control_scores(inputs, table, split, seed),
        auxiliary=auxiliary,
        order=order,
        rank=rank,
        world=world,
        augment=stage2.augment,
    )
    check_batch(stage2.optim, batches.schedule.batch_size, world, "stage2")
    return batches


BATCHES: dict[str, Callable[[RunSpec, int, int], Batches]] = {
    "pretrain": pretrain_batches,
    "train": train_batches,
}


def check_batch(optim: OptimConfig, batch: int, world: int, stage: str, key: str = "") -> None:
    """Whether a step's images can be dealt evenly to workers and micro-batches.

    Args:
        batch: images of all workers in a step.
        key: of the stage's configuration that asks for them; the batch size's by default.

    Raises:
        ConfigError: naming the numbers that clash. Ranks with unequal rows would weigh images
            unequally, and could not exchange their keys.
    """
    parts = world * optim.accumulate
    if batch % parts:
        raise ConfigError(
            f"a batch of {batch} images ({stage}.{key or f'optim.batch_size={optim.batch_size}'}) cannot be dealt "
            f"evenly to {world} worker(s) x {optim.accumulate} micro-batch(es)\n"
            f"use a batch that is a multiple of {parts}, or fewer workers"
        )


def _clean_streams(
    spec: RunSpec, wanted: plan.Streams, total_steps: int, rank: int, world: int
) -> tuple[Stage1Batches | None, OrderBatches | None]:
    """Stage 2's clean images, in epochs of their own: those that restoration reads, and pairs of levels."""
    source = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    seed = spec.config["seed"]
    crop = spec.config["model"]["crop"]
    stage1 = from_dict(Stage1Config, spec.config["stage1"], "stage1")
    stage2 = from_dict(Stage2Config, spec.config["stage2"], "stage2")
    degrade = stage1.degrade

    def schedule(batch: int, purpose: Purpose) -> Schedule:
        places = clean_parts(source, stage1, seed).train
        batch = min(batch, len(places))
        return Schedule(
            ids=places,
            batch_size=batch,
            epochs=-(-total_steps // (len(places) // batch)),
            run_seed=seed,
            purpose=purpose,
            remainder="drop",
        )

    auxiliary = order = None
    if wanted.aux:
        auxiliary = Stage1Batches(
            clean=source,
            schedule=schedule(stage2.aux_batch, Purpose.AUXILIARY),
            degrade=degrade,
            crop=crop,
            run_seed=seed,
            rank=rank,
            world=world,
            with_clean=True,
            share_recipes=stage1.moco.deg_positive == "cross_content",
            augment=stage2.augment,
        )
    if wanted.order:
        order = OrderBatches(
            clean=source,
            schedule=schedule(stage2.order_batch, Purpose.ORDER_STREAM),
            crop=crop,
            region=max(degrade.region, crop),
            run_seed=seed,
            rank=rank,
            world=world,
        )
        check_batch(stage2.optim, order.schedule.batch_size, world, "stage2", "order_batch")
    return auxiliary, order


def _steps_per_epoch(images: int, batch: int) -> int:
    return -(-images // batch)


def load_split(inputs: Inputs) -> Split:
    """The run's division of the scored images.

    Raises:
        DataError: the file holds another one.
    """
    split = load_splits(inputs.split_uri)[0]
    if split.digest != inputs.split_digest:
        raise DataError(
            f"{inputs.split_uri} holds the split {split.digest[:12]}, expected {inputs.split_digest[:12]}\n"
            "The data were split again since; start a new run."
        )
    return split


def _control_scores(inputs: Inputs, table: Any, split: Split, seed: int) -> dict[int, float] | None:
    if not inputs.shuffle_scores:
        return None
    # Validation scores choose among trials, so the control must not see the true ones there either.
    return shuffled_scores(table, split.train, seed) | shuffled_scores(table, split.val, seed + 1)
