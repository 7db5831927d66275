"""What a cluster of 10 to 1,000 nodes and a data set of 10^6 to 10^9 images would need, from rates of one core.

    python benchmarks/scale.py --measure --images PHOTOGRAPHS --clean PRISTINE   # writes benchmarks/results/scale.json
    python benchmarks/scale.py [--rates FILE] [--gpu-tflops 989 --gpu-share 0.3 --gpu-hour 3 ...] [--markdown]

Rates are a process's CPU seconds, which other work on the machine disturbs less than wall time; sizes are counted.
Everything about accelerators and prices is an input: what is printed is arithmetic on it, not a measurement. With
`stage1_images_per_s` (or stage2_, score_) in the rates file, that measured figure takes the place of the assumption.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scale_rates import ROWS_PER_SHARD, measure

from dri_iqa.config import ModelConfig, Stage2Config
from dri_iqa.degradations.threads import pin_threads
from dri_iqa.models.table import model_table

RATES = Path(__file__).resolve().parent / "results" / "scale.json"
S3_READS = 5500
"""GET and HEAD requests a second of a partitioned prefix (S3 User Guide, "Optimizing Amazon S3 performance")."""
LOG_STEPS = 50
GPUS_A_NODE, CORES_A_NODE = 8, 16


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
