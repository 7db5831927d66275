"""What the whole method costs on one accelerator beside the MANIQA baseline, at the paper's scale, in one run.

    python benchmarks/stage2_gpu.py                      # writes benchmarks/results/stage2_gpu.csv
    python benchmarks/stage2_gpu.py --cpu --preset tiny  # does the script work? Its figures mean nothing

Every row is training itself (`Optimisation.step` on random crops that are made before), so no time is spent waiting for
data. Networks have random weights, which cost the same. `times_maniqa` is a row's time an image over the baseline's at
the same setting; the share of matrix throughput is against the best square product measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from stage1_gpu import SETTINGS, matrix_throughput, to_device
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dri_iqa.config import OptimConfig
from dri_iqa.stages import TrainStage
from pipelines.runtime.clock import Clock
from pipelines.runtime.config import JobConfig, compose
from pipelines.runtime.step import Optimisation

CSV_FILE = Path(__file__).resolve().parent / "results" / "stage2_gpu.csv"
Variant = Literal["maniqa", "v1", "v2", "v3", "proposed"]
VARIANTS: tuple[Variant, ...] = ("maniqa", "v1", "v2", "v3", "proposed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if not given.cpu and not torch.cuda.is_available():
        parser.error("no accelerator here; --cpu only checks that the script runs")
    device = torch.device("cpu" if given.cpu else "cuda")
    config = compose(
        "train",
        [
            f"preset={given.preset}",
            "model.backbone.weights=none",
            "stage2.perceptual.weights=random",
            f"stage2.optim.batch_size={given.batch}",
        ],
    )
    settings = list(SETTINGS)[:1] if given.cpu else list(SETTINGS)
    rows = []
    for name in settings:
        optim = replace(config.stage2.optim, **SETTINGS[name])
        best = matrix_throughput(optim.precision, device)
        first = None
        for variant in VARIANTS:
            row = measure(config, optim, variant, device, given.steps, best)
            first = first or row["images_per_second"]
            row = {
                "setting": name,
                **row,
                "times_maniqa": round(first / row["images_per_second"], 2),
            }
            print(row, flush=True)
            rows.append(row)
    if not given.cpu:
        about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        with CSV_FILE.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*about, *rows[0]])
            writer.writeheader()
            writer.writerows({**about, **row} for row in rows)


def measure(
    config: JobConfig,
    optim: OptimConfig,
    variant: Variant,
    device: torch.device,
    steps: int,
    best: float,
) -> dict[str, Any]:
    """One row: images per second, memory, share of the measured matrix throughput.

    Args:
        best: operations per second of a square product.
    """
    batch, crop = optim.batch_size, config.model.crop
    rows = to_device(crops(batch, config.stage2.aux_batch, crop), device)
    flops = step_flops(build(config, optim, variant).to(device), rows)
    stage = build(config, optim, variant).to(device)
    if optim.channels_last:
        stage = stage.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if optim.compile:
        for network in stage.networks():
            network.compile()
    work = Optimisation(
        model=stage,
        stage=stage,
        optimizer=torch.optim.Adam(stage.parameter_groups(), fused=True),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        average=None,
        config=optim,
        world=1,
    )
    for _ in range(5):  # compiles, and fills the caches of the allocator
        work.step(rows)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    clock = Clock()
    for _ in range(steps):
        work.step(rows)
        clock.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = clock.end_of_epoch()["images_per_second"]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return {
        "variant": variant,
        "batch": batch,
        "micro_batches": work.micro_batches,
        "images_per_second": round(rate, 2),
        "peak_GiB": round(memory, 2),
        "achieved_TFLOPs": round(flops * rate / batch / 1e12, 3),
        "share_of_matrix_throughput": round(flops * rate / batch / best, 3),
    }


def build(config: JobConfig, optim: OptimConfig, variant: Variant) -> TrainStage:
    """The stage as a run of its own has it, on data without references (as photographs with scores are)."""
    return TrainStage(
        config.model,
        config.stage1,
        replace(config.stage2, variant=variant, optim=optim),
        seed=0,
        has_references=False,
        global_batch=optim.batch_size,
        pretrained=None,
    )


def step_flops(stage: TrainStage, rows: dict[str, Tensor]) -> float:
    """Floating-point operations of a step: every product that it computes, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        loss, _ = stage(rows)
        loss.backward()
    return counter.get_total_flops()


def crops(batch: int, aux: int, crop: int) -> dict[str, Tensor]:
    """Random pixels under every name that a variant reads."""
    rng = torch.Generator().manual_seed(0)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, 3, crop, crop), generator=rng, dtype=torch.uint8)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(1, 1 << 20, shape, generator=rng)

    return {
        "image_BCHW": pixels(batch),
        "score_B": torch.rand(batch, generator=rng),
        "aux_crops_A4CHW": pixels(aux, 4),
        "aux_clean_ACHW": pixels(aux),
        "aux_type_mask_A2": numbers(aux, 2),
        "aux_recipe_hash_A2": numbers(aux, 2),
        "aux_image_id_A": torch.arange(aux),
    }


if __name__ == "__main__":
    main()
