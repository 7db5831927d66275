"""Splits: whole groups, reproducible, stored with a digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from dri_iqa import storage
from dri_iqa.data.records import DataError
from dri_iqa.data.splits import (
    Split,
    check_disjoint,
    load_splits,
    make_splits,
    official_split,
    save_splits,
)

IDS = list(range(1000))
GROUPS = [f"ref{number % 81:02d}" for number in IDS]


def test_parts_are_whole_groups_of_the_published_sizes() -> None:
    split = make_splits(IDS, GROUPS, seed=0, val=0.0)
    of = {part: {GROUPS[i] for i in getattr(split, part)} for part in ("train", "val", "test")}
    assert (len(of["train"]), len(of["test"])) == (64, 17)  # KADID-10k, MANIQA's counting
    assert not of["train"] & of["test"]
    assert sorted(split.train + split.test) == IDS
    with_val = make_splits(IDS, GROUPS, seed=0, val=0.1)
    assert len({GROUPS[i] for i in with_val.val}) == 6
    assert with_val.test == split.test, "validation is taken out of training, not out of test"


def test_a_split_depends_on_seed_and_number_only() -> None:
    split = make_splits(IDS, GROUPS, seed=3, index=1)
    shuffled = IDS[::-1]
    assert make_splits(shuffled, [GROUPS[i] for i in shuffled], seed=3, index=1) == split
    assert make_splits(IDS, GROUPS, seed=3, index=2).test != split.test
    assert make_splits(IDS, GROUPS, seed=4, index=1).test != split.test


def test_too_few_groups() -> None:
    with pytest.raises(DataError, match="2 groups cannot be split") as caught:
        make_splits([0, 1], ["a", "b"], seed=0)
    assert len(str(caught.value).splitlines()) == 2


def test_stored_with_a_digest(tmp_path: Path) -> None:
    uri = str(tmp_path / "splits.json")
    splits = [make_splits(IDS, GROUPS, seed=0, index=number) for number in range(3)]
    save_splits(uri, splits)
    assert load_splits(uri) == splits
    value = storage.read_json(uri)
    value[1]["train"].pop()
    storage.write_json(uri, value)
    with pytest.raises(DataError, match="split 1' was changed"):
        load_splits(uri)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            Split(source="x", train=(0,), val=(), test=(81,)),
            "group ref00 is in both train and test",
        ),
        (Split(source="x", train=(0, 0), val=(), test=()), "image 0 is in the split twice"),
        (Split(source="x", train=(5000,), val=(), test=()), "which is not in the data"),
    ],
)
def test_overlap_is_an_error(split: Split, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_disjoint(split, dict(zip(IDS, GROUPS, strict=True)))


def test_official_split() -> None:
    split = official_split([4, 2, 9, 7], ["a", "a", "b", "c"], ["train", "train", "test", None])
    assert (split.train, split.val, split.test) == ((2, 4), (), (9,))
    with pytest.raises(DataError, match="no split of its own"):
        official_split([1], ["a"], [None])
    with pytest.raises(DataError, match="both train and test"):
        official_split([1, 2], ["a", "a"], ["train", "test"])


def test_an_official_split_without_validation_gets_one_from_its_training_groups() -> None:
    groups = [f"g{number // 4}" for number in range(100)]
    parts = ["train" if number < 80 else "test" for number in range(100)]
    split = official_split(range(100), groups, parts, seed=1, val=0.1)
    assert split.test == tuple(range(80, 100))
    assert sorted(split.train + split.val) == list(range(80))
    assert len({groups[i] for i in split.val}) == 2
    check_disjoint(split, dict(enumerate(groups)))
    assert split == official_split(range(100), groups, parts, seed=1, val=0.1)
    assert split != official_split(range(100), groups, parts, seed=2, val=0.1)
