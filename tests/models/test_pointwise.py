from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dri_iqa.models.pointwise import Pointwise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_convolution_forward_and_backward(layout, groups: int, bias: bool):
    torch.manual_seed(0)
    module = Pointwise(6, 4, bias=bias, groups=groups)
    x = torch.randn(3, 6, 5, 7).to(memory_format=layout).requires_grad_()
    expected = F.conv2d(x, module.weight, module.bias, groups=groups)
    assert torch.allclose(module(x), expected, atol=1e-6)
    inputs = (x, *module.parameters())
    ours = torch.autograd.grad(module(x).square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
