"""What a cluster of 10 to 1,000 nodes and a data set of 10^6 to 10^9 images would need, from rates of one core.

    python benchmarks/scale.py --measure --images PHOTOGRAPHS --clean PRISTINE   # writes benchmarks/results/scale.json
    python benchmarks/scale.py [--rates FILE] [--gpu-tflops 989 --gpu-share 0.3 --gpu-hour 3 ...] [--markdown]

Rates are a process's CPU seconds, which other work on the machine disturbs less than wall time; sizes are counted.
Everything about accelerators and prices is an input: what is printed is arithmetic on it, not a measurement. With
`stage1_images_per_s` (or stage2_, score_) in the rates file, that measured figure takes the place of the assumption.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dri_iqa.config import ModelConfig, Stage2Config
from dri_iqa.data.batches import Source, Stage1Batches
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.manifest import MANIFEST, Manifest, ShardReader
from dri_iqa.data.order import IdSet
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.schedule import Schedule, choose
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.data.splits import Split, save_splits
from dri_iqa.degradations.threads import pin_threads
from dri_iqa.images import decode
from dri_iqa.models.table import model_table
from pipelines.runtime.config import compose

RATES = Path(__file__).resolve().parent / "results" / "scale.json"
ROWS_PER_SHARD = 512
SEED = 0
S3_READS = 5500
"""GET and HEAD requests a second of a partitioned prefix (S3 User Guide, "Optimizing Amazon S3 performance")."""
LOG_STEPS = 50
GPUS_A_NODE, CORES_A_NODE = 8, 16


# --- measuring ------------------------------------------------------------------------------------------------------


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
    from PIL import Image

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


# --- what follows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work on images: what a GPU and a core do in a second."""

    name: str
    gpu: float
    """Images a second of one GPU; 0 where none is needed."""
    core: float
    """Images a second of one core."""
    reads: float
    """Requests to the store an image, each page read anew: HEAD and GET for a page and for an image."""
    size: float
    """Encoded bytes of an image."""

    @property
    def cores(self) -> float:
        """Cores that keep one GPU busy."""
        return self.gpu / self.core


def flops() -> dict[str, float]:
    """Floating-point operations an image at the paper's sizes: 2 a multiply-accumulate, backward twice forward."""
    macs = {row.part: row.macs for row in model_table(ModelConfig(), Stage2Config(), True)}
    extractor = macs["extractor"]
    trained = extractor + macs["backbone"] + macs["predictor"] + macs["restoration"]
    # the frozen extractor sees the restored image (with gradients to it) and the reference, the perceptual network too
    frozen = 3 * (macs["stage-1 extractor"] + macs["perceptual network"])
    score = extractor + macs["backbone"] + macs["predictor"]
    return {
        "stage1": 2 * (3 * extractor + 3 * macs["key encoder"]),
        "stage2": 2 * (3 * trained + frozen + 3 * macs["key encoder"]),
        "score": 2 * 25 * score,
    }


def works(rates: dict[str, Any], tflops: float, share: float) -> list[Work]:
    speed = {name: tflops * 1e12 * share / each for name, each in flops().items()}
    speed |= {
        name: rates[f"{name}_images_per_s"] for name in speed if f"{name}_images_per_s" in rates
    }
    decoding, photo = rates["decode_images_per_core_s"], rates["photograph_bytes"]
    return [
        Work(name="ingest", gpu=0.0, core=rates["ingest_images_per_core_s"], reads=2, size=photo),
        Work(
            name="stage 1, an epoch",
            gpu=speed["stage1"],
            core=rates["stage1_samples_per_core_s"],
            reads=4,
            size=rates["clean_bytes"],
        ),
        Work(name="stage 2, an epoch", gpu=speed["stage2"], core=decoding, reads=4, size=photo),
        Work(name="scoring, 25 crops", gpu=speed["score"], core=decoding, reads=2, size=photo),
    ]


