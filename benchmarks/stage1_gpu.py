"""Stage 1 at the paper's scale on one accelerator: bf16, channels_last and compiled against fp32 eager, in one run.

    python benchmarks/stage1_gpu.py                      # writes benchmarks/results/stage1_gpu.csv
    python benchmarks/stage1_gpu.py --cpu --preset tiny  # does the script work? Its figures mean nothing

Every row is training itself (`Optimisation.step` on synthetic crops that are made before), so no time is spent waiting
for data; the last rows feed the fast setting through real chains in processes on this machine and report that share.
The card's matrix throughput is measured in the same run: the best of a few square products at each precision.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from dri_iqa.config import OptimConfig
from dri_iqa.degradations import degrade_clean
from dri_iqa.degradations.threads import pin_threads
from dri_iqa.models.dre import DREEncoder
from dri_iqa.stages import PretrainStage
from pipelines.runtime.clock import Clock
from pipelines.runtime.config import JobConfig, compose
from pipelines.runtime.step import PRECISIONS, Optimisation

CSV_FILE = Path(__file__).resolve().parent / "results" / "stage1_gpu.csv"
SETTINGS = {
    "fp32 eager": {},
    "bf16 eager": {"precision": "bf16"},
    "bf16 channels_last": {"precision": "bf16", "channels_last": True},
    "bf16 channels_last compiled": {"precision": "bf16", "channels_last": True, "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    given = parser.parse_args()
    if not given.cpu and not torch.cuda.is_available():
        parser.error("no accelerator here; --cpu only checks that the script runs")
    device = torch.device("cpu" if given.cpu else "cuda")
    config = compose("pretrain", [f"preset={given.preset}"])
    rows = [measure(config, name, device, given.steps, 0) for name in SETTINGS]
    rows.append(measure(config, list(SETTINGS)[-1], device, given.steps, given.workers))
    name = "CPU" if given.cpu else torch.cuda.get_device_name()
    for row in rows:
        print(row, flush=True)
    if not given.cpu:
        with CSV_FILE.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["device", "torch", *rows[0]])
            writer.writeheader()
            writer.writerows({"device": name, "torch": torch.__version__, **row} for row in rows)


def measure(
    config: JobConfig, name: str, device: torch.device, steps: int, workers: int
) -> dict[str, Any]:
    """One row: images per second, memory, share of the measured matrix throughput, waiting for data."""
    optim = replace(config.stage1.optim, **SETTINGS[name])
    batch = optim.batch_size
    work = optimisation(config, optim, device)
    source = Chains(config, steps + 5)
    if workers:
        batches = iter(
            DataLoader(source, batch_size=batch, num_workers=workers, worker_init_fn=pin)
        )
    else:
        whole = DataLoader(source, batch_size=min(batch, 8))
        one = next(iter(whole))
        repeated = {
            key: torch.cat([rows] * -(-batch // len(rows)))[:batch] for key, rows in one.items()
        }
        repeated["image_id_B"] = torch.arange(batch)
        batches = iter([repeated] * (steps + 5))
    for _ in range(5):  # compiles, and fills the caches of the allocator
        work.step(to_device(next(batches), device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    clock = Clock()
    for rows in clock.waiting(batches):
        work.step(to_device(rows, device))
        clock.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    rates = clock.end_of_epoch()
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    flops = step_flops(config) * rates["images_per_second"]
    return {
        "setting": name,
        "data": f"chains in {workers} processes" if workers else "ready in memory",
        "batch": batch,
        "images_per_second": round(rates["images_per_second"], 2),
        "peak_GiB": round(memory, 2),
        "data_wait_share": round(rates["data_wait_share"], 3),
        "achieved_TFLOPs": round(flops / 1e12, 3),
        "share_of_matrix_throughput": round(flops / matrix_throughput(optim.precision, device), 3),
    }


def optimisation(config: JobConfig, optim: OptimConfig, device: torch.device) -> Optimisation:
    """What the loop sets up for a run of its own."""
    stage1 = replace(config.stage1, optim=optim)
    stage = PretrainStage(config.model, stage1, seed=0, global_batch=optim.batch_size).to(device)
    if optim.channels_last:
        stage = stage.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if optim.compile:
        for network in stage.networks():
            network.compile()
    optimizer = torch.optim.Adam(stage.parameter_groups(), lr=optim.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    return Optimisation(
        model=stage,
        stage=stage,
        optimizer=optimizer,
        scaler=scaler,
        average=None,
        config=optim,
        world=1,
    )


def to_device(rows: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in rows.items()}


class Chains(Dataset[dict[str, Any]]):
    """Four-crop samples of one large random scene."""

    def __init__(self, config: JobConfig, steps: int) -> None:
        self._config, self._count = config, steps * config.stage1.optim.batch_size
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        self._scene_HWC = coarse.repeat(24, 0).repeat(24, 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = degrade_clean(
            self._scene_HWC,
            run_seed=0,
            epoch=0,
            image_index=index,
            crop=self._config.model.crop,
            config=self._config.stage1.degrade,
        )
        return {
            "crops_B4CHW": np.ascontiguousarray(sample.crops_4HWC.transpose(0, 3, 1, 2)),
            "type_mask_B2": sample.type_mask_2,
            "recipe_hash_B2": sample.recipe_hash_2,
            "image_id_B": index,
        }


def pin(_: int) -> None:
    pin_threads()


def step_flops(config: JobConfig) -> float:
    """Floating-point operations of one image's step: one anchor forward and backward, three keys forward."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder = DREEncoder(config.model.dre)
        encoder(torch.empty(1, 3, config.model.crop, config.model.crop))
    return counter.get_total_flops() * (3 + 3)


def matrix_throughput(precision: str, device: torch.device) -> float:
    """Best measured operations per second of a square product at a precision."""
    dtype = PRECISIONS[precision] or torch.float32
    best = 0.0
    for side in (4096, 8192) if device.type == "cuda" else (512,):
        a = torch.randn(side, side, device=device, dtype=dtype)
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(10):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - begun))
    return best


if __name__ == "__main__":
    main()
