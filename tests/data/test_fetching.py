"""Images from an object store: several requests under way, the same bytes, and errors where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dri_iqa import storage
from dri_iqa.data.batches import Source, Stage2Batches
from dri_iqa.data.manifest import FETCHES, Manifest, ShardReader
from dri_iqa.data.records import DataError
from dri_iqa.data.samples import Streams
from dri_iqa.data.schedule import Schedule
from tests.data.toys import ingest, scored
from tests.servers.faulty_proxy import FaultyProxy

IMAGES = 40


@pytest.fixture
def places(tmp_path: Path, bucket: str) -> tuple[str, str]:
    """The same data set on local files and in a bucket."""
    ingest(scored(IMAGES), tmp_path, rows_per_shard=10)
    storage.upload_directory(tmp_path, f"{bucket}/data")
    return str(tmp_path), f"{bucket}/data"


def readers(places: tuple[str, str], **options: int) -> tuple[ShardReader, ShardReader]:
    local, remote = (ShardReader(Manifest.load(place), **options) for place in places)
    return local, remote


@pytest.mark.parametrize("options", [{}, {"cache_bytes": 1, "cache_rows": 1}])
def test_what_is_expected_comes_several_at_a_time_and_is_the_same(
    places: tuple[str, str], faulty: Callable[..., FaultyProxy], options: dict[str, int]
) -> None:
    local, remote = readers(places, **options)
    order = np.random.default_rng(0).permutation(IMAGES).tolist()
    proxy = faulty(rate=0.0)
    for image_id in order[:3]:
        assert remote.read(image_id) == local.read(image_id)
    assert proxy.most_at_once == 1
    remote.expect(order[:20])
    local.expect(order[:20])
    for image_id in [*order[:25], *order[5:8]]:
        assert remote.read(image_id) == local.read(image_id)
    assert 1 < proxy.most_at_once <= FETCHES
    proxy.most_at_once = 0
    assert list(remote.read_each(order)) == list(local.read_each(order))
    assert options or proxy.most_at_once > 1
    assert remote.ids_at(np.array(order)) == order
    assert len(remote._images) == (1 if options else IMAGES)


def test_each_image_is_asked_for_once(
    places: tuple[str, str], faulty: Callable[..., FaultyProxy]
) -> None:
    _, remote = readers(places)
    proxy = faulty(rate=0.0)
    for _ in range(2):
        for first in range(0, IMAGES, 8):
            remote.expect(range(first, first + 8))
            for image_id in range(first, first + 8):
                remote.read(image_id)
    shards = len(remote.manifest.shards) - 1  # the last one has the references
    pages = 2 * shards
    # threads that open a shard at the same time may each ask for its length
    assert IMAGES + pages + shards <= proxy.seen["all"] <= IMAGES + pages + 8 * shards


def test_what_is_no_longer_expected_is_given_up(places: tuple[str, str]) -> None:
    local, remote = readers(places)
    remote.expect([1, 2])
    remote.expect([2, 3])
    assert set(remote._coming) == {2, 3}
    local.expect([1, 2])
    assert not local._coming


def test_a_changed_image_is_refused_when_it_is_read(places: tuple[str, str]) -> None:
    _, remote = readers(places)
    row = remote.row(5)
    shard = f"{places[1]}/{remote.manifest.shards[0].name}"
    data = bytearray(storage.read_bytes(shard))
    data[row["offset"] + row["length"] // 2] ^= 1
    storage.write_bytes(shard, bytes(data))
    remote.expect(range(8))
    assert [remote.read(image_id)["name"] for image_id in range(5)] == [
        "i0",
        "i1",
        "i2",
        "i3",
        "i4",
    ]
    with pytest.raises(DataError, match="the image i5 was changed"):
        remote.read(5)
    assert remote.read(6)["name"] == "i6"


def test_a_batch_with_siblings_waits_once(
    places: tuple[str, str], faulty: Callable[..., FaultyProxy]
) -> None:
    def batches(place: str) -> Stage2Batches:
        return Stage2Batches(
            scored=Source(uri=place, digest=Manifest.load(place).digest),
            schedule=Schedule(ids=range(IMAGES), batch_size=8, epochs=1, run_seed=0),
            streams=Streams(reference=True, views=True),
            crop=32,
            run_seed=0,
            score_lo=0.0,
            score_hi=float(IMAGES),
            higher_is_better=True,
            train_ids=range(IMAGES),
        )

    local, remote = map(batches, places)
    proxy = faulty(rate=0.1, stall_s=0.2)
    for step in range(3):
        expected = local(step)
        found = remote(step)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    assert proxy.most_at_once > 2
    assert not remote.scored.open()._coming, "siblings among them"
