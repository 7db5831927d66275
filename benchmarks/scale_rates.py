"""Rates of one core of this machine, and sizes of what is stored and held, for `benchmarks/scale.py`."""

from __future__ import annotations

import io
import os
import pickle
import platform
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dri_iqa.data.batches import Source, Stage1Batches
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.manifest import MANIFEST, Manifest, ShardReader
from dri_iqa.data.order import IdSet
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.schedule import Schedule, choose
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.data.splits import Split, save_splits
from dri_iqa.images import decode
from pipelines.runtime.config import compose

ROWS_PER_SHARD = 512
SEED = 0


def measure(images: Path, clean: Path, samples: int) -> dict[str, Any]:
    """Rates and sizes of this machine and code, by name."""
    found: dict[str, Any] = machine()
    with tempfile.TemporaryDirectory() as folder:
        found |= measure_photographs(images, Path(folder) / "photographs")
        found |= measure_clean(clean, Path(folder) / "clean", samples)
        found |= measure_lists(Path(folder))
    found |= measure_schedule()
    return found


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}",
        "commit": commit.stdout.strip(),
        "seed": SEED,
    }


def ingested(dataset: DataSet, folder: Path, cut: int | None = None) -> tuple[Source, float]:
    """A data set as shards, and the CPU seconds that took."""
    begun = time.process_time()
    plans = plan_shards(dataset, ROWS_PER_SHARD, cut=cut, seed=SEED)
    results = [write_shard(plan, str(folder)) for plan in plans]
    manifest = publish(str(folder), dataset, results, max_bad=1.0)
    return Source(uri=str(folder), digest=manifest.digest), time.process_time() - begun


def measure_photographs(images: Path, folder: Path) -> dict[str, Any]:
    """Scored photographs, as stage 2 and scoring read them."""
    source, seconds = ingested(read_dataset("folder", str(images)), folder)
    reader = source.open()
    manifest = reader.manifest
    rows = sum(info.rows for info in manifest.shards)
    some = reader.ids_at(np.linspace(0, rows - 1, min(rows, 300)).astype(int))
    encoded = [reader.read(image_id)["bytes"] for image_id in some]
    begun = time.process_time()
    for data in encoded:
        decode(data)
    decoding = time.process_time() - begun
    pages = sum((folder / info.page).stat().st_size for info in manifest.shards)
    return {
        "photographs": rows,
        "ingest_images_per_core_s": rows / seconds,
        "decode_images_per_core_s": len(encoded) / decoding,
        "photograph_bytes": sum(info.size for info in manifest.shards) / rows,
        "page_bytes_per_row": pages / rows,
        "table_bytes_per_row": manifest.table().nbytes / rows,
    }


def measure_clean(clean: Path, folder: Path, samples: int) -> dict[str, Any]:
    """Stage 1's samples at the paper's scale: fetch, decode, crop, degrade."""
    config = compose("pretrain", ["preset=paper"])
    source, _ = ingested(read_dataset("folder", str(clean)), folder, cut=480)
    count = source.open().manifest.counts["images"]
    batches = Stage1Batches(
        clean=source,
        schedule=Schedule(range(count), 8, 1 + samples // count, run_seed=SEED, remainder="drop"),
        degrade=config.stage1.degrade,
        crop=config.model.crop,
        run_seed=SEED,
    )
    batches(0)  # imports and tables
    begun = time.process_time()
    for step in range(samples // 8):
        batches(step)
    return {
        "samples": samples // 8 * 8,
        "stage1_samples_per_core_s": samples // 8 * 8 / (time.process_time() - begun),
        "clean_bytes": sum(info.size for info in source.open().manifest.shards) / count,
    }


def traced(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that Python and numpy hold for what `work` returns, and it."""
    tracemalloc.start()
    kept = work()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size, kept


def measure_lists(folder: Path) -> dict[str, Any]:
    """What still grows: the manifest's line a shard, a split's ids, and what an ingest lists on the driver."""
    images, shards = 20_000, 2000

    def records() -> DataSet:
        return DataSet(
            name="many",
            records=tuple(
                Record(name=f"set/{n // 1000:04d}/{n:09d}.jpg", path=f"set/{n // 1000:04d}/{n:09d}.jpg", size=n)
                for n in range(images)
            ),
            score_kind="none",
        )  # fmt: skip

    listed, dataset = traced(records)
    planned, _ = traced(lambda: plan_shards(dataset, ROWS_PER_SHARD))
    small = DataSet(
        name="one", score_kind="none", records=(Record(name="a", data=_grey()),), licence=""
    )
    source, _ = ingested(small, folder / "one")
    one = Manifest.load(source.uri)
    info = one.shards[0]
    many = replace(
        one,
        directory=str(folder),
        counts=one.counts | {"images": shards},
        shards=tuple(
            replace(
                info, name=f"shard-{n:05d}.parquet", page=f"parts/shard-{n:05d}.parquet", first_id=n
            )
            for n in range(shards)
        ),
    )
    many.save()
    held, _ = traced(lambda: ShardReader(Manifest.load(str(folder))))
    split = Split(source="seed 0, split 0", train=tuple(range(images)), val=(), test=())
    save_splits(str(folder / "split.json"), [split])
    return {
        "manifest_bytes_per_shard": (folder / MANIFEST).stat().st_size / shards,
        "process_bytes_per_shard": held / shards,
        "split_bytes_per_image": (folder / "split.json").stat().st_size / images,
        "listing_bytes_per_image": listed / images,
        "plan_bytes_per_image": planned / images,
        "publish_bytes_per_image": 32.0,  # two arrays of 8 bytes, each copied once to be sorted
    }


def _grey() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(stream, "PNG")
    return stream.getvalue()


def measure_schedule() -> dict[str, Any]:
    """A schedule over 10^6 to 10^9 images with 1,000 of them held out: memory, what travels, a step."""
    sizes, travels, step_us = {}, {}, {}
    for power in range(6, 10):
        count = 10**power

        def used(count: int = count) -> Schedule:
            held = choose(range(count), 1000, SEED)
            plan = Schedule(IdSet.rest(count, held), 64, 1, run_seed=SEED, remainder="drop")
            plan.batch(0, plan.steps_per_epoch // 2)
            return plan

        sizes[f"1e{power}"], plan = traced(used)
        travels[f"1e{power}"] = len(pickle.dumps(plan))
        begun = time.process_time()
        for step in range(200):
            plan.batch(0, step * (plan.steps_per_epoch // 200))
        step_us[f"1e{power}"] = (time.process_time() - begun) / 200 * 1e6
    return {"schedule_bytes": sizes, "schedule_travels_bytes": travels, "schedule_step_us": step_us}
