from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dri_iqa.config import PerceptualConfig
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import to_float
from tests.tiny import stage2_batch, tiny_model, tiny_stage1, tiny_stage2

IMAGES = 16


@pytest.mark.parametrize("variant", ["v1", "v2", "v3", "proposed", "maniqa"])
def test_every_variant_learns_sixteen_images_by_heart(variant):
    model = tiny_model()
    # without dropout a third of the steps is enough
    model = replace(model, predictor=replace(model.predictor, dropout=0.0, drop_path=0.0))
    stage = TrainStage(
        model,
        tiny_stage1(),
        tiny_stage2(variant=variant, perceptual=PerceptualConfig(backbone="none")),
        seed=0,
        has_references=True,
        global_batch=IMAGES,
        pretrained=None,
    )
    rates = [{"params": g["params"], "lr": 20 * g["lr"]} for g in stage.parameter_groups()]
    optim = torch.optim.Adam(rates)
    rng = torch.Generator().manual_seed(0)
    blocks = torch.rand(IMAGES, 3, 8, 8, generator=rng) * 255
    image = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)
    batch = stage2_batch(IMAGES)
    batch["image_BCHW"] = batch["views_B4CHW"][:, 0] = image
    error = float("inf")
    for _ in range(80):
        loss, metrics = stage(batch)
        optim.zero_grad()
        loss.backward()
        optim.step()
        stage.after_step()
        if float(metrics["loss_mos"]) < 8e-4:
            predicted = stage.inference_model().predict(to_float(image))
            error = float((predicted - batch["score_B"]).square().mean())
            if error < 1e-3:
                break
    assert error < 1e-3
