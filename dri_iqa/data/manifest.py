"""The manifest of an ingested data set, and reading single images by it.

The manifest names every shard and the table of all rows with their SHA-256, and carries a digest of
itself: whoever holds the digest knows every byte. It is written last, so a directory without one
is an ingest that has not finished. Reading goes from the table to a row group of a shard; nothing
is listed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.data.records import DataError, DataSet, ScoreKind
from dri_iqa.data.shards import (
    FORMAT,
    SCHEMA,
    Quarantined,
    ShardInfo,
    ShardResult,
    parquet_bytes,
    table_uri,
)

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"
PLACE = pa.schema([("shard", pa.int64()), ("row_group", pa.int64()), ("row", pa.int64())])
_METADATA = [name for name in SCHEMA.names if name != "bytes"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An ingested data set."""

    directory: str
    """URI that the names below are relative to; not part of the digest."""
    name: str
    score_kind: ScoreKind
    higher_is_better: bool
    licence: str
    notes: str
    counts: dict[str, int]
    """images, references, groups and quarantined rows."""
    shards: tuple[ShardInfo, ...]
    table_name: str
    table_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's content."""
        text = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, directory: str) -> Manifest:
        """The manifest of a directory.

        Raises:
            DataError: none there, another format, or its digest does not fit.
        """
        uri = storage.join(directory, MANIFEST)
        try:
            value = storage.read_json(uri)
        except FileNotFoundError:
            raise DataError(f"{uri} does not exist\nRun the ingest job first.") from None
        try:
            stored, version = value.pop("digest"), value.pop("format")
            if version != FORMAT:
                raise DataError(
                    f"{uri} has format {version}, expected {FORMAT}\nIngest the data again."
                )
            shards = tuple(ShardInfo(**item) for item in value.pop("shards"))
            manifest = cls(directory=directory, shards=shards, **value)
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{uri} is not a manifest: {error!r}\nIngest the data again.") from None
        if manifest.digest != stored:
            raise DataError(
                f"{uri} was changed: its digest is {manifest.digest[:12]}, stored is"
                f" {str(stored)[:12]}\nRestore it or ingest the data again."
            )
        return manifest

    def table(self) -> pa.Table:
        """All rows without image bytes, sorted by image id (columns of the shards plus their
        place).

        Raises:
            DataError: the table is missing or its digest does not fit.
        """
        return self._table

    @cached_property
    def _table(self) -> pa.Table:
        uri = storage.join(self.directory, self.table_name)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            raise DataError(f"{uri} is missing\nIngest the data again.") from None
        if hashlib.sha256(data).hexdigest() != self.table_sha256:
            raise DataError(f"{uri} was changed\nRestore it or ingest the data again.")
        return pq.read_table(io.BytesIO(data))

    def images(self) -> pa.Table:
        """Rows of the images proper, without references."""
        table = self.table()
        return table.filter(pc.equal(table["role"], "image"))  # pyright: ignore[reportAttributeAccessIssue]

    def quarantine(self) -> pa.Table:
        """The rows that were set aside: image_id, role, name, path, reason."""
        uri = storage.join(self.directory, QUARANTINE)
        return pq.read_table(io.BytesIO(storage.read_bytes(uri)))

    def _content(self) -> dict[str, Any]:
        value = asdict(self)
        del value["directory"]
        return value

    def save(self) -> None:
        """Write manifest.json with its digest."""
        value = self._content() | {"digest": self.digest, "format": FORMAT}
        storage.write_json(storage.join(self.directory, MANIFEST), value)


