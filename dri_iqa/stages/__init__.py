"""What one optimisation step computes: contrastive pre-training, then joint training."""

from __future__ import annotations

from dri_iqa.plan import Plan, Streams, stage2_plan, stage2_streams
from dri_iqa.stages.base import Batch, Metrics, Stage
from dri_iqa.stages.pretrain import PretrainStage
from dri_iqa.stages.train import TrainStage

__all__ = [
    "Batch",
    "Metrics",
    "Plan",
    "PretrainStage",
    "Stage",
    "Streams",
    "TrainStage",
    "stage2_plan",
    "stage2_streams",
]
