"""What a frozen network and a support vector regression reach on the same split: the mark to beat.

Pooled mean and deviation of a backbone's tapped maps and of its last one, at a fixed size, and an RBF regression on
them: nothing of the network is trained. A trained predictor that does not beat this was not worth its training.

Shapes: N images, F features, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dri_iqa.config import BackboneConfig, ConfigError
from dri_iqa.evaluation.metrics import srocc
from dri_iqa.images import decode, resize
from dri_iqa.models.backbone import check_image_size, create_network
from dri_iqa.models.dri_iqa import BACKBONE
from dri_iqa.models.weights import seeded

COSTS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties of the regression among which validation chooses."""


def pooled_features(
    images: Iterable[bytes],
    backbone: BackboneConfig,
    *,
    seed: int,
    size: int = 448,
    batch: int = 8,
) -> np.ndarray:
    """Mean and standard deviation over positions of every tapped map and the last one, (N, F) float32.

    Args:
        images: encoded pictures; each is resized to a square of `size` pixels.
        backbone: network, weights and taps (`blocks`), as for the predictor.
        seed: of the run, for weights that are drawn (`weights: none`).
        size: side in pixels.
        batch: pictures per pass.

    Raises:
        ConfigError: an unknown network, one of another image size, or weights that cannot be loaded.
    """
    with seeded(seed, BACKBONE):
        network: Any = create_network(backbone, load_weights=True).eval()
    check_image_size(network, backbone, size)
    statistics = network.pretrained_cfg
    mean_C, std_C = (
        torch.tensor(statistics[name], dtype=torch.float32)[:, None, None]
        for name in ("mean", "std")
    )
    rows: list[Tensor] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if not waiting:
            return
        pixels_BCHW = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).float().div_(255)
        waiting.clear()
        with torch.no_grad():
            last, maps = network.forward_intermediates(
                (pixels_BCHW - mean_C) / std_C, indices=list(backbone.blocks)
            )
        flat = [_positions_last(part) for part in (*maps, last)]
        rows.append(torch.cat([stat for f in flat for stat in (f.mean(2), f.std(2))], dim=1))

    for data in images:
        waiting.append(resize(decode(data), size, size))
        if len(waiting) == batch:
            flush()
    flush()
    return torch.cat(rows).numpy()


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A fitted regression on pooled features."""

    cost: float
    """The penalty that validation chose."""
    val_srocc: float
    """Its rank correlation on the validation part, fitted on the training part alone."""
    predicted_N: np.ndarray
    """Predictions for the test part, in label units."""


def fit_yardstick(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    test_NF: np.ndarray,
) -> Yardstick:
    """Support vector regression; its penalty is chosen on the validation part, then both parts are fitted.

    Args:
        train: features (N, F) and labels (N,).
        val: the same of the validation part.
        test_NF: features to predict for.

    Raises:
        ConfigError: fewer than two validation images: nothing to choose the penalty on.
    """
    if len(val[1]) < 2:
        raise ConfigError(
            f"the yardstick's penalty is chosen on validation images, the split has {len(val[1])}\n"
            "raise data.val_fraction or data.limit"
        )
    found = [(srocc(_fit(*train, cost).predict(val[0]), val[1]), -cost) for cost in COSTS]
    val_srocc, cost = max(found)
    both = np.concatenate((train[0], val[0])), np.concatenate((train[1], val[1]))
    model = _fit(*both, -cost)
    return Yardstick(cost=-cost, val_srocc=float(val_srocc), predicted_N=model.predict(test_NF))


def _fit(features_NF: np.ndarray, label_N: np.ndarray, cost: float) -> Any:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    regression = make_pipeline(StandardScaler(), SVR(C=cost, epsilon=0.1, gamma="scale"))
    model = TransformedTargetRegressor(regression, transformer=StandardScaler())
    return model.fit(features_NF.astype(np.float64), label_N)


def _positions_last(map_: Tensor) -> Tensor:
    """(B, C, positions) of a map (B, C, H, W) or of tokens (B, positions, C)."""
    return map_.flatten(2) if map_.ndim == 4 else map_.transpose(1, 2)