def publish(
    directory: str,
    dataset: DataSet,
    results: Sequence[ShardResult],
    *,
    max_bad: float = 0.01,
) -> Manifest:
    """Gather the written shards, look for duplicates over all of them, and write the manifest last.

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
    ordered = sorted(results, key=lambda result: result.info.name)
    filled = [result for result in ordered if result.info.rows]
    shards = tuple(result.info for result in filled)
    bad = [row for result in ordered for row in result.quarantined]
    pieces = [_metadata(directory, number, result) for number, result in enumerate(filled)]
    rows = [row for piece in pieces for row in piece.to_pylist()]
    rows.sort(key=lambda row: row["image_id"])
    listed = len(rows) + len(bad)
    rows = _without_orphans(_without_duplicates(rows, bad), bad)
    quarantine = storage.join(directory, QUARANTINE)
    storage.write_bytes(quarantine, parquet_bytes(_quarantine_table(bad)))
    if len(bad) > max_bad * listed or not any(row["role"] == "image" for row in rows):
        reasons: dict[str, int] = {}
        for row in bad:
            reason = row.reason.split(" (")[0].split(" of ")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        summary = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(
            f"{dataset.name}: {len(bad)} of {listed} rows cannot be used ({summary}), allowed are"
            f" {max_bad:.2%}\nSee {quarantine}; repair the files or raise data.max_bad."
        )
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=_table_schema()))
    digest = hashlib.sha256(data).hexdigest()
    table_name = f"table-{digest[:16]}.parquet"
    storage.write_bytes(storage.join(directory, table_name), data, verify=True)
    images = [row for row in rows if row["role"] == "image"]
    manifest = Manifest(
        directory=directory,
        name=dataset.name,
        score_kind=dataset.score_kind,
        higher_is_better=dataset.higher_is_better,
        licence=dataset.licence,
        notes=dataset.notes,
        counts={
            "images": len(images),
            "references": len(rows) - len(images),
            "groups": len({row["group"] for row in images}),
            "quarantined": len(bad),
        },
        shards=shards,
        table_name=table_name,
        table_sha256=digest,
    )
    manifest.save()
    _remove_stale(directory, manifest)
    return manifest


class ShardReader:
    """Single images of an ingested data set, by id.

    A shard's SHA-256 is checked when it is first read, and every image's SHA-256 against the table
    whenever it is fetched. The row groups read last are kept.

    Args:
        manifest: the data set.
        cache_bytes: how much encoded image data is kept.
        verify_shards: check whole shards; off, only the images that are read are checked (for data
            in a distant bucket of which each process reads a small part).

    Raises:
        DataError: on reading, a shard or an image that is missing or was changed, by name.
    """

    def __init__(
        self, manifest: Manifest, *, cache_bytes: int = 64 << 20, verify_shards: bool = True
    ) -> None:
        self.manifest = manifest
        self._ids = manifest.table()["image_id"].to_numpy()
        self._verify = verify_shards
        self._verified: set[int] = set()
        self._footers: dict[int, pq.FileMetaData] = {}
        self._cache: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0
        self._by_name: dict[str, int] | None = None

    def row(self, image_id: int) -> dict[str, Any]:
        """The table's row of an image.

        Raises:
            KeyError: no such image.
        """
        place = int(np.searchsorted(self._ids, image_id))
        if place == len(self._ids) or self._ids[place] != image_id:
            raise KeyError(f"{self.manifest.name} has no image {image_id}")
        return self.manifest.table().slice(place, 1).to_pylist()[0]

    def read(self, image_id: int) -> dict[str, Any]:
        """The table's row of an image and its encoded `bytes`."""
        row = self.row(image_id)
        data = self._group(row["shard"], row["row_group"])[row["row"]]
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            name = self.manifest.shards[row["shard"]].name
            raise DataError(
                f"{name}: the image {row['name']} was changed\nRestore the shard or ingest again."
            )
        row["bytes"] = data
        return row

    def read_reference(self, name: str) -> dict[str, Any]:
        """The row and `bytes` of a reference image by its name.

        Raises:
            KeyError: no such reference.
        """
        return self.read(self.reference_id(name))

    def reference_id(self, name: str) -> int:
        """Image id of a reference by its name."""
        if self._by_name is None:
            table = self.manifest.table().select(["image_id", "name", "role"]).to_pylist()
            self._by_name = {
                row["name"]: row["image_id"] for row in table if row["role"] == "reference"
            }
        return self._by_name[name]

    def _group(self, shard: int, number: int) -> list[bytes]:
        key = (shard, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        info = self.manifest.shards[shard]
        uri = storage.join(self.manifest.directory, info.name)
        if self._verify and shard not in self._verified:
            _check_shard(uri, info)
            self._verified.add(shard)

        def load(stream: pa.NativeFile) -> list[bytes]:
            parquet = pq.ParquetFile(stream, metadata=self._footers.get(shard))
            self._footers[shard] = parquet.metadata
            return parquet.read_row_group(number, columns=["bytes"])["bytes"].to_pylist()

        try:
            group = storage.with_file(uri, load)
        except (FileNotFoundError, pa.ArrowInvalid, IndexError) as error:
            raise _damaged(info.name, str(error).splitlines()[0]) from None
        self._cache[key] = group
        self._cached += sum(len(data) for data in group)
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached -= sum(len(data) for data in dropped)
        return group


@lru_cache(maxsize=8)
def open_reader(directory: str, digest: str) -> ShardReader:
    """This process's reader of a directory; workers call it for every task.

    Raises:
        DataError: the manifest there has another digest.
    """
    manifest = Manifest.load(directory)
    if manifest.digest != digest:
        raise DataError(
            f"{directory} holds the manifest {manifest.digest[:12]}, expected {digest[:12]}\n"
            "The data were ingested again since; start a new run."
        )
    return ShardReader(manifest)


def _check_shard(uri: str, info: ShardInfo) -> None:
    try:
        found = storage.sha256(uri)
    except FileNotFoundError:
        raise _damaged(info.name, "it is missing") from None
    if found != info.sha256:
        raise _damaged(info.name, f"its digest is {found[:12]}, expected {info.sha256[:12]}")


def _damaged(name: str, reason: str) -> DataError:
    return DataError(f"the shard {name} cannot be used: {reason}\nRestore it or ingest again.")


def _metadata(directory: str, number: int, result: ShardResult) -> pa.Table:
    info, uri = result.info, table_uri(directory, result.info.name)
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != result.table_sha256:
        raise DataError(f"{uri} was changed\nDelete it and ingest again.")
    table = pq.read_table(io.BytesIO(data))
    places = np.arange(table.num_rows)
    return (
        table.append_column("shard", pa.array(np.full(table.num_rows, number)))
        .append_column("row_group", pa.array(places // info.row_group_rows))
        .append_column("row", pa.array(places % info.row_group_rows))
    )


def _table_schema() -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in _METADATA] + list(PLACE))


def _quarantine_table(rows: Sequence[Quarantined]) -> pa.Table:
    names = ("role", "name", "path", "reason")
    schema = pa.schema([("image_id", pa.int64()), *((name, pa.string()) for name in names)])
    ordered = sorted(rows, key=lambda row: row.image_id)
    return pa.Table.from_pylist([asdict(row) for row in ordered], schema=schema)


def _set_aside(row: dict[str, Any], reason: str) -> Quarantined:
    return Quarantined(
        image_id=row["image_id"], role=row["role"], name=row["name"], path=None, reason=reason
    )


def _without_duplicates(rows: list[dict[str, Any]], bad: list[Quarantined]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    seen: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["role"] == "reference":
            kept.append(row)
            continue
        twins = seen.setdefault(row["sha256"], [])
        own = (row["group"], row["type"], row["level"])
        legitimate = row["type"] is not None and all(
            twin["group"] == row["group"] and (twin["group"], twin["type"], twin["level"]) != own
            for twin in twins
        )
        if twins and not legitimate:
            bad.append(_set_aside(row, f"duplicate of {twins[0]['name']}"))
        else:
            twins.append(row)
            kept.append(row)
    return kept


def _without_orphans(rows: list[dict[str, Any]], bad: list[Quarantined]) -> list[dict[str, Any]]:
    there = {row["name"] for row in rows if row["role"] == "reference"}
    kept: list[dict[str, Any]] = []
    for row in rows:
        if row["reference"] is not None and row["reference"] not in there:
            bad.append(_set_aside(row, f"its reference {row['reference']} is set aside"))
        else:
            kept.append(row)
    return kept


def _remove_stale(directory: str, manifest: Manifest) -> None:
    """Shards and tables of an earlier ingest into the same directory."""
    named = {info.name for info in manifest.shards} | {manifest.table_name}
    for uri in storage.list_files(directory, recursive=False, suffix=".parquet"):
        name = uri.rsplit("/", 1)[-1]
        if name.startswith(("shard-", "table-")) and name not in named:
            storage.delete(uri)
