"""From records to Parquet shards: what is written, in which shard, and what is set aside.

Planning is cheap and central, writing is a pure function of one plan that any worker can run: the
same plan gives the same bytes, and a shard that an interrupted ingest finished is not written
again. Image bytes are stored as they were encoded, unless a pristine image is cut into sub-images
or a data set's protocol shrinks it; those become PNG.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.ahead import ahead
from dri_iqa.data.cutting import encoded_parts
from dri_iqa.data.records import DataError, DataSet, Record
from dri_iqa.images import ImageError, probe
from dri_iqa.seeds import Purpose, generator

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("role", pa.string(), nullable=False),  # image or reference
        pa.field("name", pa.string(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("group", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("type", pa.string()),
        pa.field("level", pa.int64()),
        pa.field("recipe", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
PLACE = pa.schema([("offset", pa.int64()), ("length", pa.int64())])
"""Where an image's encoded bytes lie in the shard's file."""
PAGE = pa.schema([field for field in SCHEMA if field.name != "bytes"] + list(PLACE))
"""A page: the rows of one shard without their bytes."""
PARTS = "parts"
"""Directory of the receipts and the pages of single shards."""
TILES = 4096
"""Ids reserved for the sub-images of one image where images are cut."""
ROW_GROUP_ROWS = 64
"""Rows that are put together and written as one row group; single images are read by their place in the file."""
FORMAT = 2
"""Version of the layout; part of every plan's digest."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to write: plain data that travels to a worker."""

    name: str
    dataset: str
    root: str | None
    rows: tuple[tuple[int, str, Record], ...]
    """(image id, role, record) in the order of writing."""
    scored: bool
    """Whether a row without a finite score is set aside."""
    cut: int | None
    """Side of sub-images in pixels, or None."""
    short_side: int | None
    """Short side that larger images are shrunk to, or None."""
    min_side: int
    """Images with a smaller side are set aside."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the shard's bytes, as far as a listing can tell."""
        rows = []
        for image_id, role, record in self.rows:
            values = dict(vars(record))
            if record.data is not None:
                values["data"] = hashlib.sha256(record.data).hexdigest()
            rows.append((image_id, role, values))
        value = vars(self) | {"rows": rows, "format": FORMAT}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """A written shard as the manifest names it."""

    name: str
    rows: int
    """Rows of its page, which are all that may be used."""
    size: int
    """Bytes of its file."""
    sha256: str
    first_id: int
    """Of its page; ids ascend in a page and from shard to shard."""
    page: str
    """Its page's file below the manifest's directory."""
    page_sha256: str


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A row that was set aside."""

    image_id: int
    role: str
    name: str
    path: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What writing one shard gave."""

    info: ShardInfo
    quarantined: tuple[Quarantined, ...] = ()
    resumed: bool = field(default=False, compare=False)
    """True where an earlier ingest had written it already."""


