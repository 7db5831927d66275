"""A part of a data set that keeps groups whole."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from dri_iqa.data.records import DataError, DataSet, Record
from dri_iqa.seeds import Purpose, generator


def take(dataset: DataSet, limit: int | None, seed: int = 0) -> DataSet:
    """A part of a data set with at most `limit` images, in whole groups (see `read_dataset`).

    Raises:
        DataError: the limit is below 1 or smaller than every group.
    """
    if limit is None or limit >= len(dataset.records):
        return dataset
    members: dict[str, list[Record]] = defaultdict(list)
    for record in dataset.records:
        members[record.group].append(record)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group in sorted(members):
        first = members[group][0]
        strata[first.subset or "", first.split or ""].append(group)
    # Each stratum's shuffled groups are laid out evenly over (0, 1): any prefix of the merged order
    # holds every stratum in proportion.
    order: list[tuple[float, str]] = []
    for number, key in enumerate(sorted(strata)):
        rng = generator(seed, Purpose.LIMIT, number)
        groups = [strata[key][index] for index in rng.permutation(len(strata[key]))]
        order += [((place + 0.5) / len(groups), group) for place, group in enumerate(groups)]
    chosen: set[str] = set()
    count = 0
    for _, group in sorted(order):
        if count + len(members[group]) <= limit:
            chosen.add(group)
            count += len(members[group])
    if not chosen:
        smallest = min(len(group) for group in members.values())
        raise DataError(
            f"{dataset.name}: a limit of {limit} images keeps no whole group\n"
            f"Set data.limit to at least {smallest}."
        )
    records = tuple(record for record in dataset.records if record.group in chosen)
    used = {record.reference for record in records}
    references = tuple(record for record in dataset.references if record.name in used)
    return dataclasses.replace(dataset, records=records, references=references)