def cost_table(some: list[Work], prices: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """A million images."""
    head = ["a million images", "images/s and GPU", "cores a GPU", f"nodes of {CORES_A_NODE} a GPU",
            "core-hours", "GPU-hours", "cost"]  # fmt: skip
    rows = []
    for work in some:
        cores = 1e6 / work.core / 3600
        gpus = 1e6 / work.gpu / 3600 if work.gpu else 0.0
        reads = 1e6 * work.reads / 1000 * prices.reads
        cost = cores * prices.core_hour + gpus * prices.gpu_hour + reads
        rows.append(
            [
                work.name,
                f"{work.gpu:,.0f}" if work.gpu else "-",
                f"{work.cores:.1f}" if work.gpu else "-",
                f"{work.cores / CORES_A_NODE:.1f}" if work.gpu else "-",
                f"{cores:.1f}",
                f"{gpus:.2f}" if gpus else "-",
                f"{cost:.2f}",
            ]
        )
    return head, rows


def cluster_table(work: Work, batch: int, crop: int) -> tuple[list[str], list[list[str]]]:
    """Stage 1 on 10 to 1,000 nodes in the proportion that keeps its GPUs busy."""
    head = ["nodes", "GPUs", "images/s", "HEAD and GET/s", "prefix partitions", "store GB/s", "Ray actors",
            "object store a GPU node", "MLflow calls/s"]  # fmt: skip
    a_gpu = 1 / GPUS_A_NODE + work.cores / CORES_A_NODE
    under_way = 8 * 8 * batch * 4 * 3 * crop**2  # tasks of 8 steps, see docs/operations.md
    rows = []
    for nodes in (10, 100, 1000):
        gpus = max(1, math.floor(nodes / a_gpu))
        speed = gpus * work.gpu
        reads = speed * work.reads
        actors = (
            math.ceil(gpus * work.cores) + 2 * gpus + 2
        )  # data processes; worker and coordinator; controller, journal
        steps = work.gpu / batch  # every rank brings its batch: steps do not multiply with ranks
        rows.append(
            [
                f"{nodes:,}", f"{gpus:,}", f"{speed:,.0f}", f"{reads:,.0f}", f"{math.ceil(reads / S3_READS):,}",
                f"{speed * work.size / 1e9:.1f}", f"{actors:,}",
                f"{min(gpus, GPUS_A_NODE) * under_way / 1e9:.1f} GB", f"{steps / LOG_STEPS:.2f}",
            ]
        )  # fmt: skip
    return head, rows


def size_table(rates: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What is stored and held for 10^6 to 10^9 images."""
    head = ["images", "shards", "encoded", "pages", "manifest.json", "a process: manifest", "a process: schedule",
            "driver: publishing", "driver: listing and planning", "a split, JSON", "whole table"]  # fmt: skip
    rows = []
    for power in range(6, 10):
        count = 10**power
        shards = count / ROWS_PER_SHARD
        driver = rates["listing_bytes_per_image"] + rates["plan_bytes_per_image"]
        held = [
            count * rates["clean_bytes"],
            count * rates["page_bytes_per_row"],
            shards * rates["manifest_bytes_per_shard"],
            shards * rates["process_bytes_per_shard"],
            rates["schedule_bytes"][f"1e{power}"],
            count * rates["publish_bytes_per_image"],
            count * driver,
            count * rates["split_bytes_per_image"],
            count * rates["table_bytes_per_row"],
        ]
        rows.append([f"10^{power}", f"{shards:,.0f}", *map(readable, held)])
    return head, rows


def readable(size: float) -> str:
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def rate_table(rates: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, value in rates.items():
        values = value.values() if isinstance(value, dict) else [value]
        rows.append(
            [
                name,
                ", ".join(
                    f"{item:.4g}" if isinstance(item, float) else f"{item}" for item in values
                ),
            ]
        )
    return ["measured", "value"], rows


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> None:
    if markdown:
        print(f"\n{title}\n\n| " + " | ".join(head) + " |")
        print("|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure here, and write --rates")
    parser.add_argument("--rates", type=Path, default=RATES, help="JSON of measured rates")
    parser.add_argument("--images", type=Path, help="folder of photographs, for --measure")
    parser.add_argument("--clean", type=Path, help="folder of pristine images, for --measure")
    parser.add_argument("--samples", type=int, default=400, help="stage-1 samples to measure with")
    parser.add_argument(
        "--gpu-tflops", type=float, default=989.0, help="peak of a card, dense bf16"
    )
    parser.add_argument(
        "--gpu-share", type=float, default=0.3, help="share of it that training uses"
    )
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price of a GPU for an hour")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour")
    parser.add_argument("--reads", type=float, default=0.0004, help="price of 1,000 reads")
    parser.add_argument("--batch", type=int, default=64, help="images a GPU and step")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    pin_threads()
    if given.measure:
        if not given.images or not given.clean:
            parser.error("--measure wants --images and --clean")
        given.rates.write_text(
            json.dumps(measure(given.images, given.clean, given.samples), indent=1) + "\n"
        )
    elif not given.rates.exists():
        parser.error(f"{given.rates} does not exist; --measure makes it")
    rates = json.loads(given.rates.read_text())
    some = works(rates, given.gpu_tflops, given.gpu_share)
    assumed = f"{given.gpu_tflops:g} TFLOP/s x {given.gpu_share:g}"
    show(f"Measured on {rates['machine']}", *rate_table(rates), given.markdown)
    show(
        f"A million images (GPU: {assumed}, an assumption)",
        *cost_table(some, given),
        given.markdown,
    )
    show(
        "Stage 1 on a cluster",
        *cluster_table(some[1], given.batch, ModelConfig().crop),
        given.markdown,
    )
    show("By the number of images", *size_table(rates), given.markdown)


if __name__ == "__main__":
    sys.exit(main())
