"""What a score costs: this project's model at the paper's sizes in bf16, and a plain fp32 MANIQA, in one run.

    python benchmarks/scoring.py --images FOLDER

The plain one is what a direct port computes: all twelve blocks of ViT-B/8 with hooks on blocks 6 to 9, then attention,
Swin and head, without an extractor. All see the same crops of one photograph in the same micro-batches, by turns, with
the weights they start from: time does not depend on what a network has learned. "bf16, autocast" is what precision=bf16
was on CPUs before weights were packed (and still is on processors without bf16 products). Ratios are medians over the
rounds of this run, by wall clock and, for a machine that others use too, by the CPU time of this process. `where` says
what a crop's milliseconds go to, and `product_gflops` how fast this processor's bf16 product is at the sizes of the
ViT's widest layer: what no arrangement can beat. The rank correlation of bf16 to fp32 is over one crop of each of many
photographs; `--model` takes it from a trained model instead of the untrained one. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dri_iqa.config import ModelConfig, PredictorConfig
from dri_iqa.evaluation import srocc
from dri_iqa.images import EXTENSIONS
from dri_iqa.models import DRIIQA, PackedModel, build_model, can_pack
from dri_iqa.models.backbone import to_grid
from dri_iqa.models.packed import PackedLinear
from dri_iqa.scoring import load_model, score_images

SIDE = 512
KINDS = {
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "_linear_pointwise"),
    "fused attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "convolutions": ("mkldnn_convolution",),
    "softmax": ("_softmax",),
    "casts, copies, layouts": ("copy_", "cat", "_reorder_linear_weight"),
}
"""torch's operators by what they do; the rest is norms, activations and sums."""


class PlainMANIQA(nn.Module):
    """The baseline as a direct port runs it.

    Args:
        config: of the baseline.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        whole = build_model(config, backbone_weights=False)
        self.predictor, self.blocks, self.grid = (
            whole.predictor,
            config.backbone.blocks,
            whole.predictor.grid,
        )
        self.vit: Any = timm.create_model(config.backbone.name, pretrained=False, num_classes=0)
        self.kept: dict[int, Tensor] = {}
        for index in self.blocks:
            self.vit.blocks[index].register_forward_hook(self._keep(index))

    def _keep(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.kept[index] = output[:, 1:]

        return hook

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Scores of crops, (B,)."""
        self.vit((image_BCHW - 0.5) / 0.5)
        token_BNC = torch.cat([self.kept[index] for index in self.blocks], dim=2)
        side = round(token_BNC.shape[1] ** 0.5)
        map_BCSS = token_BNC.transpose(1, 2).unflatten(2, (side, side))
        return self.predictor(to_grid(map_BCSS, self.grid))


def photographs(folder: Path, count: int) -> list[Path]:
    """The first so many pictures of a folder, by name."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if len(found) < count:
        raise SystemExit(f"{folder} has {len(found)} pictures, {count} are needed")
    return found[:: len(found) // count][:count]


class Clock:
    """Seconds since it was made, by the wall and of this process's CPUs."""

    def __init__(self) -> None:
        self.began = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.began[0], time.process_time() - self.began[1]


def timed(
    model: Any, picture: np.ndarray, crop: int, crops: int, precision: str
) -> tuple[float, float]:
    """Seconds for one picture."""
    clock = Clock()
    (scored,) = score_images(model, [picture], crop=crop, crops=crops, precision=precision)
    assert scored.error is None, scored.error
    return clock.read()


def where(model: Any, picture: np.ndarray, crop: int, precision: str) -> dict[str, float]:
    """Milliseconds a crop by kind of operator, over five crops."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        timed(model, picture, crop, 5, precision)
    kind_of = {operator: kind for kind, operators in KINDS.items() for operator in operators}
    spent = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiler.key_averages():
        kind = kind_of.get(event.key.split("::")[-1], "rest")
        spent[kind] += event.self_cpu_time_total / 5e3
    return {kind: round(milliseconds, 1) for kind, milliseconds in spent.items()}


def product_gflops() -> float:
    """The best rate of the packed product of 785 tokens, 768 and 3,072 wide, in 10^9 operations a second."""
    layer, token_ND = PackedLinear(torch.randn(3072, 768), None), torch.randn(785, 768).bfloat16()
    fastest = float("inf")
    with torch.inference_mode():
        for _ in range(50):
            clock = Clock()
            layer(token_ND)
            fastest = min(fastest, clock.read()[0])
    return 2 * 785 * 768 * 3072 / fastest / 1e9


def ranks(models: Any, files: list[Path], crop: int, crops: int) -> dict[str, float]:
    """How alike bf16 and fp32 rank photographs, and what bf16 changes against their spread.

    Args:
        models: what scores in fp32, and what scores in bf16.
    """
    score_NP = np.array(
        [
            [
                scored.score_K.mean()
                for scored in score_images(
                    model, [str(file) for file in files], crop=crop, crops=crops, precision=name
                )
                if scored.score_K is not None
            ]
            for model, name in zip(models, ("fp32", "bf16"), strict=True)
        ]
    )
    return {
        "images": len(files),
        "crops": crops,
        "srocc": srocc(*score_NP),
        "largest_change_over_spread": float(
            np.abs(np.diff(score_NP, axis=0)).max() / score_NP[0].std()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--crops", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--count", type=int, default=50, help="photographs for the ranks; 0 for none"
    )
    parser.add_argument("--rank-crops", type=int, default=1, help="crops of each for the ranks")
    parser.add_argument("--model", help="bundle whose ranks are compared")
    arguments = parser.parse_args()
    config = ModelConfig()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    ours = build_model(config, backbone_weights=False).eval()
    plain = PlainMANIQA(
        ModelConfig(predictor=PredictorConfig(baseline="maniqa"), crop=config.crop)
    ).eval()
    if not can_pack():
        raise SystemExit("this processor has no bf16 products: nothing to compare")
    packed = PackedModel(ours)
    runs: dict[str, tuple[Any, str]] = {
        "plain MANIQA, fp32": (plain, "fp32"),
        "DRI-IQA, fp32": (ours, "fp32"),
        "DRI-IQA, bf16, autocast": (ours, "bf16"),
        "DRI-IQA, bf16": (packed, "bf16"),
    }
    for model, precision in runs.values():
        timed(model, picture, config.crop, 5, precision)  # memory and kernels are set up
    second_RM2 = np.array(
        [
            [
                timed(model, picture, config.crop, arguments.crops, precision)
                for model, precision in runs.values()
            ]
            for _ in range(arguments.rounds)
        ]
    )
    ratio_RM2 = second_RM2 / second_RM2[:, :1]
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "crops": arguments.crops,
        "product_gflops": round(product_gflops()),
    }
    for number, clock in enumerate(("wall", "cpu")):
        for name, value_RM2 in (("seconds", second_RM2), ("ratio", ratio_RM2)):
            median_M = np.median(value_RM2[:, :, number], axis=0).round(3).tolist()
            result[f"{clock}_{name}"] = dict(zip(runs, median_M, strict=True))
    result["where"] = {
        name: where(model, picture, config.crop, precision)
        for name, (model, precision) in runs.items()
    }
    if arguments.count:
        files = photographs(arguments.images, arguments.count)
        if arguments.model:
            bundle = load_model(arguments.model, device="cpu").bundle
            ours, config = cast(DRIIQA, bundle.model), bundle.config
            packed = PackedModel(ours)
        result["ranks"] = ranks((ours, packed), files, config.crop, arguments.rank_crops)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
