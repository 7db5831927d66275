"""Stage 1: the extractor learns degradation and quality by two masked contrastive losses (paper
3.2).

L = w_deg L_deg + w_qual L_qual.

Shapes: B images of this rank, 4 crops x11, x12, x21, x22.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dri_iqa.config import ConfigError, ModelConfig, Stage1Config
from dri_iqa.models.checks import check_extractor
from dri_iqa.models.dre import DRE
from dri_iqa.models.dri_iqa import EXTRACTOR
from dri_iqa.models.parallel import average_running_statistics
from dri_iqa.models.weights import seeded
from dri_iqa.stages.base import Batch, Metrics, Stage, to_float
from dri_iqa.stages.momentum import MomentumContrast


class PretrainStage(Stage):
    """Query extractor, key encoder and queues.

    Args:
        model: its crop and extractor are used.
        stage1: contrast, rates, halves.
        seed: of the run: initial weights and shuffles.
        global_batch: images of all ranks per optimisation step.

    Raises:
        ConfigError: sizes that clash.
    """

    def __init__(
        self, model: ModelConfig, stage1: Stage1Config, *, seed: int, global_batch: int
    ) -> None:
        super().__init__()
        check_extractor(model.dre, model.crop)
        self.config, self.model_config = stage1, model
        halves = ("up", "low") if stage1.halves == "dual" else ("low",)
        weights = {"up": stage1.moco.w_deg, "low": stage1.moco.w_qual}
        if any(weights[half] <= 0 for half in halves):
            raise ConfigError(
                f"moco.w_deg={weights['up']} and w_qual={weights['low']} must be positive; "
                "stage1.halves=quality leaves the degradation half out"
            )
        with seeded(seed, EXTRACTOR):
            self.query = DRE(model.dre)
            self.contrast = MomentumContrast(
                model.dre, stage1.moco, halves, seed=seed, batch=global_batch
            )
        self.contrast.copy_query(self.query.encoder, self.query.heads)
        self.query.heads.up.requires_grad_("up" in halves)

    def prepare(self, batch: Batch) -> Batch:
        """Adds `keys_BPD`, and fills the queues with them."""
        keys_BPD = self.contrast.enqueue(
            batch["crops_B4CHW"],
            batch["type_mask_B2"],
            batch["recipe_hash_B2"],
            batch["image_id_B"],
        )
        return batch | {"keys_BPD": keys_BPD}

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Weighted sum of the losses, and metrics.

        Args:
            batch: `crops_B4CHW` uint8, `type_mask_B2`, `recipe_hash_B2` and `image_id_B` int64.
        """
        if "keys_BPD" not in batch:
            batch = self.prepare(batch)
        crops_B4CHW = batch["crops_B4CHW"]
        anchors = torch.cat([crops_B4CHW[:, crop] for crop in self.contrast.anchor_crops])
        losses, metrics = self.contrast(
            self.query.encode(to_float(anchors))[-1],
            self.query.heads,
            batch["keys_BPD"],
            batch["type_mask_B2"],
            batch["recipe_hash_B2"],
            batch["image_id_B"],
        )
        moco = self.config.moco
        loss = moco.w_qual * losses["qual"]
        if "deg" in losses:
            loss = loss + moco.w_deg * losses["deg"]
        return loss, {"loss": loss.detach(), **metrics}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, `dre`, at the stage's rate."""
        params = [p for p in self.query.parameters() if p.requires_grad]
        return [{"name": "dre", "params": params, "lr": self.config.optim.lr}]

    def after_step(self) -> None:
        """The key encoder follows; ranks agree on BatchNorm's running statistics."""
        self.contrast.follow(self.query.encoder, self.query.heads)
        average_running_statistics(self)

    def networks(self) -> list[nn.Module]:
        """Both encoders."""
        return [self.query.encoder, self.contrast.key.encoder]
