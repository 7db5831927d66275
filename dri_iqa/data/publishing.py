"""The end of an ingest: duplicates over all shards are set aside, and the manifest is written last.

Pages pass through one after the other; of each image eight bytes of its digest stay, and of each group eight.

Shape suffixes: N the rows of a page.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dri_iqa import storage
from dri_iqa.ahead import ahead
from dri_iqa.data.manifest import QUARANTINE, Manifest, read_page
from dri_iqa.data.records import DataError, DataSet
from dri_iqa.data.shards import PARTS, Quarantined, ShardInfo, ShardResult, parquet_bytes

KEPT = "-kept-"
"""In the names of pages that were written again without some of their rows."""


def publish(
    directory: str,
    dataset: DataSet,
    results: Sequence[ShardResult],
    *,
    max_bad: float = 0.01,
) -> Manifest:
    """Look for duplicates over all written shards, and write the manifest last.

    Byte-identical images are set aside but for the first; the exception are images of one group
    that differ in distortion type or level, because a level of a synthetic set may leave an image
    as it is. Images whose reference was set aside are set aside too.

    Args:
        directory: URI of the shards.
        dataset: what they were made from.
        results: of every plan, in any order.
        max_bad: largest share of rows that may be set aside.

    Raises:
        DataError: more were set aside (the message names the table with the reasons), or nothing is
            left.
    """
    ordered = sorted(results, key=lambda result: result.info.first_id)
    filled = [result.info for result in ordered if result.info.rows]
    bad = [row for result in ordered for row in result.quarantined]
    listed = sum(info.rows for info in filled) + len(bad)
    sieve = _Sieve(
        repeated=_repeated(directory, filled),
        lost={row.name for row in bad if row.role == "reference"},
        bad=bad,
    )
    shards = [_sifted(directory, info, page, sieve) for info, page in _pages(directory, filled)]
    quarantine = storage.join(directory, QUARANTINE)
    storage.write_bytes(quarantine, parquet_bytes(_quarantine_table(bad)))
    if len(bad) > max_bad * listed or not sieve.images:
        reasons = Counter(row.reason.split(" (")[0].split(" of ")[0] for row in bad)
        summary = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(
            f"{dataset.name}: {len(bad)} of {listed} rows cannot be used ({summary}), allowed are"
            f" {max_bad:.2%}\nSee {quarantine}; repair the files or raise data.max_bad."
        )
    manifest = Manifest(
        directory=directory,
        name=dataset.name,
        score_kind=dataset.score_kind,
        higher_is_better=dataset.higher_is_better,
        licence=dataset.licence,
        notes=dataset.notes,
        counts={
            "images": sieve.images,
            "references": sieve.references,
            "groups": len(np.unique(np.concatenate(sieve.groups))),
            "quarantined": len(bad),
        },
        shards=tuple(info for info in shards if info.rows),
    )
    manifest.save()
    _remove_stale(directory, manifest)
    return manifest


@dataclass(kw_only=True)
class _Sieve:
    """What decides which rows stay, and what was counted of those that did."""

    repeated: np.ndarray
    """Digests (their first eight bytes) that more than one image has, sorted."""
    lost: set[str]
    """References that were set aside."""
    bad: list[Quarantined]
    seen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The images that stayed, by digest, of those that are repeated."""
    groups: list[np.ndarray] = field(default_factory=list)
    """Hashes of the groups of each page, to count them."""
    images: int = 0
    references: int = 0

    def keeps(self, page: pa.Table) -> np.ndarray:
        """Which rows of the next page stay; counts them, and notes the others."""
        image_N = _is_image(page)
        doubtful_N = image_N & np.isin(_digests(page), self.repeated)
        if self.lost:
            doubtful_N |= image_N & np.isin(_column(page, "reference"), list(self.lost))
        kept_N = np.ones(page.num_rows, dtype=bool)
        for place in np.flatnonzero(doubtful_N):
            row = page.slice(place, 1).to_pylist()[0]
            if reason := self._reason(row):
                kept_N[place] = False
                self.bad.append(_set_aside(row, reason))
        self.images += int((image_N & kept_N).sum())
        self.references += int((~image_N & kept_N).sum())
        groups = {hash(group) for group in _column(page, "group")[image_N & kept_N]}
        self.groups.append(np.fromiter(groups, dtype=np.int64, count=len(groups)))
        return kept_N

    def _reason(self, row: dict[str, Any]) -> str | None:
        twins = self.seen.setdefault(row["sha256"], [])
        own = (row["group"], row["type"], row["level"])
        legitimate = row["type"] is not None and all(
            twin["group"] == row["group"] and (twin["group"], twin["type"], twin["level"]) != own
            for twin in twins
        )
        if twins and not legitimate:
            return f"duplicate of {twins[0]['name']}"
        twins.append(row)
        if row["reference"] in self.lost:
            return f"its reference {row['reference']} is set aside"
        return None


