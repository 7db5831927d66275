"""The relations between sizes that the architecture relies on, checked before anything is built."""

from __future__ import annotations

from math import prod

from dri_iqa.config import ConfigError, DREConfig, ModelConfig

TOKENS = (8, 16, 32)
"""Pixels a token may have: the strides of the extractor's last layers, whose maps then need hardly any resampling."""


def token_grid(config: ModelConfig) -> int:
    """Side of the predictor's token grid."""
    return config.crop // config.predictor.token


def check_extractor(config: DREConfig, crop: int) -> None:
    """Widths, strides and crop of the extractor.

    Raises:
        ConfigError: naming the numbers that clash.
    """
    if config.width < 2 or config.width % 2:
        raise ConfigError(
            f"dre.width={config.width} must be even: every layer is split into two halves"
        )
    if config.strides[0] not in (1, 2) or config.strides[1:] != (2, 2, 2, 2):
        raise ConfigError(
            f"dre.strides={config.strides} must be (1, 2, 2, 2, 2), or (2, 2, 2, 2, 2) at half size"
        )
    step = prod(config.strides)
    if crop % step:
        raise ConfigError(
            f"crop={crop} is no multiple of {step}, the extractor's total stride {config.strides}"
        )
    if config.proj == "mlp" and config.proj_dim < 2:
        raise ConfigError(f"dre.proj_dim={config.proj_dim} must be at least 2")


def check_model(config: ModelConfig) -> None:
    """All relations of the whole model.

    Raises:
        ConfigError: naming the numbers that clash.
    """
    predictor, grid = config.predictor, token_grid(config)
    if config.crop % 16:
        raise ConfigError(f"crop={config.crop} is no multiple of 16: NAFNet halves it four times")
    check_extractor(config.dre, config.crop)
    if predictor.token not in TOKENS or config.crop % predictor.token:
        raise ConfigError(
            f"predictor.token={predictor.token} must be one of {TOKENS} and divide crop={config.crop}"
        )
    if grid > predictor.window and grid % predictor.window:
        raise ConfigError(
            f"predictor.window={predictor.window} does not divide the token grid {grid} "
            f"(crop={config.crop}, predictor.token={predictor.token} pixels a token)"
        )
    if len(predictor.swin_depths) != len(predictor.swin_heads):
        raise ConfigError(
            f"predictor.swin_depths={predictor.swin_depths} and swin_heads={predictor.swin_heads} "
            "differ in length"
        )
    for heads in predictor.swin_heads:
        if predictor.embed_dim % 2 or (predictor.embed_dim // 2) % heads:
            raise ConfigError(
                f"predictor.embed_dim={predictor.embed_dim}: half of it must be a multiple of "
                f"swin_heads={heads}"
            )
    if predictor.num_tgb < 1:
        raise ConfigError(f"predictor.num_tgb={predictor.num_tgb} must be at least 1")
    levels = predictor.cfb_levels
    if (
        not levels
        or not all(1 <= level <= 5 for level in levels)
        or len(set(levels)) != len(levels)
    ):
        raise ConfigError(f"predictor.cfb_levels={levels} must be different layers from 1 to 5")


def check_restoration(config: ModelConfig) -> None:
    """The restoration network against the extractor that guides it.

    Raises:
        ConfigError: naming the numbers that clash.
    """
    if config.ram.guidance != "none" and config.ram.width * 2 != config.dre.width:
        raise ConfigError(
            f"ram.width={config.ram.width} must be half of dre.width={config.dre.width}, so that every "
            "layer's half fits the level that it guides"
        )
    if config.ram.guidance == "add" and config.ram.guide_channels == "full":
        raise ConfigError(
            "ram.guidance=add needs ram.guide_channels=upper: whole layers are twice as wide"
        )
