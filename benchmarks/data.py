"""Data plane: Ray Data against a DataLoader, waits by name, memory against the number of images, ingest.

    python benchmarks/data.py [--root FOLDER] [--preset tiny|paper] [--parts stream workers memory ingest]

Everything is measured in one run on the same cores and printed as one JSON object. `stream` alternates a plain
multi-process DataLoader and Ray Data over the same operator (fetch, decode, crop, degrade), the same steps and the
same number of processes, to a consumer that does nothing. `workers` compares
one process with two, and the share of time that a consumer waits which, like an accelerator, takes no core of its own.
`memory` reads one epoch of 1x, 4x and 16x images.
`ingest` compares with reading the files and writing the same shards (columns, row groups) in plain pyarrow, which
checks and hashes nothing, and with a table of names and bytes alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from dri_iqa import storage
from dri_iqa.data.batches import Batch, Source, Stage1Batches
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet
from dri_iqa.data.schedule import Schedule
from dri_iqa.data.shards import ROW_GROUP_ROWS, SCHEMA, plan_shards, write_shard
from dri_iqa.degradations.threads import pin_threads
from pipelines.runtime.clock import Clock
from pipelines.runtime.cluster import connect
from pipelines.runtime.config import ClusterConfig, compose
from pipelines.runtime.loader import loader_stream
from pipelines.runtime.streams import ray_stream
from pipelines.runtime.tasks import run_tasks


@dataclass
class Pass:
    """One pass over a stream."""

    first_batch_s: float
    """From asking for the stream to its first batch: processes start and import meanwhile."""
    samples_per_s: float
    """After a warm-up, in which all processes have started."""
    waits: dict[str, float] = field(default_factory=dict)


def ingested(dataset: DataSet, folder: Path, cut: int | None = 480) -> Source:
    results = [write_shard(plan, str(folder)) for plan in plan_shards(dataset, cut=cut)]
    return Source(uri=str(folder), digest=publish(str(folder), dataset, results).digest)


def batches_of(source: Source, preset: str, epochs: int, batch: int | None = None) -> Stage1Batches:
    config = compose("pretrain", [f"preset={preset}"])
    images = range(Manifest.load(source.uri).counts["images"])
    batch = batch or min(config.stage1.optim.batch_size, len(images))
    return Stage1Batches(
        clean=source,
        schedule=Schedule(images, batch, epochs, remainder="drop"),
        degrade=config.stage1.degrade,
        crop=config.model.crop,
        run_seed=0,
    )


def timed(stream: Iterator[Batch], batch: int, warm_up: int) -> Pass:
    begun = time.perf_counter()
    next(stream)
    first = time.perf_counter()
    for _ in range(warm_up):
        next(stream)
    warm = time.perf_counter()
    count = sum(1 for _ in stream)
    return Pass(first - begun, count * batch / (time.perf_counter() - warm))


def waits(text: str) -> dict[str, float]:
    """Seconds by the names that Ray Data gives its stages, from the text of its statistics."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    found = re.findall(
        r"\* ([^:*\n]+): (?:[\d.]+\w+ min, [\d.]+\w+ max, [\d.]+\w+ avg, )?([\d.]+)(us|ms|s)\b",
        text,
    )
    return {name.strip(): round(float(value) * units[unit], 4) for name, value, unit in found}


