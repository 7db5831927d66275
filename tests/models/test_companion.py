"""The companion: kernel ridge regression with the least leave-one-out error, in its share of the score."""

from __future__ import annotations

from itertools import pairwise
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


def some_series(statistics_NF: Tensor, score_N: Tensor) -> Tensor:
    """Seven of three levels: small steps from an image towards the worst one, or, against the scores, the best one."""
    ends_2F = statistics_NF[torch.stack((score_N.argmin(), score_N.argmax()))]
    steps_L = torch.tensor([0.0, 0.1, 0.2])[:, None]
    rows = [torch.lerp(statistics_NF[n], ends_2F[n % 2], steps_L) for n in range(7)]
    return torch.stack(rows)


def test_it_is_the_kernel_ridge_regression_with_the_least_leave_one_out_error() -> None:
    companion = companion_of(model_with(gamma=0.3))
    statistics_NF, score_N = training(companion)
    chosen, falling = companion.fit(statistics_NF, score_N)
    assert falling is None
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


def test_with_series_it_is_the_least_of_errors_and_lacking_order() -> None:
    sizes = {"order_series": 7, "order_weight": 0.6, "order_margin": 0.04}
    companion = companion_of(model_with(gamma=0.3, **sizes))
    statistics_NF, score_N = training(companion)
    series_SLF = some_series(statistics_NF, score_N)
    penalty, falling = companion.fit(statistics_NF, score_N, series_SLF)
    mean_F, scale_F = statistics_NF.mean(0), statistics_NF.std(0)
    image_IF = ((statistics_NF - mean_F) / scale_F).half().double()
    standard_SLF = ((series_SLF - mean_F) / scale_F).double()
    # one picture of each series, of the levels in their order
    assert torch.equal(companion.landmark_NF[:IMAGES].double(), image_IF)
    level_S = [0, 0, 0, 1, 1, 2, 2]
    for row_F, series_LF, level in zip(
        companion.landmark_NF[IMAGES:], standard_SLF, level_S, strict=True
    ):
        assert torch.allclose(row_F.double(), series_LF[level], atol=2e-3)
    landmark_NF = companion.landmark_NF.double()

    def kernel(x: Tensor) -> Tensor:
        return torch.exp(-0.3 * (x[:, None] - landmark_NF).square().mean(-1))

    image_IN, pair_PN = kernel(image_IF), []
    for series_LF in standard_SLF:
        pair_PN += [a - b for a, b in pairwise(kernel(series_LF))]
    pairs_PN, own_NN = torch.stack(pair_PN), kernel(landmark_NF)
    centred_N = score_N.double() - score_N.double().mean()

    def lost(weight_N: Tensor) -> Tensor:
        lack_P = (0.04 - pairs_PN @ weight_N).clamp(min=0)
        error = (image_IN @ weight_N - centred_N).square().mean()
        return (
            error + 0.6 * lack_P.square().mean() + penalty / IMAGES * weight_N @ own_NN @ weight_N
        )

    found_N = companion.weight_N.double().requires_grad_()
    least = lost(found_N)
    least.backward()
    assert found_N.grad is not None
    assert float(found_N.grad.abs().max()) < 1e-6
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        other_N = found_N + 0.01 * torch.randn(len(found_N), generator=rng)
        assert lost(other_N) > least
    fall_P = (pairs_PN @ found_N).detach()
    assert falling is not None
    assert falling == pytest.approx(float((fall_P > 0).double().mean()), abs=1e-6)
    assert 0 < float((fall_P < 0.04).double().mean()) < 1
    # without the order of levels fewer fall
    alone = companion_of(model_with(gamma=0.3))
    alone.fit(statistics_NF, score_N)
    scores_SL = alone.score(series_SLF.flatten(0, 1)).unflatten(0, (7, -1))
    assert float((scores_SL.diff(dim=1) < 0).double().mean()) < falling


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
    model = model_with(blocks=(1,), order_series=7)
    companion = companion_of(model)
    assert companion.mean_F.numel() == 2 * companion.backbone.widths[0]
    statistics_NF, score_N = training(companion)
    companion.fit(statistics_NF, score_N, some_series(statistics_NF, score_N))
    save_bundle(model, tmp_path / "b", model_config=model.config, score=ScoreScale(), meta={})
    loaded = load_bundle(tmp_path / "b")
    assert isinstance(loaded.model, DRIIQA)
    assert "companion" in loaded.parts
    assert companion_of(loaded.model).landmark_NF.dtype == torch.float16
    assert len(companion_of(loaded.model).landmark_NF) == IMAGES + 7
    image_BCHW = torch.rand(2, 3, CROP, CROP)
    assert torch.equal(loaded.model.predict(image_BCHW), model.predict(image_BCHW))


def test_what_does_not_fit_is_refused() -> None:
    companion = companion_of(model_with())
    statistics_NF, score_N = training(companion)
    with pytest.raises(ValueError, match="companion of 24 images got 23 statistics and 24 scores"):
        companion.fit(statistics_NF[1:], score_N)
    with pytest.raises(ValueError, match="companion of 0 series got 3"):
        companion.fit(statistics_NF, score_N, torch.zeros(3, 6, statistics_NF.shape[1]))
    wrongs: list[dict[str, Any]] = [{"images": -1}, {"images": 10**6}, {"order_series": -1}]
    wrongs += [
        {"images": 10**4, "order_series": 10**4},
        {"order_weight": -1.0},
        {"order_margin": -0.01},
    ]
    wrongs += [{"gamma": 0.0}, {"weight": 1.5}]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="companion: got"):
            CompanionConfig(**wrong)
    check_companion(tiny_model(companion=CompanionConfig(images=3, blocks=(1,))))
    with pytest.raises(ConfigError, match=r"blocks=\(99,\), but .* has blocks 0\.\."):
        check_companion(tiny_model(companion=CompanionConfig(images=3, blocks=(99,))))
    check_companion(tiny_model(companion=CompanionConfig(blocks=(99,))))  # there will be none
