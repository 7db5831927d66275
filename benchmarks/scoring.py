"""What a score costs: this project's model at the paper's sizes in bf16, and a plain fp32 MANIQA, in one run.

    python benchmarks/scoring.py --images FOLDER

The plain one is what a direct port computes: all twelve blocks of ViT-B/8 with hooks on blocks 6 to 9, then attention,
Swin and head, without an extractor. Both see the same crops of one photograph in the same micro-batches, by turns, with
the weights they start from: time does not depend on what a network has learned. The rank correlation of bf16 to fp32 is
over one crop of each of many photographs; `--model` takes it from a trained model instead of the untrained one. Prints
one JSON object; ratios are medians over the rounds of this run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from scipy import stats
from torch import Tensor, nn

from dri_iqa.config import ModelConfig, PredictorConfig
from dri_iqa.images import EXTENSIONS
from dri_iqa.models import build_model
from dri_iqa.models.backbone import to_grid
from dri_iqa.scoring import load_model, score_images

SIDE = 512


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


def timed(model: Any, picture: np.ndarray, crop: int, crops: int, precision: str) -> float:
    """Seconds for one picture."""
    began = time.perf_counter()
    (scored,) = score_images(model, [picture], crop=crop, crops=crops, precision=precision)
    assert scored.error is None, scored.error
    return time.perf_counter() - began


def ranks(model: Any, files: list[Path], crop: int, crops: int) -> dict[str, float]:
    """How alike bf16 and fp32 rank photographs, and what bf16 changes against their spread."""
    score_NP = np.array(
        [
            [
                scored.score_K.mean()
                for scored in score_images(
                    model, [str(file) for file in files], crop=crop, crops=crops, precision=name
                )
                if scored.score_K is not None
            ]
            for name in ("fp32", "bf16")
        ]
    )
    return {
        "images": len(files),
        "crops": crops,
        "srocc": float(stats.spearmanr(*score_NP).statistic),
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
    parser.add_argument("--model", help="bundle whose ranks are compared")
    arguments = parser.parse_args()
    config = ModelConfig()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    ours = build_model(config, backbone_weights=False).eval()
    plain = PlainMANIQA(
        ModelConfig(predictor=PredictorConfig(baseline="maniqa"), crop=config.crop)
    ).eval()
    runs = {
        "plain MANIQA, fp32": (plain, "fp32"),
        "DRI-IQA, fp32": (ours, "fp32"),
        "DRI-IQA, bf16": (ours, "bf16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for model, precision in runs.values():
        timed(model, picture, config.crop, 5, precision)  # memory and kernels are set up
    for _ in range(arguments.rounds):
        for name, (model, precision) in runs.items():
            seconds[name].append(timed(model, picture, config.crop, arguments.crops, precision))
    base = seconds["plain MANIQA, fp32"]
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "crops": arguments.crops,
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "ratio": {
            name: statistics.median([mine / its for mine, its in zip(found, base, strict=True)])
            for name, found in seconds.items()
        },
    }
    if arguments.count:
        files = photographs(arguments.images, arguments.count)
        if arguments.model:
            scorer = load_model(arguments.model, device="cpu")
            result["ranks"] = ranks(scorer.bundle.model, files, scorer.bundle.config.crop, 25)
        else:
            result["ranks"] = ranks(ours, files, config.crop, 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
