from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from dri_iqa.config import BackboneConfig, ConfigError
from dri_iqa.evaluation import yardstick
from dri_iqa.evaluation.yardstick import COSTS, fit_yardstick, pooled_features

NETWORK = BackboneConfig(name="mobilenetv3_small_050", weights="none", blocks=(1, 2))
RNG = np.random.default_rng(0)


def png(pixels_HWC: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels_HWC).save(target, "PNG")
    return target.getvalue()


def test_features_are_means_and_deviations_of_every_map(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = yardstick.create_network(NETWORK, load_weights=True).eval()
    monkeypatch.setattr(yardstick, "create_network", lambda *_, **__: network)
    pictures = [RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(5)]
    found_NF = pooled_features(map(png, pictures), NETWORK, seed=0, size=96, batch=2)
    maps: list[torch.Tensor] = []
    for tap in NETWORK.blocks:
        part = network.get_submodule(network.feature_info[tap]["module"])
        part.register_forward_hook(lambda *args: maps.append(args[-1]))
    for picture, found_F in zip(pictures, found_NF, strict=True):
        maps.clear()
        x = torch.from_numpy(picture).permute(2, 0, 1).double() / 255
        mean, std = torch.tensor(network.pretrained_cfg["mean"]), network.pretrained_cfg["std"]
        x = (x - mean[:, None, None]) / torch.tensor(std)[:, None, None]
        with torch.no_grad():
            maps.append(network.forward_features(x[None].float()))
        expected = [
            statistic
            for map_ in maps
            for statistic in (
                map_[0].double().numpy().mean((1, 2)),
                map_[0].double().numpy().std((1, 2), ddof=1),
            )
        ]
        np.testing.assert_allclose(found_F, np.concatenate(expected), rtol=1e-3, atol=1e-4)


def test_the_penalty_is_the_one_that_is_best_on_validation() -> None:
    features_NF = RNG.normal(size=(300, 6))
    label_N = 40 + 10 * np.sin(features_NF[:, 0]) + 5 * features_NF[:, 1] + RNG.normal(size=300)
    train = features_NF[:150], label_N[:150]
    val = features_NF[150:220], label_N[150:220]
    fitted = fit_yardstick(train, val, features_NF[220:])
    scores = {
        cost: spearmanr(yardstick._fit(*train, cost).predict(val[0]), val[1]) for cost in COSTS
    }
    assert fitted.cost == max(scores, key=lambda cost: scores[cost].statistic)
    assert fitted.val_srocc == pytest.approx(scores[fitted.cost].statistic)
    assert spearmanr(fitted.predicted_N, label_N[220:]).statistic > 0.9
    assert abs(fitted.predicted_N.mean() - label_N[220:].mean()) < 2, "in label units"


def test_what_it_cannot_work_with_is_said() -> None:
    one = RNG.normal(size=(1, 2)), np.ones(1)
    with pytest.raises(ConfigError, match="the split has 1"):
        fit_yardstick((RNG.normal(size=(9, 2)), np.arange(9.0)), one, one[0])
    fixed = BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,))
    with pytest.raises(ConfigError, match="takes 224x224 images"):
        pooled_features([], fixed, seed=0, size=448)
