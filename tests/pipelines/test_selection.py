"""Which epoch's weights a run keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dri_iqa.stages.selection import BestWeights
from tests.pipelines import loop_worker as worker
from tests.pipelines.test_loop import go, start

VALUES = {1: 0.1, 2: 0.5, 3: float("nan"), 4: 0.5}
OPTIM = replace(worker.OPTIM, epochs=4, checkpoint_steps=None, ema=0.5)


def run(folder: Path, seen: dict[int, torch.Tensor], stop: int | None = None):
    """Train with fixed validation figures; what the encoder's weights were at each epoch's validation."""
    stage = worker.stage()
    weight = stage.query.encoder.layers[0].get_parameter("conv1.weight")

    def validate(_, epoch: int) -> dict[str, float]:
        seen[epoch] = weight.detach().clone()
        return {"val_srocc": VALUES[epoch]}

    best = BestWeights(stage.query, "val_srocc")
    training = start(folder, stage, optim=OPTIM, validate=validate, best=best)
    if stop:
        training.stream = lambda first, _: worker.batches()(first, stop)
    go(training, folder)
    return training, weight


def test_the_best_epoch_is_kept_the_first_of_equals_and_never_one_without_a_figure(
    tmp_path: Path,
) -> None:
    seen: dict[int, torch.Tensor] = {}
    training, weight = run(tmp_path, seen)
    assert torch.equal(weight, seen[2])
    assert not torch.equal(seen[2], seen[4])
    said = [r["say"] for r in training.journal.records if "say" in r]
    assert said == ["the weights of epoch 2 are kept (val_srocc 0.500)"]


def test_the_best_weights_survive_a_restart(tmp_path: Path) -> None:
    whole: dict[int, torch.Tensor] = {}
    parts: dict[int, torch.Tensor] = {}
    _, expected = run(tmp_path / "whole", whole)
    run(tmp_path / "parts", parts, stop=3 * worker.PER_EPOCH)
    _, weight = run(tmp_path / "parts", parts)
    assert torch.equal(weight, expected)


def test_without_a_figure_the_last_weights_stay() -> None:
    module = torch.nn.Linear(2, 1)
    best = BestWeights(module, "val_srocc")
    best.offer(1, {"loss": 1.0})
    before = module.weight.detach().clone()
    best.restore()
    assert best.epoch == 0
    assert torch.equal(module.weight, before)


def test_statistics_are_kept_with_the_weights() -> None:
    module = torch.nn.BatchNorm2d(3)
    best = BestWeights(module, "score")
    module(torch.randn(4, 3, 2, 2))
    best.offer(1, {"score": 1.0})
    kept = module.running_mean
    assert kept is not None
    kept = kept.clone()
    module(torch.randn(4, 3, 2, 2) + 5)
    best.offer(2, {"score": 0.5})
    best.restore()
    assert torch.equal(torch.as_tensor(module.running_mean), kept)
    assert best.state_dict()["epoch"] == 1
    with pytest.raises(KeyError):
        best.load_state_dict({})
