"""The companion of a finished stage 2: fitted on what was trained on, whoever asks, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dri_iqa.config import CompanionConfig, to_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.samples import shuffled_scores
from dri_iqa.images import decode
from dri_iqa.models.companion import KernelCompanion
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.stages import TrainStage
from dri_iqa.stages.base import to_float
from pipelines.runtime.companion import with_companion
from pipelines.runtime.fit import RunSpec
from tests.pipelines.toy import SIDE, spec_of
from tests.tiny import CROP, tiny_model, tiny_stage1, tiny_stage2

TRAIN = range(6)


def asked(folder: Path, images: int) -> tuple[TrainStage, RunSpec]:
    spec = spec_of(folder, references=False)
    model = tiny_model(companion=CompanionConfig(images=images))
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


def test_none_is_asked_for(tmp_path: Path) -> None:
    stage, spec = asked(tmp_path, images=0)
    assert with_companion(stage, spec, lambda words: pytest.fail(words)) is stage.model
