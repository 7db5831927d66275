"""The smallest configurations that keep every relation between sizes; tests and the tiny preset
share their scale.

Batches made here follow the stages' formats with random pixels; shapes: B images, 4 crops, C
channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dri_iqa.config import (
    BackboneConfig,
    DREConfig,
    MoCoConfig,
    ModelConfig,
    OptimConfig,
    PerceptualConfig,
    PredictorConfig,
    RAMConfig,
    Stage1Config,
    Stage2Config,
)

CROP = 64


def tiny_model(**changes: Any) -> ModelConfig:
    """Crop 64, extractor width 8, a ViT of width 48 and a NAFNet of width 4."""
    settings: dict[str, Any] = {
        "crop": CROP,
        "dre": DREConfig(width=8, norm="gn", proj_dim=32),
        "backbone": BackboneConfig(
            name="vit_tiny_patch16_224",
            weights="none",
            blocks=(0, 1, 2, 3),
            kwargs={"img_size": CROP, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
        ),
        "predictor": PredictorConfig(embed_dim=48, swin_mlp=48),
        "ram": RAMConfig(width=4, size="tiny"),
    }
    return ModelConfig(**(settings | changes))


def tiny_stage1(**changes: Any) -> Stage1Config:
    """Queues of 256 keys, batches of 8."""
    settings: dict[str, Any] = {
        "moco": MoCoConfig(queue_size=256),
        "optim": OptimConfig(batch_size=8, epochs=2, lr=2e-3),
        "n_clean": None,
    }
    return Stage1Config(**(settings | changes))


def tiny_stage2(**changes: Any) -> Stage2Config:
    """Batches of 8 labelled and 8 auxiliary crops, SqueezeNet with random weights."""
    settings: dict[str, Any] = {
        "optim": OptimConfig(batch_size=8, epochs=2),
        "perceptual": PerceptualConfig(backbone="squeezenet1_1", weights="random"),
        "aux_batch": 8,
    }
    return Stage2Config(**(settings | changes))


def stage1_batch(batch: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """A stage-1 batch of random pixels and metadata."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "crops_B4CHW": _pixels(rng, batch, 4, 3, CROP, CROP),
        "type_mask_B2": torch.randint(1, 8, (batch, 2), generator=rng),
        "recipe_hash_B2": torch.randint(1, 1000, (batch, 2), generator=rng),
        "image_id_B": torch.randperm(10 * batch, generator=rng)[:batch],
    }


def stage2_batch(batch: int = 8, aux: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """A stage-2 batch with every stream."""
    rng = torch.Generator().manual_seed(seed)
    views = _pixels(rng, batch, 4, 3, CROP, CROP)
    extra = stage1_batch(aux, seed + 1000)
    return {
        "image_BCHW": views[:, 0].clone(),
        "score_B": torch.rand(batch, generator=rng),
        "reference_BCHW": _pixels(rng, batch, 3, CROP, CROP),
        "views_B4CHW": views,
        "type_mask_B2": torch.randint(1, 8, (batch, 2), generator=rng),
        "recipe_hash_B2": torch.randint(1, 1000, (batch, 2), generator=rng),
        "image_id_B": torch.randperm(10 * batch, generator=rng)[:batch],
        "has_sibling_B": torch.rand(batch, generator=rng) > 0.2,
        "aux_crops_A4CHW": extra["crops_B4CHW"],
        "aux_clean_ACHW": _pixels(rng, aux, 3, CROP, CROP),
        "aux_type_mask_A2": extra["type_mask_B2"],
        "aux_recipe_hash_A2": extra["recipe_hash_B2"],
        "aux_image_id_A": extra["image_id_B"],
        "order_crops_P2CHW": _pixels(rng, batch, 2, 3, CROP, CROP),
    }


def _pixels(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
