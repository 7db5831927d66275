"""Ingest: the same bytes for the same input, damaged shards refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from dri_iqa import storage
from dri_iqa.config import DegradeConfig, ProbeConfig, Stage1Config
from dri_iqa.data.batches import Source, Stage1Batches
from dri_iqa.data.cutting import sub_images
from dri_iqa.data.manifest import Manifest, ShardReader, open_reader
from dri_iqa.data.publishing import publish
from dri_iqa.data.readers.generic import read_folder
from dri_iqa.data.records import DataError, DataSet, Record
from dri_iqa.data.schedule import Schedule
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.data.summary import contact_sheet, summary
from dri_iqa.images import decode
from pipelines.runtime.feeds import clean_parts
from tests.data.toys import encoded, ingest, picture, scored


def snapshot(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.is_file()
    }


def test_round_trip(tmp_path: Path) -> None:
    dataset = scored()
    made = ingest(dataset, tmp_path, rows_per_shard=5)
    manifest = Manifest.load(str(tmp_path))
    assert manifest == made
    assert manifest.counts == {"images": 10, "references": 2, "groups": 2, "quarantined": 0}
    assert [info.name for info in manifest.shards] == [f"shard-0000{n}.parquet" for n in range(3)]
    assert [info.rows for info in manifest.shards] == [5, 5, 2]
    assert (manifest.score_kind, manifest.higher_is_better) == ("human", True)
    reader = ShardReader(manifest)
    for number, record in enumerate(dataset.records):
        row = reader.read(number)
        assert row["bytes"] == record.data, "encoded bytes are kept as they are"
        for key in ("name", "score", "group", "reference", "type", "level", "subset", "split"):
            assert row[key] == getattr(record, key)
        assert (row["role"], row["width"], row["height"]) == ("image", 48, 40)
        assert "bytes" not in reader.row(number)
    reference = reader.read_reference("r1")
    assert reference["bytes"] == dataset.references[1].data
    assert (reference["role"], reference["score"]) == ("reference", None)
    assert manifest.images().num_rows == 10
    assert manifest.table().num_rows == 12
    assert "bytes" not in manifest.table().column_names
    with pytest.raises(KeyError, match="no image 99"):
        reader.row(99)


def test_same_input_same_bytes_in_any_order(tmp_path: Path) -> None:
    ingest(scored(), tmp_path / "a", rows_per_shard=4)
    dataset = scored()
    plans = [pickle.loads(pickle.dumps(plan)) for plan in plan_shards(dataset, rows_per_shard=4)]
    results = [write_shard(plan, str(tmp_path / "b")) for plan in plans[::-1]]
    publish(str(tmp_path / "b"), dataset, results)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    ingest(dataset, tmp_path / "b", rows_per_shard=4)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_any_order_with_the_smallest_cache(tmp_path: Path) -> None:
    dataset = scored(23)
    manifest = ingest(dataset, tmp_path, rows_per_shard=10)
    reader = ShardReader(manifest, cache_bytes=1, cache_rows=1)
    order = np.random.default_rng(0).permutation(23).tolist() * 2
    for number in order:
        assert reader.read(number)["bytes"] == dataset.records[number].data
    assert len(reader._images) == len(reader._pages) == 1
    assert reader.ids_at(np.array([22, 0, 10])) == [22, 0, 10]


def test_clean_images_are_shuffled_by_group_and_ids_follow_their_order(tmp_path: Path) -> None:
    records = tuple(
        Record(name=f"i{n:02d}", data=encoded(picture(n)), group=f"g{n % 7}") for n in range(20)
    )
    dataset = DataSet(name="clean", records=records, score_kind="none")
    plans = [plan_shards(dataset, 5, seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    rows = [row for plan in plans[0] for row in plan.rows]
    assert [row[0] for row in rows] == sorted(range(20))
    assert [row[2] for row in rows] != list(records)
    assert plans[0] != plans[2]
    manifest = ingest(dataset, tmp_path, rows_per_shard=5)
    reader = ShardReader(manifest, cache_rows=1)
    assert {reader.read(n)["name"] for n in range(20)} == {record.name for record in records}
    groups = manifest.table()["group"].to_pylist()
    for place, group in enumerate(groups):
        members = reader.neighbours(place)
        assert {groups[member] for member in members} == {group}
        assert len(members) == groups.count(group), "a group's images are neighbours"


def test_shards_are_closed_by_size_too() -> None:
    dataset = scored(12)
    biggest = max(len(record.data or b"") for record in dataset.records)
    plans = plan_shards(dataset, shard_bytes=3 * biggest)
    assert all(1 <= len(plan.rows) <= 6 for plan in plans)
    assert len(plans) >= 3
    assert [row[0] for plan in plans for row in plan.rows] == list(range(14))


def test_an_interrupted_ingest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.png").write_bytes(encoded(picture(number)))
    target = str(tmp_path / "out")
    plans = plan_shards(read_folder(str(source)), 2)
    first = [write_shard(plan, target) for plan in plans[:2]]
    again = [write_shard(plan, target) for plan in plans]
    assert [result.resumed for result in again] == [True, True, False]
    assert again[:2] == first
    # A file that changed since, and a shard that was lost, are made again.
    changed = plans[0].rows[0][2].path
    (source / str(changed)).write_bytes(encoded(picture(77, 64, 64)))
    storage.delete(storage.join(target, plans[1].name))
    third = [write_shard(plan, target) for plan in plan_shards(read_folder(str(source)), 2)]
    assert [result.resumed for result in third] == [False, False, True]
    assert third[0].info.sha256 != first[0].info.sha256
    assert third[1].info.sha256 == first[1].info.sha256


def test_nothing_is_published_before_the_end(tmp_path: Path) -> None:
    write_shard(plan_shards(scored())[0], str(tmp_path))
    with pytest.raises(DataError, match="does not exist\nRun the ingest job first"):
        Manifest.load(str(tmp_path))


def test_a_changed_or_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    manifest = ingest(scored(), tmp_path, rows_per_shard=5)
    shard = tmp_path / "shard-00001.parquet"
    whole = shard.read_bytes()
    middle = whole.find(b"\x89PNG") + 60
    changed = bytes([whole[middle] ^ 1])
    shard.write_bytes(whole[:middle] + changed + whole[middle + 1 :])
    assert ShardReader(manifest).read(0)["name"] == "i0", "other shards are still good"
    with pytest.raises(DataError, match=r"shard-00001\.parquet: the image i5 was changed"):
        ShardReader(manifest).read(5)
    shard.write_bytes(whole[: middle - 50])
    with pytest.raises(DataError, match=r"shard-00001\.parquet: the image i5 was changed"):
        ShardReader(manifest).read(5)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.parquet is missing"):
        ShardReader(manifest).read(5)


def test_a_changed_manifest_or_page_is_refused(tmp_path: Path) -> None:
    manifest = ingest(scored(), tmp_path)
    uri = str(tmp_path / "manifest.json")
    value = storage.read_json(uri)
    storage.write_json(uri, value | {"higher_is_better": False})
    with pytest.raises(DataError, match=r"manifest\.json was changed"):
        Manifest.load(str(tmp_path))
    storage.write_json(uri, value | {"format": 99})
    with pytest.raises(DataError, match="has format 99"):
        Manifest.load(str(tmp_path))
    storage.write_json(uri, value)
    page = tmp_path / manifest.shards[0].page
    page.write_bytes(page.read_bytes() + b"PAR1")
    with pytest.raises(DataError, match="was changed"):
        Manifest.load(str(tmp_path)).table()
    with pytest.raises(DataError, match="was changed"):
        ShardReader(manifest).read(0)
    page.unlink()
    with pytest.raises(DataError, match="is missing"):
        ShardReader(manifest).read(0)


def test_workers_refuse_another_ingest(tmp_path: Path) -> None:
    manifest = ingest(scored(), tmp_path)
    assert open_reader(str(tmp_path), manifest.digest).read(3)["name"] == "i3"
    assert open_reader(str(tmp_path), manifest.digest) is open_reader(
        str(tmp_path), manifest.digest
    )
    with pytest.raises(DataError, match="ingested again"):
        open_reader(str(tmp_path), "0" * 64)


def test_another_ingest_into_the_same_place_leaves_nothing_behind(tmp_path: Path) -> None:
    ingest(scored(20), tmp_path, rows_per_shard=5)
    manifest = ingest(scored(6), tmp_path, rows_per_shard=5)
    names = {info.name for info in manifest.shards}
    assert set(snapshot(tmp_path)) == names | {"manifest.json", "quarantine.parquet"}


@pytest.mark.parametrize(
    ("height", "width", "boxes"),
    [
        (321, 481, [(0, 0, 321, 481)]),
        (480, 480, [(0, 0, 480, 480)]),
        (480, 720, [(0, 0, 480, 480), (0, 240, 480, 480)]),
        (719, 480, [(0, 0, 719, 480)]),
        (300, 1000, [(0, 0, 300, 480), (0, 480, 300, 480)]),
    ],
)
def test_where_images_are_cut(height: int, width: int, boxes: list[tuple[int, ...]]) -> None:
    assert sub_images(height, width, 480) == boxes


def test_a_2k_image_is_cut_into_twelve() -> None:
    boxes = sub_images(1356, 2040, 480)
    assert len(boxes) == 12
    covered = np.zeros((1356, 2040), dtype=int)
    for top, left, tall, wide in boxes:
        assert (tall, wide) == (480, 480)
        covered[top : top + tall, left : left + wide] += 1
    assert covered[:, :1920].min() == 1, "only the last 120 columns are dropped"


def test_sub_images_hold_the_pixels_and_the_group(tmp_path: Path) -> None:
    large, small = picture(0, 100, 150), picture(1, 60, 60)
    records = tuple(
        Record(name=name, data=encoded(image), group=name)
        for name, image in (("large", large), ("small", small))
    )
    dataset = DataSet(name="clean", records=records, score_kind="none")
    manifest = ingest(dataset, tmp_path, cut=50)
    reader = ShardReader(manifest)
    rows = sorted(manifest.images().to_pylist(), key=lambda row: row["group"])
    assert [row["name"] for row in rows] == [f"large#{n}" for n in range(6)] + ["small"]
    assert {row["group"] for row in rows} == {"large", "small"}
    assert [row["image_id"] - rows[0]["image_id"] for row in rows[:6]] == list(range(6))
    places = {row["image_id"]: place for place, row in enumerate(manifest.images().to_pylist())}
    assert reader.ids_at(np.arange(7)) == list(places)
    assert len(reader.neighbours(places[rows[0]["image_id"]])) == 6
    parts = [decode(reader.read(row["image_id"])["bytes"]) for row in rows[:6]]
    top = np.concatenate(parts[:3], axis=1)
    assert np.array_equal(np.concatenate([top, np.concatenate(parts[3:], axis=1)]), large)
    assert reader.read(rows[6]["image_id"])["bytes"] == records[1].data


def test_what_stage_1_does_reads_pages_and_never_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tuple(
        Record(name=f"i{n}", data=encoded(picture(n, 70, 130)), group=f"i{n}") for n in range(8)
    )
    dataset = DataSet(name="clean", records=records, score_kind="none")
    plans = plan_shards(dataset, 2, cut=64)
    results = [write_shard(plan, str(tmp_path)) for plan in plans]
    monkeypatch.setattr(Manifest, "table", None)
    manifest = publish(str(tmp_path), dataset, results)
    assert summary(manifest)["images"] == "16"
    assert contact_sheet(ShardReader(manifest)).startswith(b"\x89PNG")
    source = Source(uri=str(tmp_path), digest=manifest.digest)
    stage1 = Stage1Config(held_out=0.25, n_clean=None, probe=ProbeConfig(images=6))
    parts = clean_parts(source, stage1, seed=0)
    batches = Stage1Batches(
        clean=source,
        schedule=Schedule(parts.train, 4, 1),
        degrade=DegradeConfig(region=64),
        crop=48,
        run_seed=0,
    )
    seen = [image_id for step in range(3) for image_id in batches(step)["image_id_B"].tolist()]
    assert len({*seen}) == 12, "six photographs of two parts; ids have gaps between photographs"
    assert max(seen) > 16
    assert not {*seen} & {*parts.test}
    reader = ShardReader(manifest, cache_rows=2)
    for image_id in seen:
        reader.read(image_id)
        assert len(reader._pages) == 1


def test_the_protocols_size(tmp_path: Path) -> None:
    dataset = dataclasses.replace(scored(4), short_side=32)
    manifest = ingest(dataset, tmp_path)
    row = ShardReader(manifest).read(2)
    assert (row["height"], row["width"]) == (32, 38)
    assert decode(row["bytes"]).shape == (32, 38, 3)


def test_plan_refuses_numbers_below_one() -> None:
    with pytest.raises(DataError, match="rows_per_shard is 0"):
        plan_shards(scored(), 0)
    with pytest.raises(DataError, match="cut is 0"):
        plan_shards(scored(), cut=0)
