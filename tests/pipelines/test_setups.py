"""What a stage is given: images that are held out stay out, and batches that cannot be dealt are named."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dri_iqa.config import MOST_HELD_OUT, ConfigError, OptimConfig, ProbeConfig, Stage1Config
from dri_iqa.data.batches import Source
from dri_iqa.models.checks import check_model, check_restoration
from pipelines.runtime import feeds
from pipelines.runtime.config import compose
from pipelines.runtime.feeds import (
    Feed,
    check_batch,
    clean_parts,
    pretrain_batches,
    train_batches,
)
from tests.pipelines.toy import spec_of


@pytest.mark.parametrize(
    ("batch", "world", "accumulate"), [(16, 3, 1), (2, 4, 1), (16, 2, 3), (15, 2, 1)]
)
def test_a_batch_that_cannot_be_dealt_evenly_names_the_numbers(
    batch: int, world: int, accumulate: int
) -> None:
    optim = OptimConfig(batch_size=64, accumulate=accumulate)
    words = rf"batch of {batch} images \(stage1\.optim\.batch_size=64\).*{world} worker.*{accumulate} micro"
    with pytest.raises(ConfigError, match=words):
        check_batch(optim, batch, world, "stage1")
    with pytest.raises(ConfigError, match=rf"batch of {batch} images \(stage2\.order_batch\)"):
        check_batch(optim, batch, world, "stage2", "order_batch")


def source(photographs: int, pieces: int) -> Source:
    """Clean images in memory, of which one page at a time is known."""
    ids = range(photographs * pieces)
    counts = {"images": len(ids), "groups": photographs}
    reader = SimpleNamespace(
        manifest=SimpleNamespace(counts=counts),
        ids_at=lambda place_N: place_N.tolist(),
        neighbours=lambda place: range(place - place % pieces, place - place % pieces + pieces),
    )
    return cast(Source, SimpleNamespace(open=lambda: reader))


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_parts_are_divided_by_photograph(held_out: float) -> None:
    stage1 = Stage1Config(held_out=held_out, n_clean=None, probe=ProbeConfig(images=12))
    parts = clean_parts(source(12, 4), stage1, seed=0)

    def photographs(ids: Any) -> set[int]:
        return {image_id // 4 for image_id in ids}

    assert (len(parts.fit), len(parts.test)) == (8, 4)
    assert not photographs(parts.fit) & photographs(parts.test)
    assert photographs(parts.fit) <= photographs(parts.train)
    if held_out:
        assert not photographs(parts.test) & photographs(parts.train)
        assert len(parts.train) == 9 * 4
    else:
        assert len(parts.train) == 48


def test_a_billion_clean_images_are_divided_in_bounded_memory() -> None:
    stage1 = Stage1Config(held_out=0.1, n_clean=None)
    tracemalloc.start()
    try:
        parts = clean_parts(source(250_000_000, 4), stage1, seed=0)
        travels = len(pickle.dumps(parts))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(parts.train) == 10**9 - 4 * MOST_HELD_OUT
    assert not set(parts.test) & set(parts.train.take(np.arange(0, len(parts.train), 10**6)))
    assert all(image_id not in parts.train for image_id in parts.test)
    assert (peak < 5e6, travels < 100e3) == (True, True)


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_presets_keep_the_relations_between_sizes(preset: str) -> None:
    model = compose("full", [f"preset={preset}"]).model
    check_model(model)
    check_restoration(model)
    assert model.ram.width * 2 == model.dre.width


def test_batches_that_were_begun_for_another_step_are_never_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[tuple[int, int]] = []

    def stream(batches: Any, start: int, stop: int, settings: Any) -> Iterator[int]:
        begun.append((start, stop))
        return iter(range(start, stop))

    monkeypatch.setattr(feeds, "stream", stream)
    monkeypatch.setattr(feeds.ray, "is_initialized", lambda: True)
    batches: Any = SimpleNamespace(schedule=SimpleNamespace(total_steps=8))
    feed = Feed(batches, {}, 3)
    assert begun == [(3, 8)], "it begins before anyone asks"
    assert list(feed(3, 8)) == [3, 4, 5, 6, 7]
    assert list(feed(3, 8)) == [3, 4, 5, 6, 7], "and a second time from the start"
    assert list(Feed(batches, {}, 3)(0, 8)) == list(range(8))
    Feed(batches, {}, 8), Feed(batches, {}, None)
    assert begun == [(3, 8), (3, 8), (3, 8), (0, 8)], "nothing is begun where nothing is left"


def test_auxiliary_photographs_are_turned_as_labelled_crops_are_and_stage_1_turns_none(
    tmp_path: Path,
) -> None:
    spec = spec_of(tmp_path, references=False)
    stage2 = spec.config["stage2"] | {"augment": "dihedral_channels", "aux_batch": 4}
    spec = replace(spec, config=spec.config | {"stage2": stage2})
    batches = train_batches(spec, 0, 1)
    assert batches.auxiliary is not None
    assert (batches.augment, batches.auxiliary.augment) == ("dihedral_channels",) * 2
    assert pretrain_batches(spec, 0, 1).augment == "flip"
