"""Backbones with folded norms compute what timm's do, forward and backward."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.models.mobile import FoldedNorm, FoldingConv, StridedDepthwise, fold_norms

NAMES = ["mobilenetv2_100", "mobilenetv3_small_050", "tf_efficientnetv2_b0"]


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A model whose norms do something, and the same one folded."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.1)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    return plain, folded


def gradients(net: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    net.zero_grad()
    out = net(image_BCHW)
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_folded_norms_change_nothing(name: str, training: bool) -> None:
    # in double precision: rounding moves activations over the kinks of ReLU6
    plain, folded = (net.double().train(training) for net in pair(name))
    assert any(isinstance(module, FoldingConv) for module in folded.modules())
    assert folded.state_dict().keys() == plain.state_dict().keys()
    image_BCHW = torch.randn(2, 3, 65, 64, dtype=torch.float64)
    expected, theirs = gradients(plain, image_BCHW)
    found, ours = gradients(folded, image_BCHW)
    torch.testing.assert_close(found, expected)
    assert ours.keys() == theirs.keys()
    for key, grad in ours.items():
        size = theirs[key].norm().item()
        assert (grad - theirs[key]).norm().item() <= 1e-9 * size + 1e-12, key
    after = plain.state_dict()
    for key, value in folded.state_dict().items():
        torch.testing.assert_close(value, after[key], msg=lambda text, k=key: f"{k}: {text}")


def test_a_copy_shares_nothing() -> None:
    _, folded = pair(NAMES[0])
    other = copy.deepcopy(folded)
    mine = [module for module in folded.modules() if isinstance(module, FoldedNorm)]
    for module in other.modules():
        if isinstance(module, FoldingConv):
            assert all(module.norm[0] is not norm for norm in mine)
            assert any(module.norm[0] is norm for norm in other.modules())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((8, 7), (3, 3), (2, 2), (1, 1)),
        ((7, 8), (3, 3), (2, 2), (0, 0)),
        ((9, 10), (5, 5), (2, 2), (2, 2)),
        ((10, 9), (3, 5), (3, 2), (1, 0)),
    ],
)
def test_gradients_of_a_strided_depthwise_convolution(size, kernel, stride, padding, bias) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [x, weight] if shift is None else [x, weight, shift]
    expected = F.conv2d(x, weight, shift, stride, padding, groups=3)
    found = StridedDepthwise.apply(x, weight, shift, stride, padding)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected)
    to = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, to),
        torch.autograd.grad(expected, inputs, to),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_takes_that_path_with_the_same_gradients() -> None:
    plain, folded = (net.eval().get_submodule("blocks.1.0") for net in pair(NAMES[0]))
    image_BCHW = torch.randn(4, 16, 32, 32)
    _, exact = gradients(plain, image_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        _, theirs = gradients(plain, image_BCHW)
        with torch.profiler.profile() as profile:
            _, ours = gradients(folded, image_BCHW)
    assert any(event.name == "StridedDepthwiseBackward" for event in profile.events())
    assert ours.keys() == exact.keys()
    for key, grad in exact.items():
        error, usual = ((g[key] - grad).norm() / grad.norm() for g in (ours, theirs))
        assert error < 1.5 * usual + 0.01, key
