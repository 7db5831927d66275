"""What the two halves of the extractor know: linear probes, and a picture of both (paper Fig. 6).

The paper claims that the degradation half tells degradations apart and that the quality half is
little affected by content. Here that becomes numbers: linear classifiers of the degradation type
and of its level, and of the image itself, on frozen features. Every image is shown once under every
type; the classifiers of type and level are tested on other *images* than they were fitted on, the
one of content on other *types*.

Shapes: N views, F features, K classes, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import GROUPS, OPERATORS, Recipe, Step, apply_recipe
from dri_iqa.models.dre import lower, upper
from dri_iqa.models.dri_iqa import evaluating
from dri_iqa.seeds import Purpose, generator
from dri_iqa.stages.base import to_float

TYPES = tuple(name for names in GROUPS.values() for name in names)
"""The single operators that a probe tells apart, in the order of their classes."""

HALVES = {"up": upper, "low": lower}
"""Which half of the extractor's last map: degradation, quality."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Crops of clean images under single operators, with everything a probe asks about them."""

    crops_NCHW: Tensor
    """uint8."""
    type_N: Tensor
    """Index into `TYPES`."""
    level_N: Tensor
    """0..4 for levels 1..5."""
    image_N: Tensor
    """Number of the image, as it came."""


def make_views(
    images: Iterable[tuple[int, np.ndarray]],
    *,
    seed: int,
    crop: int,
    config: DegradeConfig | None = None,
) -> Views:
    """Every image once under each type, at a level drawn uniformly; the same place of an image
    under all types.

    Args:
        images: (number, uint8 HWC) with sides of at least `crop`; the number seeds the draws.
        seed: of the run.
        crop: side of the crops in pixels.
        config: `region`, `levels` and `speckle` are used.
    """
    config = config or DegradeConfig()
    crops, labels = [], []
    for number, image_HWC in images:
        place = generator(seed, Purpose.PROBE, number, len(TYPES))
        region_HWC, (top, left) = _place(place, image_HWC, crop, config.region)
        for kind, name in enumerate(TYPES):
            rng = generator(seed, Purpose.PROBE, number, kind)
            level = int(rng.integers(1, 6))
            sign = 1 - 2 * int(rng.integers(2)) if OPERATORS[name].draws_sign(config.levels) else 1
            view_HWC = apply_recipe(region_HWC, Recipe((Step(name, level, sign),)), rng, config)
            crops.append(view_HWC[top : top + crop, left : left + crop].transpose(2, 0, 1))
            labels.append((kind, level - 1, number))
    types_N, levels_N, images_N = torch.tensor(labels, dtype=torch.int64).T
    return Views(
        crops_NCHW=torch.from_numpy(np.stack(crops)),
        type_N=types_N,
        level_N=levels_N,
        image_N=images_N,
    )


def _place(
    rng: np.random.Generator, image_HWC: np.ndarray, crop: int, side: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """A random region, and the top and left of a crop in it."""
    height, width = (min(side, size) for size in image_HWC.shape[:2])
    top, left = (
        int(rng.integers(size - part + 1))
        for size, part in zip(image_HWC.shape[:2], (height, width), strict=True)
    )
    region_HWC = np.ascontiguousarray(image_HWC[top : top + height, left : left + width])
    return region_HWC, (int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1)))


def half_features(
    encoder: nn.Module, crops_NCHW: Tensor, batch: int = 256, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Pooled halves of the last map, before any head: {"up", "low"}, each (N, F) float32 on the
    CPU.

    Args:
        encoder: gives the five maps of float images, e.g. `DREEncoder`.
        crops_NCHW: uint8.
        batch: views per pass.
        device: of the encoder.
    """
    parts: dict[str, list[Tensor]] = {half: [] for half in HALVES}
    with evaluating(encoder), torch.no_grad():
        for chunk in crops_NCHW.split(batch):
            last_NCHW = encoder(to_float(chunk.to(device)))[-1]
            for half, take in HALVES.items():
                parts[half].append(take(last_NCHW).float().mean((2, 3)).cpu())
    return {half: torch.cat(chunks) for half, chunks in parts.items()}


def pixel_statistics(crops_NCHW: Tensor) -> Tensor:
    """What needs no network: mean, deviation and mean absolute gradient along both axes of every
    channel, (N, 12).
    """
    x_NCHW = to_float(crops_NCHW)
    gradients = [x_NCHW.diff(dim=axis).abs().mean((2, 3)) for axis in (2, 3)]
    return torch.cat((x_NCHW.mean((2, 3)), x_NCHW.std((2, 3)), *gradients), dim=1)


class LinearProbe:
    """Multinomial logistic regression on standardised features, fitted to convergence in float64.

    Args:
        features_NF: of the training views.
        label_N: classes 0..K-1.
        penalty: weight of the squared weights, relative to the mean cross-entropy.
    """

    def __init__(self, features_NF: Tensor, label_N: Tensor, penalty: float = 1e-3) -> None:
        features_NF = features_NF.double()
        self.mean_F = features_NF.mean(0)
        self.scale_F = features_NF.std(0).clamp(min=1e-8)
        x_NF = (features_NF - self.mean_F) / self.scale_F
        classes = int(label_N.max()) + 1
        self.weight_KF = torch.zeros(classes, x_NF.shape[1], dtype=torch.float64)
        self.bias_K = torch.zeros(classes, dtype=torch.float64)
        parameters = [self.weight_KF.requires_grad_(), self.bias_K.requires_grad_()]
        optimiser = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(x_NF @ self.weight_KF.T + self.bias_K, label_N)
            loss = loss + 0.5 * penalty * self.weight_KF.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        for parameter in parameters:
            parameter.requires_grad_(False)

    def predict(self, features_NF: Tensor) -> Tensor:
        """The likeliest class of every row, (N,)."""
        x_NF = (features_NF.double() - self.mean_F) / self.scale_F
        return (x_NF @ self.weight_KF.T + self.bias_K).argmax(1)

    def error(self, features_NF: Tensor, label_N: Tensor) -> float:
        """Share of rows that are classified wrongly."""
        return float((self.predict(features_NF) != label_N).double().mean())


def probe_errors(
    fit: Views, fit_features_NF: Tensor, test: Views, test_features_NF: Tensor
) -> dict[str, float]:
    """Error rates of three linear probes on one kind of features.

    Args:
        fit: views of the images that the classifiers of type and level are fitted on.
        fit_features_NF: their features.
        test: views of other images. Their content is learnt under every second type and tested
            under the others.
        test_features_NF: their features.

    Returns:
        `type`, `level` and `content`: shares of wrong answers. Guessing gives 1 - 1/K, with K = 24,
        5 and the number of test images.
    """
    errors = {}
    for name in ("type", "level"):
        labels = getattr(fit, f"{name}_N"), getattr(test, f"{name}_N")
        errors[name] = LinearProbe(fit_features_NF, labels[0]).error(test_features_NF, labels[1])
    content_N = torch.unique(test.image_N, return_inverse=True)[1]
    even_N = test.type_N % 2 == 0
    content = LinearProbe(test_features_NF[even_N], content_N[even_N])
    errors["content"] = content.error(test_features_NF[~even_N], content_N[~even_N])
    return errors
