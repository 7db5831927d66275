"""What a stage 2 is judged by after every epoch, on validation images alone, and which epoch it keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dri_iqa.config import ConfigError, ModelConfig, Stage2Config
from dri_iqa.data.batches import Stage2Batches
from dri_iqa.data.manifest import ShardReader
from dri_iqa.data.splits import Split
from dri_iqa.evaluation.metrics import plcc, srocc
from dri_iqa.images import decode
from dri_iqa.losses.restoration import psnr
from dri_iqa.scoring import score_images
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import Stage, to_float
from dri_iqa.stages.selection import BestWeights

RESTORED = 64
"""Most validation images that are restored after an epoch: enough for a mean, few enough for a large network."""


def selection(stage: TrainStage, stage2: Stage2Config, split: Split) -> BestWeights | None:
    """What keeps the epoch that validation likes best; None where the last one's weights are kept.

    Raises:
        ConfigError: a choice by validation, of a split that has no validation part.
    """
    if stage2.select == "last":
        return None
    if not split.val:
        raise ConfigError(
            "stage2.select=val chooses by validation images, and this split has none\n"
            "set data.val_fraction above 0, or stage2.select=last"
        )
    return BestWeights(stage.inference_model(), "val_srocc")


def validation(
    batches: Stage2Batches, split: Split, model: ModelConfig, stage2: Stage2Config
) -> Callable[[Stage, int], dict[str, float]]:
    """What the loop calls after an epoch: `val_srocc` and `val_plcc`, and PSNR before and after restoration."""
    reader = batches.scored.open()

    def validate(stage: Stage, epoch: int) -> dict[str, float]:
        assert isinstance(stage, TrainStage)
        network = stage.inference_model().eval()
        device = str(next(stage.parameters()).device)
        predicted, given = [], []
        images = (row["bytes"] for row in reader.read_each(split.val))
        scored = score_images(
            network, images, crop=model.crop, crops=stage2.val_crops, device=device
        )
        for image_id, item in zip(split.val, scored, strict=True):
            if item.score_K is None:
                continue
            label = batches.scores[image_id] if batches.scores else reader.row(image_id)["score"]
            predicted.append(float(item.score_K.mean()))
            given.append(label if batches.higher_is_better else -label)
        found = {"val_srocc": srocc(predicted, given), "val_plcc": plcc(predicted, given)}
        return found | restoration(stage, reader, split.val)

    return validate


def restoration(stage: TrainStage, reader: ShardReader, ids: tuple[int, ...]) -> dict[str, float]:
    """PSNR of degraded and of restored images to their references, where there are both and they differ: an image that
    equals its reference has no PSNR.
    """
    some = [ids[place] for place in range(0, len(ids), -(-len(ids) // RESTORED))]
    rows = [row for row in map(reader.read, some) if row["reference"] is not None]
    if stage.ram is None or not rows:
        return {}
    device = next(stage.parameters()).device

    def pixels(data: bytes) -> Tensor:
        return to_float(torch.from_numpy(decode(data)).permute(2, 0, 1)[None].to(device))

    before, after = [], []
    for row in rows:
        reference_BCHW = pixels(reader.read(reader.reference_id(row["reference"]))["bytes"])
        image_BCHW = pixels(row["bytes"])
        if torch.equal(image_BCHW, reference_BCHW):
            continue
        before.append(float(psnr(image_BCHW, reference_BCHW)))
        after.append(float(psnr(stage.restore(image_BCHW), reference_BCHW)))
    if not before:
        return {}
    return {
        "val_psnr_input": sum(before) / len(before),
        "val_psnr_restored": sum(after) / len(after),
    }
