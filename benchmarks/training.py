"""Images a second of a training step on one core, with this project's CPU layers and with timm's and torch's own.

    OMP_NUM_THREADS=1 python benchmarks/training.py --csv benchmarks/results/training.csv
    OMP_NUM_THREADS=1 python benchmarks/training.py --preset tiny model.crop=96
    OMP_NUM_THREADS=1 python benchmarks/training.py --precision fp32 [--give-back]    as processes with and without
                                                                                      `keep_memory`
    OMP_NUM_THREADS=1 python benchmarks/training.py --profile --precision fp32 [...]    what a step's time goes into

Both kinds of layers take steps on the same random batches by turns, in one run; `cpu_seconds` are the process's own, so
that other work on the machine hardly counts. What differs is in `dri_iqa/models/mobile.py` and `norm.py`. Weights
are random, as time does not depend on them, but norms have running statistics as with weights that are loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dri_iqa.models import backbone, norm
from dri_iqa.processor import keep_memory
from dri_iqa.stages import PretrainStage, Stage, TrainStage
from pipelines.runtime.config import JobConfig, compose

ROUNDS = 3


@contextlib.contextmanager
def usual_layers() -> Iterator[None]:
    """Models that are built in the block have timm's and torch's layers."""
    ours = backbone.fold_norms, norm.GroupNorm
    backbone.fold_norms, norm.GroupNorm = lambda net: None, nn.GroupNorm
    try:
        yield
    finally:
        backbone.fold_norms, norm.GroupNorm = ours


def build(config: JobConfig, name: str) -> Stage:
    """A stage as the loop sets it up on a CPU in bf16: channels_last, frozen statistics."""
    model, first, second = config.model, config.stage1, config.stage2
    if name == "stage 1":
        stage: Stage = PretrainStage(model, first, seed=0, global_batch=first.optim.batch_size)
    else:
        batch = second.optim.batch_size
        options: dict[str, Any] = {"has_references": False, "pretrained": None}
        stage = TrainStage(model, first, second, seed=0, global_batch=batch, **options)
        for part in stage.model.backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
    return stage.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def batch_of(config: JobConfig, name: str) -> tuple[int, dict[str, Tensor]]:
    """Labelled or clean images a step, and random rows of what the stage reads."""
    crop, generator = config.model.crop, torch.Generator().manual_seed(0)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(
            0, 256, (*shape, 3, crop, crop), dtype=torch.uint8, generator=generator
        )

    def views(count: int, prefix: str, rows: str) -> dict[str, Tensor]:
        return {
            f"{prefix}crops_{rows}4CHW": pixels(count, 4),
            f"{prefix}type_mask_{rows}2": torch.ones(count, 2, dtype=torch.int64),
            f"{prefix}recipe_hash_{rows}2": torch.arange(2 * count).view(count, 2),
            f"{prefix}image_id_{rows}": torch.arange(count),
        }

    if name == "stage 1":
        count = config.stage1.optim.batch_size
        return count, views(count, "", "B")
    count, more = config.stage2.optim.batch_size, config.stage2.aux_batch
    labelled = {"image_BCHW": pixels(count), "score_B": torch.rand(count, generator=generator)}
    return count, labelled | views(more, "aux_", "A") | {"aux_clean_ACHW": pixels(more)}


def step(
    stage: Stage, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], bf16: bool
) -> float:
    """CPU seconds of one step."""
    begun = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = stage(stage.prepare(batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - begun


KINDS = {
    "convolutions": "conv",
    "matrix products": "mm linear attention",
    "normalisation": "norm",
    "element by element": "relu gelu silu sigmoid hardtanh softmax add mul div sub sum sqrt lerp",
    "copies and layouts": "copy cat stack contiguous clone fill zero index pad roll",
}
"""Part of a step -> words of which its operators' names contain one; the first that fits counts.

The optimiser's operators are element by element.
"""


def profile(config: JobConfig, name: str, bf16: bool) -> dict[str, float]:
    """Share of each kind of operator in a step's time, by the operators' own CPU time."""
    stage, (_, batch) = build(config, name), batch_of(config, name)
    optimizer = torch.optim.Adam(stage.parameter_groups())
    step(stage, optimizer, batch, bf16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(stage, optimizer, batch, bf16)
    shares: dict[str, float] = dict.fromkeys([*KINDS, "all else"], 0.0)
    events = seen.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    for event in events:
        name_of = event.key.lower()
        fits = (kind for kind, words in KINDS.items() if any(w in name_of for w in words.split()))
        shares[next(fits, "all else")] += event.self_cpu_time_total / whole
    return {kind: round(share, 3) for kind, share in shares.items()}


def measure(config: JobConfig, name: str, bf16: bool) -> dict[str, Any]:
    """One row of the table."""
    stages = {"ours": build(config, name)}
    with usual_layers():
        stages["usual"] = build(config, name)
    count, batch = batch_of(config, name)
    seconds: dict[str, list[float]] = {kind: [] for kind in stages}
    optimizers = {
        kind: torch.optim.Adam(stage.parameter_groups()) for kind, stage in stages.items()
    }
    for number in range(ROUNDS + 1):  # the first one warms up
        for kind, stage in stages.items():
            spent = step(stage, optimizers[kind], batch, bf16)
            seconds[kind] += [spent] if number else []
    best = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "stage": name,
        "crop": config.model.crop,
        "batch": count,
        "usual_images_per_cpu_second": round(count / best["usual"], 2),
        "images_per_cpu_second": round(count / best["ours"], 2),
        "ratio": round(best["usual"] / best["ours"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--give-back", action="store_true", help="memory, as glibc does by default")
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--profile", action="store_true", help="only what a step's time goes into")
    given, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not given.give_back:
        keep_memory()
    nothing = ("model.backbone.weights=random", "stage2.perceptual.weights=random")
    config = compose("full", [f"preset={given.preset}", *nothing, *overrides])
    bf16 = given.precision == "bf16"
    facts = {"preset": given.preset, "precision": given.precision, "give_back": given.give_back}
    if given.profile:
        for name in ("stage 1", "stage 2"):
            print(name, profile(config, name, bf16))
        return
    rows = [facts | measure(config, name, bf16) for name in ("stage 1", "stage 2")]
    for row in rows:
        print(row)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
