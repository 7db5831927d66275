"""A regression that remembers the training images, beside a network that was trained on them.

Not in the paper. A few thousand photographs are learnt by heart in a few epochs: the network's scores then vary with
how it was trained, and a kernel regression on pooled maps of the backbone as it was before training, which cannot
overfit them so, errs elsewhere. Their mean ranks BIQ2021 better than either (docs/results.md).

Shapes: B images, C channels, H x W pixels, F statistics, N training images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dri_iqa.config import ModelConfig
from dri_iqa.models.backbone import Backbone
from dri_iqa.models.readout import FLOOR, pooled_statistics

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-5, 4))
"""Ridge penalties that are tried, for a kernel whose diagonal is 1."""


class KernelCompanion(nn.Module):
    """Ridge regression with a Gaussian kernel between an image's pooled maps and those of the training images.

    Scores are 0 until `fit`. Nothing of it trains by gradient.

    Args:
        config: `companion.images` is the number of training images, exactly.
        load_weights: False leaves the backbone's initial weights (a bundle's are loaded over them).

    Raises:
        ConfigError: blocks or weights that cannot be had.
    """

    mean_F: Tensor
    scale_F: Tensor
    landmark_NF: Tensor
    weight_N: Tensor
    offset: Tensor

    def __init__(self, config: ModelConfig, *, load_weights: bool) -> None:
        super().__init__()
        sizes = config.companion
        tapped = replace(config.backbone, blocks=sizes.blocks or config.backbone.blocks)
        self.backbone = Backbone(tapped, crop=config.crop, grid=1, load_weights=load_weights)
        self.gamma = sizes.gamma
        count = 2 * sum(self.backbone.widths)
        self.register_buffer("mean_F", torch.zeros(count))
        self.register_buffer("scale_F", torch.ones(count))
        # half the bytes; what rounding changes is far below the differences between crops of one image
        self.register_buffer("landmark_NF", torch.zeros(sizes.images, count, dtype=torch.float16))
        self.register_buffer("weight_N", torch.zeros(sizes.images))
        self.register_buffer("offset", torch.zeros(()))
        self.requires_grad_(False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B,) normalised scores of RGB crops in [0, 1]."""
        return self.score(self.statistics(image_BCHW))

    def statistics(self, image_BCHW: Tensor) -> Tensor:
        """What the kernel compares, (B, F), of RGB crops in [0, 1]; mean it over an image's crops."""
        return pooled_statistics(self.backbone.maps(image_BCHW))

    def score(self, statistics_BF: Tensor) -> Tensor:
        """(B,) normalised scores of pooled maps."""
        standard_BF = (statistics_BF - self.mean_F) / self.scale_F
        kernel_BN = _gaussian(standard_BF, self.landmark_NF.float(), self.gamma)
        return kernel_BN @ self.weight_N + self.offset

    @torch.no_grad()
    def fit(self, statistics_NF: Tensor, score_N: Tensor) -> float:
        """The regression whose penalty has the least leave-one-out error.

        Args:
            statistics_NF: of the training images, as many as were announced.
            score_N: their normalised scores.

        Returns:
            The penalty.

        Raises:
            ValueError: fewer than two images, or another number than announced.
        """
        if not 2 <= len(statistics_NF) == len(self.weight_N) == len(score_N):
            raise ValueError(
                f"a companion of {len(self.weight_N)} images got {len(statistics_NF)} statistics and "
                f"{len(score_N)} scores; expected as many, and at least two"
            )
        mean_F, scale_F = statistics_NF.mean(0), statistics_NF.std(0).clamp(min=FLOOR)
        landmark_NF = ((statistics_NF - mean_F) / scale_F).to(self.landmark_NF.dtype)
        kernel_NN = _gaussian(landmark_NF.double(), landmark_NF.double(), self.gamma)
        offset = score_N.double().mean()
        values_N, vectors_NN = torch.linalg.eigh(kernel_NN)
        turned_N = vectors_NN.T @ (score_N.double() - offset)
        best: tuple[float, Tensor, float] | None = None
        for penalty in PENALTIES:
            inverse_N = 1 / (values_N.clamp(min=0) + penalty)
            weight_N = vectors_NN @ (inverse_N * turned_N)
            # what an image's own score would be off by, had it been left out of the regression
            error_N = weight_N / (vectors_NN.square() @ inverse_N)
            error = float(error_N.square().mean())
            if best is None or error < best[0]:
                best = (error, weight_N, penalty)
        assert best is not None
        self.mean_F.copy_(mean_F)
        self.scale_F.copy_(scale_F)
        self.landmark_NF.copy_(landmark_NF)
        self.weight_N.copy_(best[1])
        self.offset.copy_(offset)
        return best[2]


def check_companion(config: ModelConfig) -> None:
    """Whether the companion that is fitted when training has ended can be built; said before training.

    Raises:
        ConfigError: blocks that the backbone does not have.
    """
    if config.companion.images:
        with torch.device("meta"):
            KernelCompanion(config, load_weights=False)


def _gaussian(x_BF: Tensor, y_NF: Tensor, gamma: float) -> Tensor:
    """exp(-gamma d^2), (B, N), with d^2 the mean over statistics."""
    square_BN = (
        x_BF.square().sum(1)[:, None] + y_NF.square().sum(1)[None] - 2 * x_BF @ y_NF.T
    ).clamp(min=0)
    return torch.exp(square_BN * (-gamma / x_BF.shape[1]))
