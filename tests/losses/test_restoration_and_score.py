from __future__ import annotations

import math

import pytest
import torch

from dri_iqa.config import DREConfig
from dri_iqa.losses.restoration import (
    pixel_loss,
    psnr,
    representation_loss,
    straight_through_clamp,
)
from dri_iqa.losses.score import order_loss, plcc_loss, rank_loss, score_loss
from dri_iqa.models.dre import DREEncoder


@pytest.mark.parametrize("kind", ["mse", "rmse", "norm", "psnr"])
def test_pixel_loss_follows_its_name(kind: str):
    torch.manual_seed(0)
    restored, reference = torch.randn(3, 3, 4, 5), torch.rand(3, 3, 4, 5)
    each = []
    for a, b in zip(restored, reference, strict=True):
        squares = sum(float(e) ** 2 for e in (a - b).flatten())
        mean = squares / 60
        values = {"mse": mean, "rmse": mean**0.5, "norm": squares**0.5}
        each.append((values | {"psnr": math.log10(mean + 1e-4)})[kind])
    assert float(pixel_loss(restored, reference, kind)) == pytest.approx(sum(each) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "rmse", "norm", "psnr"])
def test_pixel_loss_has_a_finite_gradient_at_a_perfect_match(kind: str):
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    pixel_loss(image, image.detach().clone(), kind).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_psnr_of_known_errors():
    reference = torch.full((2, 3, 4, 4), 0.5)
    assert float(psnr(reference + 0.1, reference)) == pytest.approx(20.0, abs=1e-3)
    assert float(psnr(reference, reference)) == pytest.approx(100.0)
    assert float(psnr(reference + 5, reference)) == pytest.approx(-20 * torch.tensor(0.5).log10())


def test_clamp_passes_the_gradient_of_clipped_values():
    image = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    clamped = straight_through_clamp(image)
    assert clamped.tolist() == pytest.approx([0.0, 0.5, 1.0])
    clamped.sum().backward()
    assert image.grad is not None
    assert image.grad.tolist() == [1, 1, 1]


def test_representation_loss_compares_upper_halves_and_trains_only_the_restored_side():
    torch.manual_seed(0)
    frozen = DREEncoder(DREConfig(width=8, norm="gn")).eval().requires_grad_(False)
    restored = (torch.rand(2, 3, 32, 32) * 2 - 0.5).requires_grad_()
    reference = torch.rand(2, 3, 32, 32, requires_grad=True)
    loss = representation_loss(frozen, restored, reference)
    a, b = frozen(restored.detach().clamp(0, 1))[-1], frozen(reference.detach())[-1]
    assert float(loss.detach()) == pytest.approx(float((a - b)[:, :64].square().mean()), rel=1e-5)
    loss.backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert reference.grad is None
    assert all(p.grad is None for p in frozen.parameters())


def test_plcc_loss_is_the_halved_complement_of_the_correlation():
    torch.manual_seed(0)
    a, b = torch.rand(9), torch.rand(9)
    r = float(torch.corrcoef(torch.stack((a, b)))[0, 1])
    assert float(plcc_loss(a, b)) == pytest.approx((1 - r) / 2, abs=1e-5)
    constant = torch.full((9,), 0.3, requires_grad=True)
    plcc_loss(constant, b).backward()
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_order_loss_is_what_is_missing_to_the_margin():
    score_P2 = torch.tensor([[0.5, 0.4], [0.5, 0.49], [0.5, 0.5], [0.3, 0.5]], requires_grad=True)
    loss = order_loss(score_P2, 0.02)
    assert float(loss.detach()) == pytest.approx((0 + 0.01 + 0.02 + 0.22) / 4, abs=1e-6)
    loss.backward()
    assert score_P2.grad is not None
    assert score_P2.grad.tolist() == [[0, 0], [-0.25, 0.25], [-0.25, 0.25], [-0.25, 0.25]]


def test_rank_loss_counts_how_far_pairs_fall_short():
    predicted, target = torch.tensor([0.2, 0.1, 0.9]), torch.tensor([0.0, 0.5, 0.5])
    # pairs with a known order: (1 over 0) short by 0.5 + 0.1, (2 over 0) by none; 1 and 2 tie
    assert float(rank_loss(predicted, target)) == pytest.approx(0.6 / 2)
    assert float(rank_loss(target, target)) == 0


@pytest.mark.parametrize("kind", ["mse", "mse+plcc", "mse+rank"])
def test_score_loss_adds_its_term(kind: str):
    torch.manual_seed(0)
    predicted, target = torch.rand(5), torch.rand(5)
    extra = {
        "mse": 0,
        "mse+plcc": plcc_loss(predicted, target),
        "mse+rank": rank_loss(predicted, target),
    }
    expected = (predicted - target).square().mean() + extra[kind]
    assert float(score_loss(predicted, target, kind)) == pytest.approx(float(expected), rel=1e-6)
