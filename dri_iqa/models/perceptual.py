"""Perceptual distance: L1 between features of a frozen ImageNet network (paper Eq. 3).

VGG-19 with relu1_1 ... relu5_1 weighted 1/32, 1/16, 1/8, 1/4, 1, or SqueezeNet 1.1 at the seven
depths that LPIPS reads, weighted equally. The target's features carry no gradient.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, VGG19_Weights
from torchvision.models.squeezenet import squeezenet1_1
from torchvision.models.vgg import cfgs, make_layers

from dri_iqa.config import PerceptualConfig
from dri_iqa.models.weights import RANDOM, from_hub, load_strictly, read_safetensors, seeded

_TAPS = {
    "vgg19": ((1, 6, 11, 20, 29), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)),
    "squeezenet1_1": ((1, 4, 7, 9, 10, 11, 12), (1 / 7,) * 7),
}
_HUB = {"vgg19": VGG19_Weights.IMAGENET1K_V1, "squeezenet1_1": SqueezeNet1_1_Weights.IMAGENET1K_V1}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREFIX = "features."


class PerceptualDistance(nn.Module):
    """Frozen features and the distance between them.

    Args:
        config: which network, whose weights; `backbone = none` has no distance and is not built.
        seed: of random weights.
        part: number of the part in the seed.

    Raises:
        ConfigError: weights that cannot be had or do not fit.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: PerceptualConfig, *, seed: int = 0, part: int = 0) -> None:
        super().__init__()
        taps, self.weights = _TAPS[config.backbone]
        with seeded(seed, part):
            features = _features(config.backbone)[: taps[-1] + 1]
        if config.weights not in RANDOM:
            state = _state(config)
            own = {
                name.removeprefix(_PREFIX): tensor
                for name, tensor in state.items()
                if name.startswith(_PREFIX) and int(name.split(".")[1]) <= taps[-1]
            }
            load_strictly(
                features, own, f"perceptual.weights={config.weights} for {config.backbone}"
            )
        starts = (0, *(tap + 1 for tap in taps[:-1]))
        self.slices = nn.ModuleList(features[a : b + 1] for a, b in zip(starts, taps, strict=True))
        self.normalise = config.imagenet_norm
        self.register_buffer("mean_C", torch.tensor(_MEAN))
        self.register_buffer("std_C", torch.tensor(_STD))
        self.requires_grad_(False)
        # pooling is a third of SqueezeNet's time on a CPU, and several times faster in this layout
        self.to(memory_format=torch.channels_last)

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Scalar distance of RGB images in [0, 1]; the gradient reaches the first argument only."""
        with torch.no_grad():
            targets = self.features(target_BCHW)
        pairs = zip(self.features(image_BCHW), targets, self.weights, strict=True)
        return torch.stack([w * F.l1_loss(a.float(), b.float()) for a, b, w in pairs]).sum()

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """The tapped maps, finest first."""
        x = image_BCHW
        if self.normalise:
            x = (x - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        x = x.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for part in self.slices:
            x = part(x)
            maps.append(x)
        return maps


def _features(name: str) -> nn.Sequential:
    if name == "squeezenet1_1":
        return squeezenet1_1(weights=None).features
    # the layers alone: vgg19() would also draw 120 million classifier weights that nothing reads
    features = make_layers(cfgs["E"], batch_norm=False)
    for layer in features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


def _state(config: PerceptualConfig) -> Mapping[str, Tensor]:
    key = "perceptual.weights"
    if config.weights != "pretrained":
        return read_safetensors(config.weights, key)
    weights = _HUB[config.backbone]
    return cast(
        Mapping[str, Tensor],
        from_hub(
            lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True), key
        ),
    )
