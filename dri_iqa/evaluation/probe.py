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
from torch import Tensor, nn

from dri_iqa.bundle_head import ProbeFacts
from dri_iqa.config import DegradeConfig
from dri_iqa.degradations import GROUPS, OPERATORS, Recipe, Step, apply_recipe
from dri_iqa.models.dre import lower, upper
from dri_iqa.models.dri_iqa import evaluating
from dri_iqa.probe import DegradationProbe, LinearProbe
from dri_iqa.seeds import Purpose, generator
from dri_iqa.stages.base import to_float

TYPES = tuple(name for names in GROUPS.values() for name in names)
"""The single operators that a probe tells apart, in the order of their classes."""

CLEAN = "none"
"""The class after them where clean views are asked for: nothing was done to the picture."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of which a bundle's probe takes the one whose probabilities fit best."""

HALVES = {"up": upper, "low": lower}
"""Which half of the extractor's last map: degradation, quality."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Crops of clean images under single operators, with everything a probe asks about them."""

    crops_NCHW: Tensor
    """uint8."""
    type_N: Tensor
    """Index into `TYPES`; one more for clean views."""
    level_N: Tensor
    """0..4 for levels 1..5; -1 for clean views."""
    image_N: Tensor
    """Number of the image, as it came."""


def make_views(
    images: Iterable[tuple[int, np.ndarray]],
    *,
    seed: int,
    crop: int,
    config: DegradeConfig | None = None,
    clean: bool = False,
) -> Views:
    """Every image once under each type, at a level drawn uniformly; the same place of an image
    under all types.

    Args:
        images: (number, uint8 HWC) with sides of at least `crop`; the number seeds the draws.
        seed: of the run.
        crop: side of the crops in pixels.
        config: `region`, `levels` and `speckle` are used.
        clean: show each of them as it is, too.
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
        if clean:
            crops.append(region_HWC[top : top + crop, left : left + crop].transpose(2, 0, 1))
            labels.append((len(TYPES), -1, number))
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
    encoder: nn.Module,
    crops_NCHW: Tensor,
    batch: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Pooled halves of the last map, before any head: {"up", "low"}, each (N, F) float32 on the
    CPU.

    Args:
        encoder: gives the five maps of float images, e.g. `DREEncoder`.
        crops_NCHW: uint8.
        batch: views per pass; None takes as many as hold a million pixels, so that memory does not
            grow with the crop.
        device: of the encoder.
    """
    batch = batch or max(1, 2**20 // crops_NCHW[0, 0].numel())
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
        errors[name] = LinearProbe.fit(fit_features_NF, labels[0]).error(
            test_features_NF, labels[1]
        )
    content_N = torch.unique(test.image_N, return_inverse=True)[1]
    even_N = test.type_N % 2 == 0
    content = LinearProbe.fit(test_features_NF[even_N], content_N[even_N])
    errors["content"] = content.error(test_features_NF[~even_N], content_N[~even_N])
    return errors


def fit_degradation_probe(
    encoder: nn.Module,
    fit: Views,
    test: Views,
    *,
    unseen: bool,
    device: str | torch.device = "cpu",
) -> DegradationProbe:
    """The probe of the degradation type that goes into a bundle, with its accuracy.

    Its penalty is the one that makes the likeliest probabilities on photographs that were left
    out: a probe that is as sure as it is right, which the most accurate one need not be.

    Args:
        encoder: of the finished model.
        fit: views of the photographs that it is fitted on, clean ones included.
        test: likewise of others, for the accuracy.
        unseen: whether the extractor never trained on these others.
        device: of the encoder.
    """
    known_NF = half_features(encoder, fit.crops_NCHW, device=device)["up"]
    asked_NF = half_features(encoder, test.crops_NCHW, device=device)["up"]
    linear = LinearProbe.fit(known_NF, fit.type_N, _best_penalty(fit, known_NF))
    facts = ProbeFacts(
        kinds=(*TYPES, CLEAN),
        accuracy=linear.accuracy(asked_NF, test.type_N),
        fitted_on=len(fit.image_N.unique()),
        tested_on=len(test.image_N.unique()),
        unseen=unseen,
    )
    return DegradationProbe(facts=facts, linear=linear)


def _best_penalty(views: Views, features_NF: Tensor) -> float:
    """By the log loss on one half of the images, fitted on the other."""
    image_N = torch.unique(views.image_N, return_inverse=True)[1]
    known_N = image_N < (int(image_N.max()) + 1) // 2

    def loss(penalty: float) -> float:
        probe = LinearProbe.fit(features_NF[known_N], views.type_N[known_N], penalty)
        return probe.log_loss(features_NF[~known_N], views.type_N[~known_N])

    return min(PENALTIES, key=loss)
