"""Depthwise-separable backbones (MobileNet, EfficientNet, MNASNet of timm) without their detours.

Two things cost a third of a training step of `mobilenetv2_100` on a CPU, and are not needed:

- BatchNorm with running statistics is an affine map of each channel, so it is folded into the
  convolution before it (Jacob et al. 2018, arXiv 1712.05877, section 3.2): gradients reach weight,
  scale and shift as before, and no map is read and written once more in either direction;
- oneDNN has no fast bfloat16 path for the gradient of a strided depthwise convolution with respect
  to its input. That gradient is itself a depthwise convolution with stride 1, of the output's
  gradient with zeros between its pixels, and is computed as such.

Names and shapes of parameters and buffers stay those of timm.

Shapes: B images, C channels, H x W pixels of the input, P x Q of the output.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from torch import Tensor, nn

_PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
}
"""Convolution and the norm that follows it at once, by block."""
_STEM = ("conv_stem", "bn1")

M = TypeVar("M", bound=nn.Module)


def fold_norms(net: nn.Module) -> None:
    """Replace convolutions and the BatchNorms behind them by ones that work together.

    Whatever is not of the kinds known here stays as it is.
    """
    blocks = [(block, _PAIRS.get(type(block), ())) for block in net.modules()]
    for block, pairs in [(net, (_STEM,)), *blocks]:
        for first, second in pairs:
            conv, norm = getattr(block, first, None), getattr(block, second, None)
            if type(conv) is nn.Conv2d and conv.bias is None and isinstance(norm, BatchNormAct2d):
                folded = _as(FoldedNorm, norm)
                replaced = _as(FoldingConv, conv)
                replaced.norm = (folded,)
                setattr(block, first, replaced)
                setattr(block, second, folded)


def is_separable(model: object) -> bool:
    """Whether a model has such layers: on CPUs they take a third less time for maps in channels_last layout."""
    return isinstance(model, nn.Module) and any(isinstance(m, FoldingConv) for m in model.modules())


def _as(kind: type[M], module: nn.Module) -> M:
    """The same parameters, buffers and settings in a subclass."""
    new = kind.__new__(kind)
    new.__dict__ = module.__dict__.copy()
    return new


class FoldedNorm(BatchNormAct2d):
    """Normalisation and activation; only the activation where the convolution has normalised."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    act: nn.Module
    drop: nn.Module
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P, Q) of the same."""
        return super().forward(x) if self.training else self.act(self.drop(x))


class FoldingConv(nn.Conv2d):
    """A convolution that takes over the norm behind it while that has running statistics."""

    norm: tuple[FoldedNorm]
    """In a tuple: it belongs to the block, not to the convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C', P, Q) of (B, C, H, W)."""
        if self.norm[0].training:
            return self._convolve(input, self.weight, None)
        return self._convolve(input, *self.folded())

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C', C / groups, h, w) and bias (C',) of convolution and norm together."""
        (norm,) = self.norm
        scale_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.weight * scale_C[:, None, None, None], norm.bias - norm.running_mean * scale_C

    def plain(self) -> nn.Conv2d:
        """An ordinary convolution of the same shape, with this one's weight."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__ = {name: value for name, value in self.__dict__.items() if name != "norm"}
        return conv

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_slow(input):
            shift_C = None if bias is None else bias.bfloat16()
            return StridedDepthwise.apply(  # pyright: ignore[reportReturnType]
                input.bfloat16(), weight.bfloat16(), shift_C, self.stride, self.padding
            )
        return self._conv_forward(input, weight, bias)

    def _is_slow(self, input: Tensor) -> bool:
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
        return (
            dtype == torch.bfloat16
            and torch.is_grad_enabled()
            and self.groups == self.in_channels == self.out_channels
            and max(self.stride) > 1
            and self.dilation == (1, 1)
        )


class StridedDepthwise(torch.autograd.Function):
    """A strided depthwise convolution whose input's gradient is a convolution with stride 1."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C1KL: Tensor,
        bias_C: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        """(B, C, P, Q), as F.conv2d."""
        ctx.save_for_backward(x_BCHW, weight_C1KL)
        ctx.settings = (stride, padding, bias_C is not None)
        return F.conv2d(x_BCHW, weight_C1KL, bias_C, stride, padding, groups=x_BCHW.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias."""
        (grad_BCPQ,) = grads
        x_BCHW, weight_C1KL = ctx.saved_tensors
        stride, padding, biased = ctx.settings
        grad_x, grad_weight, grad_bias = None, None, None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad_BCPQ, x_BCHW, weight_C1KL, stride, padding)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            C = x_BCHW.shape[1]
            _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                *(grad_BCPQ, x_BCHW, weight_C1KL, [C] if biased else None, stride, padding),
                *([1, 1], False, [0, 0], C, [False, True, biased]),
            )
        return grad_x, grad_weight, grad_bias, None, None


def _input_gradient(
    grad_BCPQ: Tensor,
    x_BCHW: Tensor,
    weight_C1KL: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    B, C, H, W = x_BCHW.shape
    K, L = weight_C1KL.shape[2:]
    # zeros between the pixels, and at the end for pixels of the input that no output begins at
    size = (B, C, H + 2 * padding[0] - K + 1, W + 2 * padding[1] - L + 1)
    spread = torch.empty(
        size, dtype=grad_BCPQ.dtype, device=grad_BCPQ.device, memory_format=torch.channels_last
    ).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = grad_BCPQ
    around = (K - 1 - padding[0], L - 1 - padding[1])
    return F.conv2d(spread, weight_C1KL.flip(2, 3), padding=around, groups=C)
