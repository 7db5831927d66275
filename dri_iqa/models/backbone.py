"""Image features of the predictor: any timm model's maps, concatenated on the token grid.

Paper 3.1 takes MANIQA's features: blocks 6-9 of ViT-B/8 without the class token (MANIQA
models/maniqa.py). Blocks after the last one read are cut off, so nothing is computed that nobody
reads.

Shapes: B images, C channels (all tapped maps together), H x W pixels, S x S tokens of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.config import BackboneConfig, ConfigError
from dri_iqa.models.mobile import fold_norms
from dri_iqa.models.weights import RANDOM, choices, from_hub, read_safetensors


class Backbone(nn.Module):
    """A timm model cut after its last tapped block.

    Args:
        config: model name, weights, tapped blocks.
        crop: side of the images in pixels.
        grid: side of the token grid that the maps are brought to.
        load_weights: False leaves the initial weights (something else is loaded over them).

    Raises:
        ConfigError: an unknown model, one without intermediate features, blocks it does not have,
            an image size other than the crop, or weights that cannot be loaded.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: BackboneConfig, *, crop: int, grid: int, load_weights: bool) -> None:
        super().__init__()
        self.blocks = list(config.blocks)
        self.grid = grid
        self.net: Any = create_network(config, load_weights)
        if not hasattr(self.net, "prune_intermediate_layers"):
            raise ConfigError(
                f"backbone.name={config.name} has no intermediate features in timm {timm.__version__}"
            )
        if sorted(set(self.blocks)) != self.blocks or not self.blocks:
            raise ConfigError(f"backbone.blocks must increase, got {config.blocks}")
        check_image_size(self.net, config, crop)
        info = self.net.feature_info
        count = len(info)
        if not 0 <= self.blocks[0] <= self.blocks[-1] < count:
            raise ConfigError(
                f"backbone.blocks={config.blocks}, but {config.name} has blocks 0..{count - 1}"
            )
        self.widths = [int(info[block]["num_chs"]) for block in self.blocks]
        self.channels = sum(self.widths)
        with torch.no_grad():
            self.net.prune_intermediate_layers(self.blocks, prune_norm=True, prune_head=True)
        fold_norms(self.net)
        statistics = self.net.pretrained_cfg
        self.register_buffer("mean_C", torch.tensor(statistics["mean"], dtype=torch.float32))
        self.register_buffer("std_C", torch.tensor(statistics["std"], dtype=torch.float32))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, S, S) features of RGB images in [0, 1] of the configured crop."""
        return self.on_grid(self.maps(image_BCHW))

    def maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """The tapped maps one by one, at their own resolutions."""
        x_BCHW = (image_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return self.net.forward_intermediates(x_BCHW, indices=self.blocks, intermediates_only=True)

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """These maps on the token grid, side by side: (B, C, S, S)."""
        return torch.cat([to_grid(map_BCHW, self.grid) for map_BCHW in maps], dim=1)

    def set_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.net.set_grad_checkpointing(True)


def to_grid(map_BCHW: Tensor, side: int) -> Tensor:
    """A square map resampled to side x side: cell means when it shrinks, bilinear when it grows."""
    if map_BCHW.shape[2] == side and map_BCHW.shape[3] == side:
        return map_BCHW
    if map_BCHW.shape[2] > side:
        return F.adaptive_avg_pool2d(map_BCHW, side)
    return F.interpolate(map_BCHW, size=(side, side), mode="bilinear", align_corners=False)


def create_network(config: BackboneConfig, load_weights: bool) -> nn.Module:
    """The whole timm model of a configuration, with its weights.

    Raises:
        ConfigError: an unknown model, or weights that cannot be loaded.
    """
    key = "backbone.weights"

    def create(**more: Any) -> nn.Module:
        try:
            return timm.create_model(config.name, **config.kwargs, **more)
        except TypeError as error:
            raise ConfigError(
                f"backbone.kwargs={config.kwargs} do not fit {config.name}: {error}"
            ) from None

    if not timm.is_model(config.name):
        raise ConfigError(f"backbone.name={config.name} is no model of timm {timm.__version__}")
    if not load_weights or config.weights in RANDOM:
        return create(pretrained=False)
    if config.weights == "pretrained":
        return cast(nn.Module, from_hub(lambda: create(pretrained=True), key))
    state = _with_own_classifier(read_safetensors(config.weights, key), create(pretrained=False))
    try:
        # timm's own loader resamples position embeddings to the configured image size
        return create(pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[:2])[:300]
        raise ConfigError(
            f"{key}={config.weights} does not fit {config.name}: {reason}; {choices(key)}"
        ) from None


def _with_own_classifier(state: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The file's tensors with a random classifier, which is cut off later and may be absent."""
    names = net.pretrained_cfg["classifier"] or ()
    prefixes = tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names))
    own = {n: t for n, t in net.state_dict().items() if n.startswith(prefixes)} if prefixes else {}
    return {n: t for n, t in state.items() if not prefixes or not n.startswith(prefixes)} | own


def check_image_size(net: Any, config: BackboneConfig, crop: int) -> None:
    """Whether a network takes square images of a side.

    Raises:
        ConfigError: it takes another size only.
    """
    size = getattr(getattr(net, "patch_embed", None), "img_size", None)
    if size is None or getattr(net, "dynamic_img_size", False):
        return
    if tuple(size) != (crop, crop):
        raise ConfigError(
            f"backbone {config.name} takes {size[0]}x{size[1]} images but crop={crop}: "
            f"set backbone.kwargs.img_size={crop}"
        )
