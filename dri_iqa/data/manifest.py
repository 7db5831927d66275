"""The manifest of an ingested data set, and reading single images by it.

The manifest names every shard and its page (the shard's rows without bytes) with their SHA-256, and carries a digest of
itself: whoever holds the digest knows every byte. It is written last, so a directory without one is an ingest that has
not finished. Reading goes from an id to its page to the place of its bytes; nothing is listed, and what a process holds
does not grow with the number of images but for one line a shard.

Shape suffixes: N places or ids.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dri_iqa import storage
from dri_iqa.ahead import ahead
from dri_iqa.data.records import DataError, ScoreKind
from dri_iqa.data.shards import FORMAT, ShardInfo

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"
FETCHES = 16
"""Requests that a reader has under way at an object store, whose answers take tens of milliseconds each."""


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
    """In the order of their ids; images come before references."""

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

    def pages(self) -> Iterator[pa.Table]:
        """The rows of one shard after the other, see `read_page`."""
        for _, page in ahead(lambda info: read_page(self.directory, info), self.shards):
            yield page()

    def table(self) -> pa.Table:
        """All rows without image bytes, in the order of their ids: for sets that people have scored. What clean sets
        are read for goes from page to page.

        Raises:
            DataError: a page is missing or its digest does not fit.
        """
        return self._table

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables(self.pages()).combine_chunks()

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


def read_page(directory: str, info: ShardInfo) -> pa.Table:
    """The rows of a shard without image bytes: its columns, and each image's place in its file.

    Raises:
        DataError: the page is missing or its digest does not fit.
    """
    uri = storage.join(directory, info.page)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise DataError(f"{uri} is missing\nRestore it or ingest the data again.") from None
    if hashlib.sha256(data).hexdigest() != info.page_sha256:
        raise DataError(f"{uri} was changed\nRestore it or ingest the data again.")
    return pq.read_table(io.BytesIO(data))


class ShardReader:
    """Single images of an ingested data set, by id.

    Pages are checked against the manifest, and images against their page. The pages and images read last are kept.

    Args:
        manifest: the data set.
        cache_bytes: how much encoded image data is kept.
        cache_rows: how many rows of pages are kept.

    Raises:
        DataError: on reading, a page or an image that is missing or was changed, by name.
    """

    def __init__(
        self, manifest: Manifest, *, cache_bytes: int = 64 << 20, cache_rows: int = 1 << 16
    ) -> None:
        self.manifest = manifest
        self._first_ids = np.array([info.first_id for info in manifest.shards], dtype=np.int64)
        self._ends = np.cumsum([info.rows for info in manifest.shards], dtype=np.int64)
        self._pages: OrderedDict[int, pa.Table] = OrderedDict()
        self._page_rows, self._cache_rows = 0, cache_rows
        self._images: OrderedDict[int, bytes] = OrderedDict()
        self._image_bytes, self._cache_bytes = 0, cache_bytes
        self._by_name: dict[str, int] | None = None
        self._remote = storage.is_remote(manifest.directory)
        self._coming: dict[int, Future[bytes]] = {}

    def ids_at(self, place_N: np.ndarray) -> list[int]:
        """Image ids by their place in the ascending order of all ids; the images proper come first."""
        self._expect_pages(np.searchsorted(self._ends, place_N, side="right"))
        return [self._at(place, "image_id") for place in place_N.tolist()]

    def row(self, image_id: int) -> dict[str, Any]:
        """The page's row of an image.

        Raises:
            KeyError: no such image.
        """
        return self._row(image_id)[1]

    def read(self, image_id: int) -> dict[str, Any]:
        """The page's row of an image and its encoded `bytes`."""
        shard, row = self._row(image_id)
        coming = self._coming.pop(image_id, None)
        if image_id in self._images:
            self._images.move_to_end(image_id)
        else:
            self._images[image_id] = coming.result() if coming else self._fetch(shard, row)
            self._image_bytes += row["length"]
            while self._image_bytes > self._cache_bytes and len(self._images) > 1:
                _, dropped = self._images.popitem(last=False)
                self._image_bytes -= len(dropped)
        return row | {"bytes": self._images[image_id]}

    def expect(self, image_ids: Iterable[int]) -> None:
        """Begin to fetch what is about to be read, several images at a time, so that their answers are waited for once.

        Does nothing where the data set is local. What was expected before and has not been read is given up.
        """
        if not self._remote:
            return
        wanted = dict.fromkeys(image_ids)
        for image_id in [image_id for image_id in self._coming if image_id not in wanted]:
            self._coming.pop(image_id).cancel()
        places = np.searchsorted(self._first_ids, np.array(list(wanted), dtype=np.int64), "right")
        self._expect_pages(np.maximum(places - 1, 0))
        for image_id in wanted:
            self._begin(image_id)

    def read_each(self, image_ids: Iterable[int]) -> Iterator[dict[str, Any]]:
        """What `read` gives of each image, in order; an object store is asked for the next few meanwhile."""
        waiting: deque[int] = deque()
        for image_id in image_ids:
            waiting.append(image_id)
            if self._remote:
                self._begin(image_id)
            if len(waiting) == (FETCHES if self._remote else 1):
                yield self.read(waiting.popleft())
        yield from map(self.read, waiting)

    def neighbours(self, place: int) -> range:
        """Places of the images around a place that are of its group: in a clean set, all of that group."""
        group = self._at(place, "group")
        first, end = place, place + 1
        while first > 0 and self._at(first - 1, "group") == group:
            first -= 1
        while end < self.manifest.counts["images"] and self._at(end, "group") == group:
            end += 1
        return range(first, end)

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

    def _at(self, place: int, column: str) -> Any:
        shard = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return self._page(shard)[column][place - before].as_py()

    def _row(self, image_id: int) -> tuple[int, dict[str, Any]]:
        """The number of an image's shard and its row."""
        shard = int(np.searchsorted(self._first_ids, image_id, side="right")) - 1
        if shard >= 0:
            page = self._page(shard)
            ids = page["image_id"].to_numpy()
            place = int(np.searchsorted(ids, image_id))
            if place < len(ids) and ids[place] == image_id:
                return shard, page.slice(place, 1).to_pylist()[0]
        raise KeyError(f"{self.manifest.name} has no image {image_id}")

    def _page(self, shard: int) -> pa.Table:
        if shard in self._pages:
            self._pages.move_to_end(shard)
            return self._pages[shard]
        page = read_page(self.manifest.directory, self.manifest.shards[shard])
        self._keep_page(shard, page)
        return page

    def _keep_page(self, shard: int, page: pa.Table) -> None:
        self._pages[shard] = page
        self._page_rows += page.num_rows
        while self._page_rows > self._cache_rows and len(self._pages) > 1:
            _, dropped = self._pages.popitem(last=False)
            self._page_rows -= dropped.num_rows

    def _expect_pages(self, shard_N: np.ndarray) -> None:
        """Read the pages of some shards, several at a time, where an object store has them."""
        missing = [shard for shard in np.unique(shard_N).tolist() if shard not in self._pages]
        if not self._remote or len(missing) < 2:
            return
        infos = [self.manifest.shards[shard] for shard in missing]
        pages = self._pool.map(lambda info: read_page(self.manifest.directory, info), infos)
        for shard, page in zip(missing, pages, strict=True):
            self._keep_page(shard, page)

    def _begin(self, image_id: int) -> None:
        """Fetch an image in the background."""
        if image_id not in self._images and image_id not in self._coming:
            self._coming[image_id] = self._pool.submit(self._fetch, *self._row(image_id))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")

    def _fetch(self, shard: int, row: dict[str, Any]) -> bytes:
        name = self.manifest.shards[shard].name
        uri = storage.join(self.manifest.directory, name)
        try:
            data = storage.read_range(uri, row["offset"], row["length"])
        except FileNotFoundError:
            raise DataError(f"the shard {name} is missing\nRestore it or ingest again.") from None
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(
                f"{name}: the image {row['name']} was changed\nRestore the shard or ingest again."
            )
        return data


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