def plan_shards(
    dataset: DataSet,
    rows_per_shard: int = 512,
    *,
    shard_bytes: int = 96 << 20,
    cut: int | None = None,
    min_side: int = 32,
    seed: int = 0,
) -> list[ShardPlan]:
    """Deal a data set's records, and then its references, to shards.

    Scored sets keep their order; clean images are shuffled by the seed, those of a group together,
    so that few neighbours in a shard have anything in common and a group's rows are neighbours.
    Ids count in the resulting order (times `TILES` where images are cut), whatever is set aside:
    an id leads to its shard without a table of all of them.

    Args:
        dataset: records and references.
        rows_per_shard: most records of one shard.
        shard_bytes: a shard is closed before its files exceed this, as far as sizes are known.
        cut: side in pixels of the sub-images that unscored images are cut into; None keeps them
        whole. min_side: images with a smaller side are set aside.
        seed: of the shuffle.

    Raises:
        DataError: a number below 1.
    """
    for key, value in {
        "rows_per_shard": rows_per_shard,
        "shard_bytes": shard_bytes,
        "min_side": min_side,
        "cut": 1 if cut is None else cut,
    }.items():
        if value < 1:
            raise DataError(f"{key} is {value}\nUse a number of at least 1.")
    scored = dataset.score_kind != "none"
    cut = None if scored else cut
    step = TILES if cut else 1
    records = dataset.records if scored else _shuffled(dataset.records, seed)
    images = [(place * step, "image", record) for place, record in enumerate(records)]
    first = len(dataset.records) * step
    rows = images + [
        (first + place, "reference", record) for place, record in enumerate(dataset.references)
    ]
    parts: list[list[tuple[int, str, Record]]] = [[]]
    weight = 0
    for row in rows:
        cost = len(row[2].data) if row[2].data is not None else row[2].size or 0
        if parts[-1] and (len(parts[-1]) >= rows_per_shard or weight + cost > shard_bytes):
            parts.append([])
            weight = 0
        parts[-1].append(row)
        weight += cost
    return [
        ShardPlan(
            name=f"shard-{number:05d}.parquet",
            dataset=dataset.name,
            root=dataset.root,
            rows=tuple(part),
            scored=scored,
            cut=cut,
            short_side=dataset.short_side,
            min_side=min_side,
        )
        for number, part in enumerate(parts)
        if part
    ]


def write_shard(plan: ShardPlan, directory: str) -> ShardResult:
    """Read, check and write the rows of one plan; a pure function of the plan and the files.

    A row is set aside, with the reason, where its file is missing, empty, no image, truncated,
    corrupt, a decompression bomb or too small, or its score is missing. Beside the shard lies a
    small record of the result; where that fits the plan and the shard is still there, nothing is
    done.

    Args:
        plan: one item of `plan_shards`.
        directory: URI of the shards.

    Raises:
        StorageError: the source kept failing, or the directory cannot be written.
    """
    target = storage.join(directory, plan.name)
    receipt = storage.join(directory, PARTS, plan.name.replace(".parquet", ".json"))
    plan_digest = plan.digest
    if done := _resume(plan_digest, directory, target, receipt):
        return done
    quarantined: list[Quarantined] = []
    sink = pa.BufferOutputStream()
    pages, images = [PAGE.empty_table().drop_columns(PLACE.names)], []
    # Bytes are stored as they are, so that they can be read by their place in the file.
    with pq.ParquetWriter(
        sink, SCHEMA, use_dictionary=False, compression="none", write_statistics=False
    ) as writer:
        rows = _rows(plan, quarantined)
        while some := list(itertools.islice(rows, ROW_GROUP_ROWS)):
            table = pa.Table.from_pylist(some, schema=SCHEMA)
            writer.write_table(table)
            pages.append(table.drop_columns("bytes"))
            images += [row["bytes"] for row in some]
    data = sink.getvalue().to_pybytes() if images else b""
    page = pa.concat_tables(pages)
    for name, values in zip(PLACE.names, _places(data, images), strict=True):
        page = page.append_column(PLACE.field(name), pa.array(values, pa.int64()))
    page_data = parquet_bytes(page)
    info = ShardInfo(
        name=plan.name,
        rows=len(images),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        first_id=page["image_id"][0].as_py() if images else -1,
        page=f"{PARTS}/{plan.name}",
        page_sha256=hashlib.sha256(page_data).hexdigest(),
    )
    if images:
        storage.write_bytes(target, data, verify=True)
    storage.write_bytes(storage.join(directory, info.page), page_data)
    storage.write_json(
        receipt,
        {
            "plan": plan_digest,
            "info": asdict(info),
            "quarantined": [asdict(row) for row in quarantined],
        },
    )
    return ShardResult(info=info, quarantined=tuple(quarantined))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _resume(plan_digest: str, directory: str, target: str, receipt: str) -> ShardResult | None:
    try:
        stored = storage.read_json(receipt)
        if stored["plan"] != plan_digest:
            return None
        info = ShardInfo(**stored["info"])
        if not storage.exists(storage.join(directory, info.page)):
            return None
        rows = tuple(Quarantined(**row) for row in stored["quarantined"])
    except (FileNotFoundError, storage.StorageError, KeyError, TypeError):
        return None
    if info.rows and storage.size(target) != info.size:
        return None
    return ShardResult(info=info, quarantined=rows, resumed=True)