def _sifted(directory: str, info: ShardInfo, page: pa.Table, sieve: _Sieve) -> ShardInfo:
    """The shard as the manifest names it: where rows are set aside, with a page that lacks them."""
    kept_N = sieve.keeps(page)
    if kept_N.all():
        return info
    page = page.filter(pa.array(kept_N))
    data = parquet_bytes(page)
    digest = hashlib.sha256(data).hexdigest()
    name = f"{info.page.removesuffix('.parquet')}{KEPT}{digest[:16]}.parquet"
    storage.write_bytes(storage.join(directory, name), data)
    first = page["image_id"][0].as_py() if page.num_rows else info.first_id
    return replace(info, rows=page.num_rows, first_id=first, page=name, page_sha256=digest)


def _repeated(directory: str, shards: Sequence[ShardInfo]) -> np.ndarray:
    found = [_digests(page)[_is_image(page)] for _, page in _pages(directory, shards)]
    digests, counts = np.unique(
        np.concatenate([*found, np.array([], np.uint64)]), return_counts=True
    )
    return digests[counts > 1]


def _pages(directory: str, shards: Sequence[ShardInfo]) -> Iterator[tuple[ShardInfo, pa.Table]]:
    for info, page in ahead(lambda info: read_page(directory, info), shards):
        yield info, page()


def _is_image(page: pa.Table) -> np.ndarray:
    return _column(page, "role") == "image"


def _digests(page: pa.Table) -> np.ndarray:
    return np.array([int(text[:16], 16) for text in page["sha256"].to_pylist()], dtype=np.uint64)


def _column(page: pa.Table, name: str) -> np.ndarray:
    return page[name].to_pandas().to_numpy(dtype=object)


def _quarantine_table(rows: Sequence[Quarantined]) -> pa.Table:
    names = ("role", "name", "path", "reason")
    schema = pa.schema([("image_id", pa.int64()), *((name, pa.string()) for name in names)])
    ordered = sorted(rows, key=lambda row: row.image_id)
    return pa.Table.from_pylist([asdict(row) for row in ordered], schema=schema)


def _set_aside(row: dict[str, Any], reason: str) -> Quarantined:
    return Quarantined(
        image_id=row["image_id"], role=row["role"], name=row["name"], path=None, reason=reason
    )


def _remove_stale(directory: str, manifest: Manifest) -> None:
    """Shards and pages of an earlier ingest into the same directory."""
    named = {info.name for info in manifest.shards} | {info.page for info in manifest.shards}
    for below, stale in (("", "shard-"), (PARTS, KEPT)):
        folder = storage.join(directory, below)
        for uri in storage.list_files(folder, recursive=False, suffix=".parquet"):
            name = storage.join(below, uri.rsplit("/", 1)[-1]).strip("/")
            if stale in name and name not in named:
                storage.delete(uri)
