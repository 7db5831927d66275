"""The companion: kernel ridge regression with the least leave-one-out error, in its share of the score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from dri_iqa.bundle import ScoreScale, load_bundle, save_bundle
from dri_iqa.config import CompanionConfig, ConfigError, ModelConfig
from dri_iqa.models.companion import PENALTIES, KernelCompanion, check_companion
from dri_iqa.models.dri_iqa import DRIIQA, build_model
from tests.tiny import CROP, tiny_model

IMAGES = 24


def model_with(**sizes: Any) -> DRIIQA:
    config: ModelConfig = tiny_model(companion=CompanionConfig(images=IMAGES, **sizes))
    return build_model(config, backbone_weights=False, seed=1).eval()


def companion_of(model: DRIIQA) -> KernelCompanion:
    assert model.companion is not None
    return model.companion


def training(companion: KernelCompanion) -> tuple[Tensor, Tensor]:
    """Statistics of very unlike scales, of two causes that tell the scores, not linearly and with noise."""
    rng = torch.Generator().manual_seed(0)
    count = companion.mean_F.numel()
    cause_N2 = torch.randn(IMAGES, 2, generator=rng)
    seen_NF = cause_N2 @ torch.randn(2, count, generator=rng)
    noise_N = torch.randn(IMAGES, generator=rng)
    score_N = 0.5 + 0.1 * cause_N2[:, 0].square() - 0.2 * cause_N2[:, 1] + 0.05 * noise_N
    return 3 + seen_NF * torch.logspace(-1, 1, count), score_N


def test_it_is_the_kernel_ridge_regression_with_the_least_leave_one_out_error() -> None:
    companion = companion_of(model_with(gamma=0.3))
    statistics_NF, score_N = training(companion)
    chosen = companion.fit(statistics_NF, score_N)
    x = ((statistics_NF - statistics_NF.mean(0)) / statistics_NF.std(0)).half().double().numpy()
    y = score_N.double().numpy() - score_N.double().numpy().mean()

    def ridge(penalty: float) -> KernelRidge:
        return KernelRidge(alpha=penalty, kernel="rbf", gamma=0.3 / x.shape[1])

    errors = {}
    for penalty in PENALTIES:
        left_out = [
            ridge(penalty).fit(np.delete(x, n, 0), np.delete(y, n)).predict(x[n : n + 1])[0]
            for n in range(IMAGES)
        ]
        errors[penalty] = np.mean((y - left_out) ** 2)
    assert chosen == min(errors, key=errors.__getitem__)
    assert PENALTIES[0] < chosen < PENALTIES[-1]
    others_MF = statistics_NF[:5] + 0.3 * statistics_NF.std(0)
    standard_MF = ((others_MF - statistics_NF.mean(0)) / statistics_NF.std(0)).double().numpy()
    expected = ridge(chosen).fit(x, y).predict(standard_MF) + score_N.mean().item()
    np.testing.assert_allclose(companion.score(others_MF).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_it_has_its_share_of_the_score(weight: float) -> None:
    model = model_with(weight=weight)
    companion = companion_of(model)
    companion.fit(*training(companion))
    image_BCHW = torch.rand(3, 3, CROP, CROP)
    own_B = companion(image_BCHW)
    assert torch.equal(own_B, companion.score(companion.statistics(image_BCHW)))
    together_B = model.predict(image_BCHW)
    model.companion = None
    network_B = model.predict(image_BCHW)
    assert float((own_B - network_B).abs().min()) > 1e-3
    assert torch.allclose(together_B, (1 - weight) * network_B + weight * own_B, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in companion.parameters())


def test_a_bundle_keeps_it(tmp_path: Path) -> None:
    model = model_with(blocks=(1,))
    companion = companion_of(model)
    assert companion.mean_F.numel() == 2 * companion.backbone.widths[0]
    companion.fit(*training(companion))
    save_bundle(model, tmp_path / "b", model_config=model.config, score=ScoreScale(), meta={})
    loaded = load_bundle(tmp_path / "b")
    assert isinstance(loaded.model, DRIIQA)
    assert "companion" in loaded.parts
    assert companion_of(loaded.model).landmark_NF.dtype == torch.float16
    image_BCHW = torch.rand(2, 3, CROP, CROP)
    assert torch.equal(loaded.model.predict(image_BCHW), model.predict(image_BCHW))


def test_what_does_not_fit_is_refused() -> None:
    companion = companion_of(model_with())
    statistics_NF, score_N = training(companion)
    with pytest.raises(ValueError, match="companion of 24 images got 23 statistics and 24 scores"):
        companion.fit(statistics_NF[1:], score_N)
    for wrong in ({"images": -1}, {"images": 10**6}, {"gamma": 0.0}, {"weight": 1.5}):
        with pytest.raises(ConfigError, match="companion: got"):
            CompanionConfig(**wrong)
    check_companion(tiny_model(companion=CompanionConfig(images=3, blocks=(1,))))
    with pytest.raises(ConfigError, match=r"blocks=\(99,\), but .* has blocks 0\.\."):
        check_companion(tiny_model(companion=CompanionConfig(images=3, blocks=(99,))))
    check_companion(tiny_model(companion=CompanionConfig(blocks=(99,))))  # there will be none
