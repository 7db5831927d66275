"""A regression that remembers the training images, beside a network that was trained on them.

Not in the paper. A few thousand photographs are learnt by heart in a few epochs: the network's scores then vary with
how it was trained, and a kernel regression on pooled maps of the backbone as it was before training, which cannot
overfit them so, errs elsewhere. Their mean ranks BIQ2021 better than either (docs/results.md).

It can also be told what no one has to judge: a clean photograph's score should fall from level to level of a
degradation (`companion.order_series`). That costs little of its agreement with people and orders degradations that the
network is indifferent to (docs/results.md).

Shapes: B images, C channels, H x W pixels, F statistics, I training images, S series of L levels (the first as it is,
each worse than the one before), N = I + S landmarks, P pairs of neighbouring levels.
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
MOST_ROUNDS = 30
"""Of Newton's method for the order of levels; five or so are enough."""
JITTER = 1e-6
"""On the diagonal of its equations: two landmarks may be as good as equal."""


class KernelCompanion(nn.Module):
    """Ridge regression with a Gaussian kernel between an image's pooled maps and those of the training images.

    Scores are 0 until `fit`. Nothing of it trains by gradient.

    Args:
        config: `companion.images` is the number of training images, and `order_series` of series, exactly.
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
        self.sizes = sizes
        count = 2 * sum(self.backbone.widths)
        self.register_buffer("mean_F", torch.zeros(count))
        self.register_buffer("scale_F", torch.ones(count))
        # half the bytes; what rounding changes is far below the differences between crops of one image
        self.register_buffer(
            "landmark_NF", torch.zeros(sizes.landmarks, count, dtype=torch.float16)
        )
        self.register_buffer("weight_N", torch.zeros(sizes.landmarks))
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
        # In double precision: thousands of weights of either sign nearly cancel, and in single precision the fifth
        # digit of a score would depend on the order in which a library sums them.
        kernel_BN = _gaussian(
            self._standard(statistics_BF).double(), self.landmark_NF.double(), self.sizes.gamma
        )
        return (kernel_BN @ self.weight_N.double() + self.offset).to(statistics_BF.dtype)

    @torch.no_grad()
    def fit(
        self, statistics_IF: Tensor, score_I: Tensor, series_SLF: Tensor | None = None
    ) -> tuple[float, float | None]:
        """The regression whose penalty has the least leave-one-out error, and with it the order of levels.

        With series, the weights are those with the least

            mean (error of a score)^2 + order_weight mean max(0, order_margin - fall)^2 + penalty / I |f|^2

        over training images and pairs of neighbouring levels, |f| the norm of the kernel's space.

        Args:
            statistics_IF: of the training images, as many as were announced.
            score_I: their normalised scores.
            series_SLF: statistics of the same places of clean photographs from level to level, as many series as
                were announced; none where none were.

        Returns:
            The penalty, and the share of the series' steps over which scores fall (None without series).

        Raises:
            ValueError: fewer than two images, or another number of images or series than announced.
        """
        sizes = self.sizes
        series = 0 if series_SLF is None else len(series_SLF)
        if not 2 <= len(statistics_IF) == sizes.images == len(score_I):
            raise ValueError(
                f"a companion of {sizes.images} images got {len(statistics_IF)} statistics and "
                f"{len(score_I)} scores; expected as many, and at least two"
            )
        if series != sizes.order_series:
            raise ValueError(f"a companion of {sizes.order_series} series got {series}")
        mean_F, scale_F = statistics_IF.mean(0), statistics_IF.std(0).clamp(min=FLOOR)
        self.mean_F.copy_(mean_F)
        self.scale_F.copy_(scale_F)
        image_IF = self._rounded(self._standard(statistics_IF))
        offset = score_I.double().mean()
        self.offset.copy_(offset)
        centred_I = score_I.double() - offset
        weight_I, penalty = _least_left_out(_gaussian(image_IF, image_IF, sizes.gamma), centred_I)
        if series_SLF is None:
            self.landmark_NF.copy_(image_IF)
            self.weight_N.copy_(weight_I)
            return penalty, None
        standard_SLF = self._standard(series_SLF)
        # of each series one picture, and of all series every level as often
        level_S = torch.arange(series) * standard_SLF.shape[1] // series
        seen_SF = self._rounded(standard_SLF[torch.arange(series), level_S])
        landmark_NF = torch.cat((image_IF, seen_SF))
        fall_PN = _falls(standard_SLF, landmark_NF.float(), sizes.gamma)
        weight_N = _in_order(
            _gaussian(landmark_NF, landmark_NF, sizes.gamma),
            centred_I,
            fall_PN,
            penalty=penalty,
            weight=sizes.order_weight,
            margin=sizes.order_margin,
        )
        self.landmark_NF.copy_(landmark_NF)
        self.weight_N.copy_(weight_N)
        return penalty, float((fall_PN @ weight_N.float() > 0).float().mean())

    def _standard(self, statistics: Tensor) -> Tensor:
        return (statistics - self.mean_F) / self.scale_F

    def _rounded(self, standard: Tensor) -> Tensor:
        """As landmarks are kept, in double precision."""
        return standard.to(self.landmark_NF.dtype).double()


def _least_left_out(kernel_II: Tensor, centred_I: Tensor) -> tuple[Tensor, float]:
    """Weights, and the penalty, for which images left out of the regression one at a time are told best."""
    values_I, vectors_II = torch.linalg.eigh(kernel_II)
    turned_I = vectors_II.T @ centred_I
    best: tuple[float, Tensor, float] | None = None
    for penalty in PENALTIES:
        inverse_I = 1 / (values_I.clamp(min=0) + penalty)
        weight_I = vectors_II @ (inverse_I * turned_I)
        # what an image's own score would be off by, had it been left out of the regression
        error_I = weight_I / (vectors_II.square() @ inverse_I)
        error = float(error_I.square().mean())
        if best is None or error < best[0]:
            best = (error, weight_I, penalty)
    assert best is not None
    return best[1], best[2]


def _falls(series_SLF: Tensor, landmark_NF: Tensor, gamma: float) -> Tensor:
    """By how much the kernel falls from every level to the next, (P, N), single precision: it is the largest matrix."""
    better_PF, worse_PF = (part.flatten(0, 1) for part in (series_SLF[:, :-1], series_SLF[:, 1:]))
    fall_PN = _gaussian(better_PF, landmark_NF, gamma)
    return fall_PN.sub_(_gaussian(worse_PF, landmark_NF, gamma))


def _in_order(
    kernel_NN: Tensor,
    centred_I: Tensor,
    fall_PN: Tensor,
    *,
    penalty: float,
    weight: float,
    margin: float,
) -> Tensor:
    """Weights of the landmarks by Newton's method: what is minimised is a square wherever the same pairs lack order."""
    kernel_IN = kernel_NN[: len(centred_I)]
    share = weight * len(centred_I) / len(fall_PN)
    plain_NN = kernel_IN.T @ kernel_IN + penalty * kernel_NN
    plain_NN.diagonal().add_(JITTER)
    plain_N = kernel_IN.T @ centred_I
    weight_N = torch.linalg.solve(plain_NN, plain_N)
    lacking_P = torch.zeros(len(fall_PN), dtype=torch.bool, device=fall_PN.device)
    for _ in range(MOST_ROUNDS):
        before_P, lacking_P = lacking_P, fall_PN @ weight_N.float() < margin
        if torch.equal(before_P, lacking_P):
            break
        chosen_QN = fall_PN[lacking_P]
        square_NN = (chosen_QN.T @ chosen_QN).double().mul_(share).add_(plain_NN)
        weight_N = torch.linalg.solve(
            square_NN, plain_N + share * margin * chosen_QN.sum(0).double()
        )
    return weight_N


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
