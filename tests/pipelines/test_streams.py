"""What streams deliver: the schedule's rows, each once, whoever reads them and whoever dies on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dri_iqa.config import DegradeConfig
from dri_iqa.data.batches import Batch, OrderBatches, Source, Stage1Batches, Stage2Batches
from dri_iqa.data.cutting import png_bytes
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.samples import Streams
from dri_iqa.data.schedule import Schedule
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.processor import ALLOCATOR
from pipelines.runtime.cluster import connect
from pipelines.runtime.config import ClusterConfig
from pipelines.runtime.feeds import Feed
from pipelines.runtime.loader import loader_stream
from pipelines.runtime.streams import ray_stream

pytestmark = pytest.mark.ray

CROP, EPOCHS, IMAGES = 48, 3, 13
SETTINGS = {"cpus_per_data_task": 0.2, "data_processes": 1, "degrade_resource": 0.0}


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return png_bytes(coarse.repeat(9, axis=0).repeat(9, axis=1))


def ingested(folder: Path, dataset: DataSet) -> Source:
    results = [write_shard(plan, str(folder)) for plan in plan_shards(dataset, 5)]
    manifest = publish(str(folder), dataset, results)
    return Source(uri=str(folder), digest=manifest.digest)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Source:
    records = tuple(Record(name=f"i{n}", data=picture(n)) for n in range(IMAGES))
    dataset = DataSet(name="clean", records=records, score_kind="none")
    return ingested(tmp_path_factory.mktemp("clean"), dataset)


@pytest.fixture(scope="module")
def stage1(clean: Source) -> Stage1Batches:
    return Stage1Batches(
        clean=clean,
        schedule=Schedule(tuple(range(IMAGES)), 4, EPOCHS, run_seed=3),
        degrade=DegradeConfig(region=64),
        crop=CROP,
        run_seed=3,
    )


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory, stage1: Stage1Batches) -> Stage2Batches:
    """Scored images with references and siblings, and the auxiliary clean stream."""
    dataset = DataSet(
        name="scored",
        records=tuple(
            Record(
                name=f"d{n}",
                data=picture(100 + n),
                score=n / 9,
                group=f"r{n % 2}",
                reference=f"r{n % 2}",
                type="jpeg",
                level=1 + n % 5,
            )
            for n in range(9)
        ),
        references=tuple(
            Record(name=f"r{n}", data=picture(200 + n), group=f"r{n}") for n in range(2)
        ),
    )
    return Stage2Batches(
        scored=ingested(tmp_path_factory.mktemp("scored"), dataset),
        schedule=Schedule(tuple(range(9)), 4, 1, run_seed=3, remainder="wrap"),
        streams=Streams(reference=True, views=True),
        crop=CROP,
        run_seed=3,
        score_lo=0.0,
        score_hi=1.0,
        higher_is_better=True,
        train_ids=tuple(range(9)),
        auxiliary=replace(stage1, with_clean=True),
        order=OrderBatches(
            clean=stage1.clean, schedule=stage1.schedule, crop=CROP, region=64, run_seed=3
        ),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(ClusterConfig(kind="local", num_cpus=4)):
        yield


def views(batches: Stage1Batches, step: int, batch: Batch) -> Iterator[tuple[int, int, int, str]]:
    """(epoch, image, view, digest of what was seen) of every view in a batch."""
    epoch = step // batches.schedule.steps_per_epoch
    for row, image_id in enumerate(batch["image_id_B"].tolist()):
        for view in range(2):
            pixels = batch["crops_B4CHW"][row, 2 * view : 2 * view + 2]
            recipe = int(batch["recipe_hash_B2"][row, view])
            yield epoch, image_id, view, hashlib.sha256(pixels.tobytes()).hexdigest() + str(recipe)


def meant(batches: Stage1Batches) -> Counter[tuple[int, int, int, str]]:
    """The schedule, made here one image at a time."""
    seen: Counter[tuple[int, int, int, str]] = Counter()
    for step in range(batches.schedule.total_steps):
        seen.update(views(batches, step, batches(step)))
    pairs = Counter((epoch, image, view) for epoch, image, view, _ in seen.elements())
    assert pairs == Counter(
        (e, i, v) for e in range(EPOCHS) for i in range(IMAGES) for v in range(2)
    )
    return seen


class _Reader:
    """A training worker that only writes down what it was given."""

    def __init__(self, batches: Stage1Batches, start: int, notes: str) -> None:
        self._batches, self._start, self._notes = batches, start, Path(notes)

    def read(self, pause: float = 0.0) -> None:
        stop = self._batches.schedule.total_steps
        with self._notes.open("a") as notes:
            feed = Feed(self._batches, SETTINGS, self._start)  # begins before it is asked
            for step, batch in enumerate(feed(self._start, stop), start=self._start):
                notes.write(json.dumps([step, list(views(self._batches, step, batch))]) + "\n")
                notes.flush()
                time.sleep(pause)


class Group:
    """Several workers at once, each with its own share of every batch."""

    def __init__(self, batches: Stage1Batches, world: int, start: int, folder: Path) -> None:
        self.notes = [folder / f"{world}-{rank}-{start}" for rank in range(world)]
        actor = ray.remote(num_cpus=0.1)(_Reader)
        self.actors: list[Any] = [
            actor.remote(replace(batches, rank=rank, world=world), start, str(notes))
            for rank, notes in enumerate(self.notes)
        ]

    def done(self) -> int:
        """Steps that every worker has written down."""
        return min(len(self._lines(notes)) for notes in self.notes)

    def seen(self, steps: int | None = None) -> Counter[tuple[int, int, int, str]]:
        """What was seen in the first steps."""
        found: Counter[tuple[int, int, int, str]] = Counter()
        for notes in self.notes:
            for line in self._lines(notes)[:steps]:
                found.update(tuple(row) for row in json.loads(line)[1])
        return found

    @staticmethod
    def _lines(notes: Path) -> list[str]:
        return (
            [line for line in notes.read_text().splitlines(True) if line.endswith("\n")]
            if notes.exists()
            else []
        )


def test_processes_keep_their_memory(cluster: None) -> None:
    task = ray.remote(num_cpus=0.1)(lambda: {name: os.environ.get(name) for name in ALLOCATOR})
    assert ray.get(task.remote()) == {n: os.environ.get(n, v) for n, v in ALLOCATOR.items()}


def test_what_is_seen_is_the_schedule(cluster: None, stage1: Stage1Batches, tmp_path: Path) -> None:
    group = Group(stage1, 2, 0, tmp_path)
    ray.get([actor.read.remote() for actor in group.actors])
    assert group.seen() == meant(stage1)


def test_killed_at_a_random_step_and_continued_by_more_workers(
    cluster: None, stage1: Stage1Batches, tmp_path: Path
) -> None:
    step = random.Random(time.time_ns()).randrange(1, stage1.schedule.total_steps - 1)
    first = Group(stage1, 1, 0, tmp_path)
    for actor in first.actors:
        actor.read.remote(pause=0.1)
    deadline = time.monotonic() + 120
    while first.done() < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for actor in first.actors:
        ray.kill(actor)
    position = min(first.done(), stage1.schedule.total_steps - 1)  # as a checkpoint has it
    second = Group(stage1, 2, position, tmp_path)
    ray.get([actor.read.remote() for actor in second.actors])
    assert first.seen(position) + second.seen() == meant(stage1), f"killed at step {step}"


def test_a_data_loader_gives_the_same_bytes(
    cluster: None, stage1: Stage1Batches, stage2: Stage2Batches
) -> None:
    for batches in (stage1, stage2):
        stop = batches.schedule.total_steps
        told: list[str] = []
        by_ray = list(ray_stream(batches, 1, stop, cpus_per_process=0.2, report=told.append))
        by_loader = list(loader_stream(batches, 1, stop, processes=2))
        assert len(by_ray) == len(by_loader) == stop - 1
        for step, (one, other) in enumerate(zip(by_ray, by_loader, strict=True), start=1):
            here = batches(step)
            assert one.keys() == other.keys() == here.keys()
            for name, array in here.items():
                for given in (one[name], other[name]):
                    assert (given.dtype, given.shape) == (array.dtype, array.shape), name
                    assert np.array_equal(given, array), name
        assert "production wait" in told[0]
