"""The loop's own rules, on what it computes rather than on Ray."""

from __future__ import annotations

import math

import pytest

from dri_iqa.config import OptimConfig
from pipelines.runtime.rates import learning_rate
from pipelines.runtime.streams import _pad


def test_the_cosine_is_stepped_once_an_epoch_and_ends_where_the_paper_says() -> None:
    optim = OptimConfig(epochs=300, eta_min=1e-6)
    assert learning_rate(optim, 2e-4, 0) == pytest.approx(2e-4)
    assert learning_rate(optim, 2e-4, 150) == pytest.approx((2e-4 + 1e-6) / 2)
    assert learning_rate(optim, 2e-4, 300) == pytest.approx(1e-6)
    # 200 epochs with the paper's T_max of 300 end at a quarter of the rate.
    assert learning_rate(OptimConfig(epochs=200, t_max=300), 2e-4, 200) == pytest.approx(
        5.1e-5, rel=0.02
    )


def test_the_scale_of_a_search_moves_all_rates_and_never_raises_the_floor_above_them() -> None:
    optim = OptimConfig(lr_scale=0.5, eta_min=1e-6, epochs=10)
    assert learning_rate(optim, 2e-4, 0) == pytest.approx(1e-4)
    assert learning_rate(optim, 1e-7, 9) <= 1e-7


def test_warm_up_rises_to_the_cosine() -> None:
    optim = OptimConfig(warmup_epochs=5, epochs=100)
    rates = [learning_rate(optim, 1.0, epoch, share) for epoch in range(6) for share in (0.0, 0.5)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.01
    assert math.isclose(rates[10], learning_rate(OptimConfig(epochs=100), 1.0, 5))


def test_a_short_batch_travels_padded_and_says_how_long_it_is() -> None:
    import numpy as np

    batch = {
        "image_BCHW": np.ones((3, 3, 4, 4), np.uint8),
        "aux_crops_A4CHW": np.ones((5, 4, 3, 4, 4), np.uint8),
        "score_B": np.ones(3, np.float32),
    }
    padded = _pad(batch, 4)
    assert padded["rows"].tolist() == [3]
    assert padded["image_BCHW"].shape == (1, 4, 3, 4, 4)
    assert padded["image_BCHW"][0, 3].sum() == 0
    assert padded["aux_crops_A4CHW"].shape == (1, 5, 4, 3, 4, 4)
    assert padded["score_B"].shape == (1, 4)