def _shuffled(records: Sequence[Record], seed: int) -> list[Record]:
    """Clean images in a seeded order of their groups."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group or record.name, []).append(record)
    order = generator(seed, Purpose.SHARDS).permutation(len(groups))
    members = list(groups.values())
    return [record for place in order for record in members[place]]


def _places(data: bytes, images: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Offset and length of the images in a shard's file, where they lie in this order."""
    offsets, end = [], 0
    for image in images:
        head = len(image).to_bytes(4, "little") + image[:64]  # as Parquet writes a plain value
        while True:
            start = data.index(head, end) + 4
            if data.startswith(image, start):
                break
            end = start
        offsets.append(start)
        end = start + len(image)
    return offsets, [len(image) for image in images]


def _rows(plan: ShardPlan, quarantined: list[Quarantined]) -> Iterator[dict[str, Any]]:
    for (image_id, role, record), source in _sources(plan):
        try:
            if plan.scored and role == "image":
                _check_score(record)
            data = source()
            height, width = probe(data)
            _check_zeroed(data)
            if min(height, width) < plan.min_side:
                raise ImageError(f"too small ({width}x{height}, at least {plan.min_side})")
            cut = plan.cut if role == "image" else None
            parts = encoded_parts(data, height, width, cut=cut, short_side=plan.short_side)
            if len(parts) > TILES:
                raise ImageError(f"too many sub-images ({len(parts)})")
        except (ImageError, FileNotFoundError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else str(error)
            quarantined.append(
                Quarantined(
                    image_id=image_id,
                    role=role,
                    name=record.name,
                    path=record.path,
                    reason=reason,
                )
            )
            continue
        for number, (part, shape) in enumerate(parts):
            yield {
                "image_id": image_id + number,
                "role": role,
                "name": record.name if len(parts) == 1 else f"{record.name}#{number}",
                "bytes": part,
                "score": None if record.score is None else float(record.score),
                "group": record.group or record.name,
                "reference": record.reference,
                "type": record.type,
                "level": record.level,
                "recipe": record.recipe,
                "subset": record.subset,
                "split": record.split,
                "width": shape[1],
                "height": shape[0],
                "sha256": hashlib.sha256(part).hexdigest(),
            }


def _check_score(record: Record) -> None:
    if record.score is None or not math.isfinite(record.score):
        raise ImageError("no score" if record.score is None else f"score is {record.score}")


def _sources(
    plan: ShardPlan,
) -> Iterator[tuple[tuple[int, str, Record], Callable[[], bytes]]]:
    """Every row and what gives its bytes; from a bucket some are fetched ahead, for their latency."""
    if plan.root is None or not storage.is_remote(plan.root):
        for row in plan.rows:
            yield row, partial(_source, plan, row[2])
        return
    yield from ahead(lambda row: _source(plan, row[2]), plan.rows)


def _source(plan: ShardPlan, record: Record) -> bytes:
    if record.data is not None:
        return record.data
    if record.path is None or plan.root is None:
        raise FileNotFoundError(record.name)
    return storage.read_bytes(storage.join(plan.root, record.path))


def _check_zeroed(data: bytes) -> None:
    """A JPEG with a stretch of zeros (a copy that was cut off) decodes to grey in silence."""
    if not data.startswith(b"\xff\xd8"):
        return
    length = max(1024, len(data) // 50)
    if data.find(bytes(length), data.find(b"\xff\xda")) >= 0:
        raise ImageError(f"corrupt (more than {length} zero bytes inside)")
