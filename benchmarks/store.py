"""Samples from a store that takes its time: one request after the other, and several under way.

    python benchmarks/store.py --images FOLDER [--latency-ms 30] [--csv benchmarks/results/store.csv]

A data set is ingested and served on loopback as a bucket; every answer waits for the given time first, as an object
store's do. The same process reads it in each way and from local files, by turns; medians are printed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pyarrow as pa

from dri_iqa import storage
from dri_iqa.config import DegradeConfig
from dri_iqa.data.batches import Source, Stage1Batches
from dri_iqa.data.manifest import Manifest, ShardReader
from dri_iqa.data.publishing import publish
from dri_iqa.data.readers.generic import read_folder
from dri_iqa.data.schedule import Schedule
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.degradations.threads import pin_threads

BUCKET = "bench"


class SlowStore(ThreadingHTTPServer):
    """A folder as a bucket that can be read, with a pause before each answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.latency_s = folder, latency_s
        self.seen: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SlowStore

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.seen[self.command] += 1
        time.sleep(self.server.latency_s)
        path = self.server.folder / self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        first, last = 0, size - 1
        if asked := self.headers.get("Range"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last - first + 1))

    def log_message(self, *_: object) -> None:
        """Nothing."""


def each_opened(uri: str, offset: int, length: int) -> bytes:
    """A part of a file that is looked up for every part."""

    def read(stream: pa.NativeFile) -> bytes:
        return stream.read_at(length, offset)

    return storage.with_file(uri, read)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=4, help="batches a round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    pin_threads()
    with tempfile.TemporaryDirectory() as folder:
        dataset = read_folder(str(options.images))
        results = [write_shard(plan, folder) for plan in plan_shards(dataset, rows_per_shard=128)]
        publish(folder, dataset, results)
        store = SlowStore(Path(folder), options.latency_ms / 1e3)
        os.environ |= {
            "AWS_ENDPOINT_URL": store.endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        rows = measure(store, f"s3://{BUCKET}", folder, options)
    width = max(len(row["how"]) for row in rows)
    for row in rows:
        print(
            f"{row['how']:{width}}  {row['samples_per_s']:6.1f} samples/s  {row['requests']:.2f} requests a sample"
        )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def measure(store: SlowStore, remote: str, local: str, options: argparse.Namespace) -> list[dict]:
    """One row for each way: stage-1 samples a second of one process, requests a sample."""
    nothing: Callable = lambda self, ids: None  # noqa: E731
    ways = {
        "local files": (local, []),
        "a lookup and a request, one image at a time": (
            remote,
            [
                mock.patch.object(storage, "read_range", each_opened),
                mock.patch.object(ShardReader, "expect", nothing),
            ],
        ),
        "a request, one image at a time": (
            remote,
            [mock.patch.object(ShardReader, "expect", nothing)],
        ),
        "a request, several under way": (remote, []),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    requests: dict[str, int] = {}
    for turn in range(options.rounds):
        for name, (place, patches) in ways.items():
            for patch in patches:
                patch.start()
            manifest = Manifest.load(place)
            reader = ShardReader(manifest, cache_bytes=1)  # a large set: no image is still there
            batches = Stage1Batches(
                clean=Source(uri=place, digest=manifest.digest),
                schedule=Schedule(
                    ids=range(manifest.counts["images"]),
                    batch_size=options.batch,
                    epochs=1 + options.rounds * options.steps,
                    run_seed=0,
                ),
                degrade=DegradeConfig(region=options.crop + 32),
                crop=options.crop,
                run_seed=0,
            )
            with mock.patch.object(Source, "open", lambda self, found=reader: found):
                batches(0)  # pages, lengths, connections
                store.seen.clear()
                begun = time.perf_counter()
                for step in range(1, options.steps + 1):
                    batches(turn * options.steps + step)
                seconds[name].append(time.perf_counter() - begun)
            requests[name] = sum(store.seen.values())
            for patch in patches:
                patch.stop()
    count = options.steps * options.batch
    return [
        {
            "how": name,
            "samples_per_s": round(count / statistics.median(taken), 1),
            "requests": round(requests[name] / count, 2),
            "latency_ms": 0.0 if name == "local files" else options.latency_ms,
        }
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
