"""Splits by reference or scene: seeded, stored as data with a digest, overlap is an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dri_iqa import storage
from dri_iqa.data.records import DataError
from dri_iqa.seeds import Purpose, generator

PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which images train, validate and test; ids are sorted."""

    source: str
    """How it came about, e.g. `seed 0, split 3` or `official`."""
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the three lists of ids."""
        value = {part: getattr(self, part) for part in PARTS}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with its digest."""
        lists = {part: list(getattr(self, part)) for part in PARTS}
        return {"source": self.source, "digest": self.digest, **lists}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Split:
        """A split from its JSON form.

        Raises:
            DataError: a field is missing or the digest does not fit the lists.
        """
        try:
            lists = {part: tuple(int(item) for item in value[part]) for part in PARTS}
            split = cls(source=str(value["source"]), **lists)
            stored = value["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a split: {error!r}\nMake the split again.") from None
        if split.digest != stored:
            raise DataError(
                f"the split {split.source!r} was changed: its digest is {split.digest[:12]}, stored"
                f" is {str(stored)[:12]}\nRestore the file or make the split again."
            )
        return split


def make_splits(
    ids: Sequence[int],
    groups: Sequence[str],
    *,
    seed: int,
    index: int = 0,
    train: float = 0.8,
    val: float = 0.1,
) -> Split:
    """A random split of whole groups: the protocol of the paper (4.2) with a validation part.

    The names of the groups are sorted before they are shuffled, so the order in which files were
    found plays no part. floor(train * n) groups are for training and validation, as MANIQA's code
    counts them; of these, max(1, round(val * n_train)) validate.

    Args:
        ids: image ids.
        groups: reference or scene of each of them.
        seed: base seed.
        index: number of the split; each has a generator of its own.
        train: share of groups that are not tested on.
        val: share of those that validate; 0 for none (the paper's protocol).

    Raises:
        DataError: too few groups for the parts wanted.
    """
    names = sorted(set(groups))
    rng = generator(seed, Purpose.SPLIT, index)
    order = [names[place] for place in rng.permutation(len(names))]
    n_train = int(train * len(names) + 1e-9)
    n_val = max(1, round(val * n_train)) if val > 0 else 0
    if n_train - n_val < 1 or len(names) - n_train < 1:
        raise DataError(
            f"{len(names)} groups cannot be split into train {train:.0%} (of it {val:.0%} val) and"
            " test\nUse more references or scenes (a larger data.limit), or other fractions."
        )
    place = dict.fromkeys(order[:n_val], "val") | dict.fromkeys(order[n_val:n_train], "train")
    parts = [place.get(group, "test") for group in groups]
    return _build(f"seed {seed}, split {index}", ids, groups, parts)


def official_split(
    ids: Sequence[int],
    groups: Sequence[str],
    parts: Sequence[str | None],
    *,
    seed: int = 0,
    val: float = 0.0,
) -> Split:
    """The split that the data set itself names (or the built-in sample's); unnamed rows are left
    out.

    Args:
        ids: image ids.
        groups: reference or scene of each of them.
        parts: train, val, test or None of each of them.
        seed: of the draw of a validation part.
        val: where the data set names none, the share of its training groups that validate.

    Raises:
        DataError: no row is for training or none for testing, or a group lies in two parts.
    """
    if not {"train", "test"} <= set(parts):
        raise DataError("the data set has no split of its own\nUse a seeded split instead.")
    split = _build("official", ids, groups, parts)
    if split.val or not val:
        return split
    training = [
        (i, group) for i, group, part in zip(ids, groups, parts, strict=True) if part == "train"
    ]
    inner = make_splits(
        [i for i, _ in training], [group for _, group in training], seed=seed, train=1 - val, val=0
    )
    return Split(
        source=f"official, validation drawn with seed {seed}",
        train=inner.train,
        val=inner.test,
        test=split.test,
    )


def check_disjoint(split: Split, groups: Mapping[int, str]) -> None:
    """Refuse a split whose parts share an image or a group.

    Args:
        split: the split.
        groups: group of every image id.

    Raises:
        DataError: an overlap (named), or an id that is not in `groups`.
    """
    owner: dict[str, str] = {}
    seen: set[int] = set()
    for part in PARTS:
        for image_id in getattr(split, part):
            if image_id not in groups:
                raise DataError(
                    f"{part} of the split {split.source!r} names image {image_id}, which is not in"
                    " the data\nMake the split again for this manifest."
                )
            if image_id in seen:
                raise DataError(f"image {image_id} is in the split twice\nMake the split again.")
            seen.add(image_id)
            before = owner.setdefault(groups[image_id], part)
            if before != part:
                raise DataError(
                    f"group {groups[image_id]} is in both {before} and {part} of the split"
                    f" {split.source!r}\nSplit by reference or scene: use a seeded split."
                )


def save_splits(uri: str, splits: Sequence[Split]) -> None:
    """Store splits as JSON."""
    storage.write_json(uri, [split.to_dict() for split in splits])


def load_splits(uri: str) -> list[Split]:
    """Splits from JSON.

    Raises:
        DataError: a digest does not fit.
    """
    return [Split.from_dict(value) for value in storage.read_json(uri)]


def _build(
    source: str, ids: Sequence[int], groups: Sequence[str], parts: Sequence[str | None]
) -> Split:
    lists: dict[str, list[int]] = {part: [] for part in PARTS}
    for image_id, part in zip(ids, parts, strict=True):
        if part is None:
            continue
        lists[part].append(int(image_id))
    split = Split(source=source, **{part: tuple(sorted(lists[part])) for part in PARTS})
    check_disjoint(split, dict(zip((int(item) for item in ids), groups, strict=True)))
    return split
