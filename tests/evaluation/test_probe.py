"""Probes: what is asked is what is shown, and the answers are those of features with known content."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dri_iqa.config import DegradeConfig, DREConfig
from dri_iqa.degradations import Recipe, Step, apply_recipe
from dri_iqa.evaluation.halves import embed, halves_figure
from dri_iqa.evaluation.probe import (
    TYPES,
    Views,
    half_features,
    make_views,
    pixel_statistics,
    probe_errors,
)
from dri_iqa.models.dre import DREEncoder
from dri_iqa.probe import LinearProbe
from dri_iqa.seeds import Purpose, generator

K = len(TYPES)


def scene(number: int, side: int = 40) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)


@pytest.fixture(scope="module")
def views() -> Views:
    return make_views(
        ((number, scene(number)) for number in (3, 8)),
        seed=1,
        crop=32,
        config=DegradeConfig(region=36),
    )


def test_every_image_is_seen_once_under_every_type(views: Views) -> None:
    assert views.crops_NCHW.shape == (2 * K, 3, 32, 32)
    assert views.crops_NCHW.dtype == torch.uint8
    assert views.type_N.tolist() == [*range(K)] * 2
    assert views.image_N.tolist() == [3] * K + [8] * K
    assert set(views.level_N.tolist()) == set(range(5))


def test_a_view_is_its_recipe_at_the_images_own_place(views: Views) -> None:
    place = generator(1, Purpose.PROBE, 8, K)
    top, left = int(place.integers(5)), int(place.integers(5))
    region_HWC = np.ascontiguousarray(scene(8)[top : top + 36, left : left + 36])
    row, column = int(place.integers(5)), int(place.integers(5))
    for kind in (TYPES.index("jpeg"), TYPES.index("white_noise")):
        rng = generator(1, Purpose.PROBE, 8, kind)
        level = int(rng.integers(1, 6))
        assert level == int(views.level_N[K + kind]) + 1
        step = Step(TYPES[kind], level)
        degraded_HWC = apply_recipe(region_HWC, Recipe((step,)), rng)
        expected_HWC = degraded_HWC[row : row + 32, column : column + 32]
        assert np.array_equal(views.crops_NCHW[K + kind].permute(1, 2, 0).numpy(), expected_HWC)


def labels(images: int) -> Views:
    return Views(
        crops_NCHW=torch.zeros(images * K, 3, 1, 1, dtype=torch.uint8),
        type_N=torch.arange(K).repeat(images),
        level_N=torch.arange(images * K) % 5,
        image_N=torch.arange(images).repeat_interleave(K),
    )


def test_features_that_know_the_type_know_no_content_and_the_reverse() -> None:
    fit, test = labels(6), labels(4)
    by_type = probe_errors(
        fit, F.one_hot(fit.type_N, K).float(), test, F.one_hot(test.type_N, K).float()
    )
    assert by_type["type"] == 0
    assert by_type["content"] >= 0.7  # 3 of 4 wrong is guessing
    by_image = probe_errors(
        fit, F.one_hot(fit.image_N, 6).float(), test, F.one_hot(test.image_N, 6).float()
    )
    assert by_image["content"] == 0
    assert by_image["type"] >= 0.9


def test_a_linear_probe_is_at_the_optimum_of_its_penalised_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    label_N = torch.randint(0, 3, (200,), generator=rng)
    x_NF = torch.randn(200, 4, generator=rng) + label_N[:, None]
    probe = LinearProbe.fit(x_NF, label_N, penalty=1e-2)
    scaled_NF = (x_NF.double() - x_NF.double().mean(0)) / x_NF.double().std(0)
    weight = probe.weight_KF.clone().requires_grad_()
    bias = probe.bias_K.clone().requires_grad_()
    loss = F.cross_entropy(scaled_NF @ weight.T + bias, label_N) + 5e-3 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-4
    assert float(bias.grad.abs().max()) < 1e-4
    assert probe.error(x_NF, label_N) < 0.5


def test_halves_are_pooled_maps_without_changing_the_encoder() -> None:
    encoder = DREEncoder(DREConfig(width=8, norm="bn")).train()
    before = encoder.state_dict()["layers.0.norm1.running_mean"].clone()
    crops = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found = half_features(encoder, crops, batch=2)
    assert encoder.training
    assert torch.equal(before, encoder.state_dict()["layers.0.norm1.running_mean"])
    with torch.no_grad():
        last = encoder.eval()(crops.float() / 255)[-1].mean((2, 3))
    assert torch.allclose(torch.cat((found["up"], found["low"]), 1), last, atol=1e-5)


def test_pixel_statistics_by_hand() -> None:
    crop = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    crop[0, 1] = torch.tensor([[0, 255], [255, 255]])
    stats = pixel_statistics(crop)[0]
    assert stats[:3].tolist() == pytest.approx([0, 0.75, 0])
    assert float(stats[4]) == pytest.approx(0.5)
    assert stats[6:9].tolist() == pytest.approx([0, 0.5, 0])
    assert stats[9:].tolist() == pytest.approx([0, 0.5, 0])


def test_the_picture_is_drawn_and_without_scikit_learn_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = labels(10)
    rng = np.random.default_rng(0)
    features = {half: torch.from_numpy(rng.normal(size=(10 * K, 6))) for half in ("up", "low")}
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    points, method = embed(features["up"].numpy())
    assert (points.shape, method) == ((10 * K, 2), "PCA")
    with Image.open(halves_figure(views, features, tmp_path / "halves.png")) as picture:
        assert picture.size == (1260, 1120)
