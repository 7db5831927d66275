"""Stages of the smallest sizes after two steps of stage 1, and single steps of them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dri_iqa.config import ModelConfig
from dri_iqa.stages import PretrainStage, TrainStage
from tests.tiny import stage1_batch, tiny_model, tiny_stage1, tiny_stage2


@lru_cache
def stage1_state(halves: str = "dual", steps: int = 2) -> dict[str, Tensor]:
    stage = PretrainStage(tiny_model(), tiny_stage1(halves=halves), seed=0, global_batch=8)
    optim = torch.optim.Adam(stage.parameter_groups()[0]["params"], lr=2e-3)
    for step in range(steps):
        loss, _ = stage(stage1_batch(seed=step))
        optim.zero_grad()
        loss.backward()
        optim.step()
        stage.after_step()
    return {name: tensor.clone() for name, tensor in stage.state_dict().items()}


def build(
    has_references: bool = True, model: ModelConfig | None = None, seed: int = 0, **changes
) -> TrainStage:
    stage2 = tiny_stage2(**changes)
    return TrainStage(
        model or tiny_model(),
        tiny_stage1(),
        stage2,
        seed=seed,
        has_references=has_references,
        global_batch=8,
        pretrained=stage1_state("quality" if stage2.variant == "v1" else "dual"),
    )


def optimiser(stage: TrainStage, scale: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        [{"params": g["params"], "lr": scale * g["lr"]} for g in stage.parameter_groups()]
    )


def step(stage: TrainStage, optim: torch.optim.Optimizer, batch: dict[str, Tensor], seed: int = 0):
    torch.manual_seed(seed)  # dropout; the training loop does this per step
    loss, metrics = stage(batch)
    optim.zero_grad()
    loss.backward()
    optim.step()
    stage.after_step()
    return float(loss.detach()), metrics