def measure_stream(source: Source, preset: str, processes: int, steps: int, rounds: int) -> Any:
    probe = batches_of(source, preset, 1)
    per_epoch = probe.schedule.steps_per_epoch
    batches = batches_of(source, preset, -(-steps // per_epoch))
    batch = batches.schedule.batch_size
    found: dict[str, list[Pass]] = {"loader": [], "ray": []}
    for _ in range(rounds):
        stream = loader_stream(batches, 0, steps, processes=processes)
        found["loader"].append(timed(stream, batch, steps // 5))
        told: list[str] = []
        stream = ray_stream(
            batches, 0, steps, cpus_per_process=1.0, max_processes=processes, report=told.append
        )
        found["ray"].append(timed(stream, batch, steps // 5))
        found["ray"][-1].waits = waits(told[0])
    speed = {name: statistics.median(p.samples_per_s for p in some) for name, some in found.items()}
    return {
        "processes": processes,
        "steps": steps,
        "batch": batch,
        "ratio": round(speed["ray"] / speed["loader"], 3),
        "passes": {name: [vars(item) for item in some] for name, some in found.items()},
    }


def measure_workers(source: Source, preset: str, steps: int, rounds: int) -> Any:
    """Samples a second of one and of two processes by turns; then how long a consumer waits for each of them that could
    take one and a half times what one process makes.
    """
    per_epoch = batches_of(source, preset, 1).schedule.steps_per_epoch
    batches = batches_of(source, preset, -(-steps // per_epoch))
    batch = batches.schedule.batch_size
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, found in speeds.items():
            stream = loader_stream(batches, 0, steps, processes=processes)
            found.append(timed(stream, batch, steps // 5).samples_per_s)
    speed = {processes: statistics.median(found) for processes, found in speeds.items()}
    busy = batch / (1.5 * speed[1])
    waiting = {}
    for processes in speeds:
        stream = loader_stream(batches, 0, steps, processes=processes)
        for _ in range(steps // 5):
            next(stream)
        clock = Clock()
        for _ in clock.waiting(stream):
            time.sleep(busy)
            clock.step(batch)
        waiting[processes] = clock.end_of_epoch()["data_wait_share"]
    return {
        "batch": batch,
        "steps": steps,
        "samples_per_s": {processes: round(value, 1) for processes, value in speed.items()},
        "ratio": round(speed[2] / speed[1], 2),
        "consumer_s_a_batch": round(busy, 4),
        "data_wait_share": {processes: round(share, 3) for processes, share in waiting.items()},
    }


class Watch:
    """Peak memory of this process and its children by role, and of Ray's object store, in MB."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        state = get_state_from_address(None)
        while not self._stop.wait(0.2):
            store = get_memory_info_reply(state).store_stats.object_store_bytes_used
            self._note("object_store", store)
            self._note("driver", _own(os.getpid()))
            for process, title in _descendants(os.getpid()):
                if "_Maker" in title or "MapWorker" in title:
                    self._note("data_worker", _own(process))
                elif "SplitCoordinator" in title:
                    self._note("coordinator", _own(process))

    def _note(self, role: str, amount: float) -> None:
        self.peaks[role] = max(self.peaks.get(role, 0.0), round(amount / 1e6, 1))


def _own(process: int) -> int:
    """Memory that is the process's own, without the object store that all of them map; 0 once it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.M))


def _descendants(ancestor: int) -> list[tuple[int, str]]:
    """(process id, command line) of a process's children and theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
    found: list[int] = []
    for process in parents:
        above = process
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and process != ancestor:
            found.append(process)
    titles = []
    for process in found:
        with contextlib.suppress(OSError):
            titles.append(
                (process, Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace"))
            )
    return titles


def measure_memory(root: Path, preset: str, unit: int) -> Any:
    """One epoch of 1x, 4x and 16x images in batches of the same size."""
    found: dict[str, Any] = {}
    pool = sorted(root.glob("*.png"))
    for times in (1, 4, 16):
        with tempfile.TemporaryDirectory() as folder:
            # In a task: what ingest once needed must not count as the driver's.
            (made,) = run_tasks(_copies, [(pool, Path(folder), unit * times)], cpus=1.0)
            batches = batches_of(made, preset, 1, batch=16)
            watch = Watch()
            with watch.watching():
                stream = ray_stream(batches, 0, batches.schedule.total_steps, cpus_per_process=1.0)
                steps = sum(1 for _ in stream)
            found[f"{times}x"] = {"images": unit * times, "steps": steps} | watch.peaks
    return found


def _read(system: fs.FileSystem, path: str) -> bytes:
    with system.open_input_file(path) as stream:
        return stream.read()


def _copies(pool: list[Path], folder: Path, count: int) -> Source:
    photos = folder / "photos"
    photos.mkdir()
    for number in range(count):
        # A few bytes after the end make a copy another file.
        data = pool[number % len(pool)].read_bytes() + b"%d" % number
        (photos / f"{number:06d}.png").write_bytes(data)
    return ingested(read_dataset("folder", str(photos)), folder / "shards")


def measure_ingest(dataset: DataSet, rounds: int) -> Any:
    """Seconds for the same files: plain pyarrow, ours in this process, ours with Ray's tasks."""
    files = [storage.join(dataset.root or "", record.path or "") for record in dataset.records]
    system, _ = storage.filesystem(files[0])
    paths = [storage.filesystem(name)[1] for name in files]

    with tempfile.TemporaryDirectory() as folder:
        made = ingested(dataset, Path(folder), cut=None)
        rows = Manifest.load(made.uri).table()
    paths = [paths[image_id] for image_id in rows["image_id"].to_pylist()]  # without duplicates

    def write(folder: Path, columns: list[str]) -> None:
        folder.mkdir()
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        for start in range(0, len(paths), 512):
            data = pa.array([_read(system, name) for name in paths[start : start + 512]])
            known = rows.slice(start, 512)
            arrays = [data if name == "bytes" else known[name] for name in columns]
            table = pa.Table.from_arrays(arrays, schema=schema)
            pq.write_table(
                table,
                folder / f"{start}.parquet",
                row_group_size=ROW_GROUP_ROWS,
                compression="none",
            )

    def plain(folder: Path) -> None:
        write(folder, SCHEMA.names)

    def bytes_only(folder: Path) -> None:
        write(folder, ["name", "bytes"])

    def ours(folder: Path) -> None:
        ingested(dataset, folder, cut=None)

    def tasks(folder: Path) -> None:
        calls = [(plan, str(folder)) for plan in plan_shards(dataset, len(files) // 16 + 1)]
        publish(str(folder), dataset, list(run_tasks(write_shard, calls, cpus=1.0)))

    ways: dict[str, Callable[[Path], None]] = {
        "plain": plain,
        "plain_names_and_bytes": bytes_only,
        "ours": ours,
        "ours_ray": tasks,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                way(Path(folder) / "out")
                seconds[name].append(time.perf_counter() - begun)
    best = {name: round(min(some), 3) for name, some in seconds.items()}
    return {
        "images": len(files),
        "seconds": best,
        "ratio": round(best["ours"] / best["plain"], 2),
        "ratio_ray": round(best["ours_ray"] / best["plain"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", help="folder or s3:// URI of photographs; default: the built-in sample"
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=480, help="1x of the memory measurement")
    parser.add_argument("--parts", nargs="+", default=["stream", "workers", "memory", "ingest"])
    options = parser.parse_args()
    pin_threads()
    work = Path(tempfile.mkdtemp())
    try:
        if options.root:
            dataset = read_dataset("folder", options.root)
        else:
            dataset = read_dataset("sample", None, part="clean")
        report: dict[str, Any] = {"cores": os.cpu_count(), "preset": options.preset}
        source = ingested(dataset, work / "shards")
        cluster = ClusterConfig(
            kind="local", num_cpus=2 * options.processes + 2, object_store_mb=4000
        )
        with connect(cluster):
            if "stream" in options.parts:
                report["stream"] = measure_stream(
                    source, options.preset, options.processes, options.steps, options.rounds
                )
            photos = work / "photos"
            photos.mkdir()
            reader = source.open()
            for image_id in reader.manifest.images()["image_id"].to_pylist()[:150]:
                (photos / f"{image_id}.png").write_bytes(reader.read(image_id)["bytes"])
            if "workers" in options.parts:
                report["workers"] = measure_workers(
                    source, options.preset, options.steps, options.rounds
                )
            if "memory" in options.parts:
                report["memory_MB"] = measure_memory(photos, options.preset, options.images)
            if "ingest" in options.parts:
                files = dataset if options.root else read_dataset("folder", str(photos))
                report["ingest"] = measure_ingest(files, options.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
