"""The companion of a finished stage 2: fitted on what was trained on, whoever asks, and on nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dri_iqa.config import CompanionConfig, Stage1Config, from_dict, to_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.samples import shuffled_scores
from dri_iqa.degradations.steps import LEVELS, one_series
from dri_iqa.images import decode
from dri_iqa.models.companion import KernelCompanion
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import to_float
from pipelines.runtime.companion import with_companion
from pipelines.runtime.feeds import clean_parts
from pipelines.runtime.fit import RunSpec
from tests.pipelines.toy import SIDE, spec_of
from tests.tiny import CROP, tiny_model, tiny_stage1, tiny_stage2

TRAIN = range(6)


def asked(folder: Path, images: int, **more: Any) -> tuple[TrainStage, RunSpec]:
    spec = spec_of(folder, references=False)
    model = tiny_model(companion=CompanionConfig(images=images, **more))
    stage = TrainStage(
        model,
        tiny_stage1(),
        tiny_stage2(),
        seed=3,
        has_references=False,
        global_batch=8,
        pretrained=None,
    )
    return stage, replace(spec, config={**spec.config, "model": to_dict(model)})


def fitted(stage: TrainStage, spec: RunSpec) -> DRIIQA:
    said: list[str] = []
    model = with_companion(stage, spec, said.append)
    assert model.companion is not None
    assert said[-1].startswith("the companion is fitted on")
    return model


def companion_by_hand(model: DRIIQA, spec: RunSpec, scores: dict[int, float]) -> KernelCompanion:
    """Fitted on the corners of all training images; scores run from 0 to 5, best last."""
    reader = Source(uri=spec.inputs.scored_uri, digest=spec.inputs.scored_digest).open()
    companion = KernelCompanion(model.config, load_weights=False)
    assert model.companion is not None
    companion.backbone.load_state_dict(model.companion.backbone.state_dict())
    rows = []
    for image_id in TRAIN:
        image_HWC = decode(reader.read(image_id)["bytes"])
        ends = (0, SIDE - CROP)
        crops = np.stack([image_HWC[y:, x:][:CROP, :CROP] for y in ends for x in ends])
        crop_BCHW = to_float(torch.from_numpy(crops).permute(0, 3, 1, 2))
        rows.append(companion.eval().statistics(crop_BCHW).mean(0))
    companion.fit(torch.stack(rows), torch.tensor([scores[n] / 5 for n in TRAIN]))
    return companion


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_knows_every_training_image_and_the_score_it_was_trained_with(
    tmp_path: Path, shuffled: bool
) -> None:
    stage, spec = asked(tmp_path, images=100)
    spec = replace(spec, inputs=replace(spec.inputs, shuffle_scores=shuffled))
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    model = fitted(stage, spec)
    assert model.config.companion.images == len(TRAIN)
    scores: dict[int, float] = {n: float(n) for n in TRAIN}
    if shuffled:
        table = Source(uri=spec.inputs.scored_uri, digest=spec.inputs.scored_digest).open()
        scores = shuffled_scores(table.manifest.table(), tuple(TRAIN), spec.config["seed"])
        assert scores != {n: float(n) for n in TRAIN}
    expected = companion_by_hand(model, spec, scores)
    found: Any = model.companion
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name].float(), tensor.float(), atol=2e-3), name
    # the network is as it was trained, and its stage as it was
    network = model.state_dict()
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(network[name], tensor), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())
    assert stage.training


def test_few_images_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    stage, spec = asked(tmp_path, images=4)
    first, again = (fitted(stage, spec).state_dict() for _ in range(2))
    assert len(first["companion.landmark_NF"]) == 4
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_series_are_of_every_clean_photograph_in_turn(tmp_path: Path) -> None:
    stage, spec = asked(tmp_path, images=100, order_series=13, order_margin=0.2)
    stage1 = {**spec.config["stage1"], "held_out": 0.3}
    spec = replace(spec, config={**spec.config, "stage1": stage1})
    said: list[str] = []
    model = with_companion(stage, spec, said.append)
    assert re.fullmatch(
        r"the companion is fitted on 6 training images \(penalty .*\); \d+% of its steps from level to level fall",
        said[-1],
    )
    clean = Source(uri=spec.inputs.clean_uri, digest=spec.inputs.clean_digest)
    parts = clean_parts(clean, from_dict(Stage1Config, stage1, "stage1"), spec.config["seed"])
    assert len(parts.train) == 6
    images = {n: decode(clean.open().read(n)["bytes"]) for n in parts.train}
    companion: Any = model.companion
    found_SF = companion.landmark_NF[len(TRAIN) :].float()
    assert len(found_SF) == 13
    shown = []
    for index, row_F in enumerate(found_SF):
        level = index * LEVELS // 13
        for n, image_HWC in images.items():
            region = max(stage1["degrade"]["region"], CROP)
            this = one_series(image_HWC, run_seed=3, index=index, crop=CROP, region=region)
            crop_LCHW = to_float(torch.from_numpy(this.crops_LHWC).permute(0, 3, 1, 2))
            seen_LF = (companion.statistics(crop_LCHW) - companion.mean_F) / companion.scale_F
            if torch.allclose(seen_LF[level], row_F, atol=1e-2, rtol=1e-2):
                shown.append(n)
                break
    assert sorted(shown[:6]) == sorted(images)
    assert shown[6:12] == shown[:6]
    assert shown[12] == shown[0]
    again = with_companion(stage, spec, said.append).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_none_is_asked_for(tmp_path: Path) -> None:
    stage, spec = asked(tmp_path, images=0)
    assert with_companion(stage, spec, lambda words: pytest.fail(words)) is stage.model
