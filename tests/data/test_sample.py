"""The built-in sample: pseudo scores that make sense, references that are never shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataError, DataSet
from dri_iqa.data.sample import (
    CLEAN_TILE,
    HELD_OUT,
    PHOTOGRAPHS,
    TILE,
    build_sample,
    pseudo_score,
)
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.data.splits import official_split
from dri_iqa.degradations import OPERATORS, SETS, apply_recipe, parse_recipe
from dri_iqa.images import decode


@pytest.fixture(scope="module")
def sample() -> tuple[DataSet, DataSet]:
    return build_sample(0)


def test_sizes(sample: tuple[DataSet, DataSet]) -> None:
    scored, clean = sample
    parts = Counter(record.split for record in scored.records)
    assert 700 <= parts["train"] <= 900
    assert 150 <= parts["val"] <= 300
    assert 150 <= parts["test"] <= 300
    assert 40 <= len(clean.records) <= 200
    assert all(decode(r.data or b"").shape == (TILE, TILE, 3) for r in scored.references)
    assert max(max(decode(r.data or b"").shape) for r in clean.records) == CLEAN_TILE


def test_scores_are_called_pseudo(sample: tuple[DataSet, DataSet]) -> None:
    scored, clean = sample
    assert scored.score_kind == "pseudo"
    assert scored.notes.startswith("pseudo scores")
    assert clean.score_kind == "none"


def test_every_operator_at_every_level_is_in_every_part(sample: tuple[DataSet, DataSet]) -> None:
    seen: dict[str, Counter[tuple[str | None, int | None]]] = defaultdict(Counter)
    for record in sample[0].records:
        if record.type and record.recipe and record.recipe.count(":") == 1:
            seen[str(record.split)][record.type, record.level] += 1
    wanted = {
        (name, level)
        for group in SETS["default"].values()
        for name in group
        for level in range(1, 6)
    }
    assert len(wanted) == 120
    assert set(seen["train"]) == set(seen["test"]) == wanted
    assert max(seen["test"].values()) - min(seen["test"].values()) <= 3


def test_scores_belong_to_the_images(sample: tuple[DataSet, DataSet]) -> None:
    scored, _ = sample
    references = {record.name: record for record in scored.references}
    for record in scored.records[::37]:
        assert record.reference is not None
        original_HWC = decode(references[record.reference].data or b"")
        assert record.score == pseudo_score(original_HWC, decode(record.data or b""))
        assert 0 < (record.score or 0) <= 1
    assert pseudo_score(original_HWC, original_HWC) == 1


def test_the_measure_orders_the_levels(sample: tuple[DataSet, DataSet]) -> None:
    """Over a few scenes the mean score falls with the level, but for the exceptions named there."""
    scenes = [decode(record.data or b"") for record in sample[0].references[::9]]
    for name in (name for group in SETS["default"].values() for name in group):
        means = []
        for level in range(1, 6):
            rng = np.random.default_rng(level)
            recipe = parse_recipe(f"{name}:{level}")
            images = [apply_recipe(scene_HWC, recipe, rng) for scene_HWC in scenes]
            pairs = zip(scenes, images, strict=True)
            means.append(np.mean([pseudo_score(scene, image) for scene, image in pairs]))
        assert name in OPERATORS
        if name == "colour_block":
            assert max(means) < 0.99
        elif name == "colour_shift":
            assert means[0] > means[1] > max(means[2:]) - 0.01
        elif name == "jpeg2000":
            assert means[0] > means[1] > means[2] > means[3] >= means[4]
        else:
            assert np.all(np.diff(means) < 0), (name, means)


def test_no_pixel_of_a_held_out_scene_is_in_training(sample: tuple[DataSet, DataSet]) -> None:
    """Held-out tiles are found nowhere in the clean set's images, training tiles are."""
    scored, clean = sample
    seen: dict[str | None, set[bytes]] = defaultdict(set)
    for record in clean.records:
        image_HWC = decode(record.data or b"")
        for row_WC in image_HWC:
            pixels = row_WC.tobytes()
            seen[record.subset].update(pixels[at : at + 96] for at in range(0, len(pixels) - 95, 3))
    found: dict[str | None, list[bool]] = defaultdict(list)
    for record in scored.references:
        middle_WC = decode(record.data or b"")[TILE // 2]
        found[record.split].append(middle_WC[32:64].tobytes() in seen[record.subset])
    assert np.mean(found["train"]) > 0.9
    assert not any(found["val"] + found["test"])
    assert {record.subset for record in clean.records} == set(PHOTOGRAPHS)


def test_whole_photographs_can_be_held_out() -> None:
    scored = read_dataset("sample", None, split="photograph", limit=240)
    clean = read_dataset("sample", None, part="clean", split="photograph")
    where: dict[str | None, set[str | None]] = defaultdict(set)
    for record in (*scored.records, *scored.references):
        where[record.subset].add(record.split)
    assert set(where) == set(PHOTOGRAPHS)
    assert all(len(parts) == 1 for parts in where.values())
    assert {name for name, parts in where.items() if parts != {"train"}} == set(HELD_OUT)
    train = {name for name, parts in where.items() if parts == {"train"}}
    assert {record.subset for record in clean.records} == train


def test_same_seed_same_bytes(sample: tuple[DataSet, DataSet]) -> None:
    """Whatever part of the set is made."""
    scored, clean = sample
    some, other = (read_dataset("sample", None, seed=seed, limit=60) for seed in (0, 1))
    whole = {record.name: record for record in scored.records}
    assert 40 < len(some.records) <= 60
    assert all(whole[record.name] == record for record in some.records)
    assert read_dataset("sample", None, part="clean") == clean
    assert set(some.references) <= set(scored.references)
    assert set(other.references) <= set(scored.references)
    assert any(whole[record.name].recipe != record.recipe for record in other.records)


def test_ingested_like_any_other_set(sample: tuple[DataSet, DataSet], tmp_path: Path) -> None:
    for dataset in sample:
        directory = str(tmp_path / dataset.name)
        results = [write_shard(plan, directory) for plan in plan_shards(dataset)]
        manifest = publish(directory, dataset, results, max_bad=0.02)
        assert manifest.score_kind == dataset.score_kind
    images = publish(
        str(tmp_path / "sample"),
        sample[0],
        [write_shard(plan, str(tmp_path / "sample")) for plan in plan_shards(sample[0])],
        max_bad=0.02,
    ).images()
    columns = [images[name].to_pylist() for name in ("image_id", "group", "split")]
    split = official_split(*columns)
    assert min(len(split.train), len(split.val), len(split.test)) >= 100


def test_another_part_is_refused() -> None:
    with pytest.raises(DataError, match="part is 'dirty'"):
        read_dataset("sample", None, part="dirty")
    with pytest.raises(DataError, match="split is 'image'"):
        read_dataset("sample", None, split="image")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dri_iqa.data.sample.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs skimage.*\n.*dri-iqa\[sample\]"):
        build_sample()
