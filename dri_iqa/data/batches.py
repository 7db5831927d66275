"""Batches as pure functions of the step: what a Ray task or a DataLoader worker calls.

Each is plain data (manifests by URI and digest, schedules, seeds), so it travels to any process and gives the same
bytes there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dri_iqa.config import Augment, DegradeConfig
from dri_iqa.data.manifest import ShardReader, open_reader
from dri_iqa.data.samples import (
    Streams,
    order_batch,
    pick_sibling,
    sibling_index,
    stage1_batch,
    stage2_batch,
)
from dri_iqa.data.schedule import Row, Schedule

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An ingested data set by place and content."""

    uri: str
    digest: str

    def open(self) -> ShardReader:
        """This process's reader; refuses a data set that was ingested again since."""
        return open_reader(self.uri, self.digest)


@dataclass(frozen=True, kw_only=True)
class Stage1Batches:
    """Four-crop samples of clean images (paper 3.1, 3.2) for one rank."""

    clean: Source
    schedule: Schedule
    """Over places in the manifest's order, so that ids with gaps need no list of them."""
    degrade: DegradeConfig
    crop: int
    run_seed: int
    rank: int = 0
    world: int = 1
    with_clean: bool = False
    share_recipes: bool = False
    """Neighbours in the global batch get one recipe for their first views: positives of
    `moco.deg_positive = cross_content`, which independent chains would hardly ever give."""
    augment: Augment = "flip"

    @property
    def max_rows(self) -> int:
        """Most samples of this rank in one step."""
        return -(-self.schedule.batch_size // self.world)

    def __call__(self, step: int) -> Batch:
        """The batch of a global step, see `stage1_batch`."""
        epoch, index = divmod(step, self.schedule.steps_per_epoch)
        reader = self.clean.open()
        rows = self.schedule.batch(epoch, index, self.rank, self.world)
        by_id = _by_id(reader, rows)
        recipe_of = None
        if self.share_recipes:
            places = [row.image_id for row in self.schedule.batch(epoch, index)]
            leader_of = dict(zip(places[1::2], places[::2], strict=False))
            led = [number for number, row in enumerate(rows) if row.image_id in leader_of]
            leaders = np.array([leader_of[rows[number].image_id] for number in led], dtype=np.int64)
            own = (by_id[number].image_id for number in led)
            recipe_of = dict(zip(own, reader.ids_at(leaders), strict=True))
        reader.expect(row.image_id for row in by_id)
        return stage1_batch(
            reader,
            by_id,
            run_seed=self.run_seed,
            degrade=self.degrade,
            crop=self.crop,
            with_clean=self.with_clean,
            batch_position=index,
            recipe_of=recipe_of,
            augment=self.augment,
        )


@dataclass(frozen=True, kw_only=True)
class OrderBatches:
    """Clean crops at two neighbouring levels of one degradation, for one rank."""

    clean: Source
    schedule: Schedule
    """Over places in the manifest's order."""
    crop: int
    region: int
    run_seed: int
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> Batch:
        """The batch of a global step, see `order_batch`."""
        epoch, index = divmod(step, self.schedule.steps_per_epoch)
        reader = self.clean.open()
        rows = _by_id(reader, self.schedule.batch(epoch, index, self.rank, self.world))
        reader.expect(row.image_id for row in rows)
        return order_batch(
            reader,
            rows,
            run_seed=self.run_seed,
            crop=self.crop,
            region=self.region,
        )


@dataclass(frozen=True, kw_only=True)
class Stage2Batches:
    """Scored samples, with the auxiliary clean stream where it is wanted, for one rank."""

    scored: Source
    schedule: Schedule
    streams: Streams
    crop: int
    run_seed: int
    score_lo: float
    score_hi: float
    higher_is_better: bool
    train_ids: Collection[int]
    scores: Mapping[int, float] | None = None
    """Labels that replace the stored ones (the control with shuffled scores)."""
    auxiliary: Stage1Batches | None = None
    """Its schedule has an epoch of its own; step k of stage 2 reads its step k."""
    order: OrderBatches | None = None
    """Likewise."""
    rank: int = 0
    world: int = 1
    augment: Augment = "flip"
    _siblings: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def max_rows(self) -> int:
        """Most samples of this rank in one step."""
        return -(-self.schedule.batch_size // self.world)

    def __call__(self, step: int) -> Batch:
        """The batch of a global step, see `stage2_batch`; auxiliary arrays carry the prefix `aux_`."""
        reader = self.scored.open()
        if self.streams.views and not self._siblings:
            self._siblings.update(sibling_index(reader.manifest.table(), self.train_ids))
        epoch, index = divmod(step, self.schedule.steps_per_epoch)
        rows = self.schedule.batch(epoch, index, self.rank, self.world)
        reader.expect(self._read_for(reader, rows))
        batch = stage2_batch(
            reader,
            rows,
            run_seed=self.run_seed,
            crop=self.crop,
            score_lo=self.score_lo,
            score_hi=self.score_hi,
            higher_is_better=self.higher_is_better,
            streams=self.streams,
            siblings=self._siblings,
            scores=self.scores,
            augment=self.augment,
        )
        if self.auxiliary is not None:
            for name, array in self.auxiliary(step).items():
                stem, _, shape = name.rpartition("_")
                batch[f"aux_{stem}_A{shape[1:]}"] = array
        if self.order is not None:
            batch |= self.order(step)
        return batch

    def _read_for(self, reader: ShardReader, rows: Sequence[Row]) -> Iterator[int]:
        """Ids of the images and siblings that a batch reads; references come again soon, and are kept by the reader."""
        for row in rows:
            yield row.image_id
            if self.streams.views:
                image = reader.row(row.image_id)
                sibling_id = pick_sibling(image, self._siblings, self.run_seed, row.epoch)
                if sibling_id is not None:
                    yield sibling_id


def _by_id(reader: ShardReader, rows: Sequence[Row]) -> list[Row]:
    """Rows of a schedule over places in the manifest's order, with the ids of the images there."""
    ids = reader.ids_at(np.array([row.image_id for row in rows]))
    return [row._replace(image_id=image_id) for row, image_id in zip(rows, ids, strict=True)]
