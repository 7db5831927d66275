"""The network as a CPU scores with it in bf16: the model's formula, laid out for the processor.

Autocast rounds and rearranges every weight at every call. Here it is done once, and besides: K's projection in the
transposed attention is merged into Q's, batch normalisations into their convolutions, and of the extractor only the
layers and the half that the predictor reads are computed. What is not named here stays as it is and shares its
parameters with the model.

Shapes: B images, C channels, H x W pixels, N tokens or positions, K heads, D channels of a head, I in, O out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dri_iqa.models.backbone import Backbone, to_grid
from dri_iqa.models.dre import SLOPE, DREEncoder, ResidualLayer, lower
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.models.fusion import TransposedAttention
from dri_iqa.models.mobile import FoldingConv
from dri_iqa.models.pointwise import Pointwise
from dri_iqa.models.winograd import FEWEST, WinogradConv

_BF16 = torch.bfloat16


def can_pack() -> bool:
    """Whether this processor multiplies bf16 matrices through oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PackedModel(nn.Module):
    """Scores of crops in bf16, with weights as they are now; later changes of the model do not arrive.

    Args:
        model: in evaluation mode, on the CPU.

    Raises:
        ValueError: a model in training mode.
    """

    def __init__(self, model: DRIIQA) -> None:
        super().__init__()
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() before packing it")
        self.extractor = (
            PackedExtractor(model.dre, model.config.predictor.cfb_levels)
            if model.dre is not None
            else None
        )
        self.backbone = PackedBackbone(model.backbone)
        self.predictor = _packed(model.predictor)
        self.readout = model.readout
        self.accompanied = model.accompanied
        self.maps = model.maps
        self.eval()

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Normalised scores, (B,), of RGB crops in [0, 1]; see `DRIIQA.forward`."""
        with torch.no_grad(), torch.autocast("cpu", _BF16):
            quality = () if self.extractor is None else self.extractor(image_BCHW)
            maps = self.backbone.maps(image_BCHW)
            score_B = self.predictor(self.backbone.on_grid(maps), quality)
        with torch.no_grad():
            if self.readout is not None:  # in fp32, as it was fitted
                score_B = score_B.float() + self.readout([*maps, *quality])
            return self.accompanied(score_B, image_BCHW)


def _packed(module: nn.Module) -> nn.Module:
    """A twin with packed layers, which shares all else with the module."""
    form = _FORMS.get(type(module))
    if form is not None:
        return form(module)
    return _twin(module)


def _twin(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else _packed(child) for name, child in module._modules.items()
    }
    return twin


class PackedLinear(nn.Module):
    """`F.linear` with weights in oneDNN's own layout.

    Args:
        weight_OI, bias_O: rounded here.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight = _laid_out(weight_OI.detach().to(_BF16))
        self.bias = None if bias_O is None else bias_O.detach().to(_BF16)

    def forward(self, x_BNI: Tensor) -> Tensor:
        return _linear(x_BNI.to(_BF16), self.weight, self.bias)


def _laid_out(weight_OI: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())


def _linear(
    x_BNI: Tensor, weight: Tensor, bias_O: Tensor | None = None, then: str = "none"
) -> Tensor:
    """(B, N, O); `weight` is laid out, `then` may be gelu."""
    return torch.ops.mkldnn._linear_pointwise(x_BNI, weight, bias_O, then, [], "none")


class PackedMlp(nn.Module):
    """Two linear maps with a GELU between them, which the first writes itself."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first = PackedLinear(first.weight, first.bias)
        self.second = PackedLinear(second.weight, second.bias)

    def forward(self, x_BNI: Tensor) -> Tensor:
        hidden = _linear(x_BNI.to(_BF16), self.first.weight, self.first.bias, "gelu")
        return self.second(hidden)


class PackedTransposedAttention(nn.Module):
    """Transposed attention whose logits come from Q alone.

    (Wq g + p) . (Wk x + r) = (Wk' Wq g + Wk' p) . x + what is the same for all x, which a softmax does not see.
    """

    def __init__(self, block: TransposedAttention) -> None:
        super().__init__()
        key, value = block.kv.weight.detach().chunk(2)
        scaled = key.T * key.shape[0] ** -0.5
        self.q = PackedLinear(scaled @ block.q.weight.detach(), scaled @ block.q.bias.detach())
        self.v = PackedLinear(value, block.kv.bias.detach().chunk(2)[1])
        self.maniqa_compat = block.maniqa_compat

    def forward(self, x_BCN: Tensor, guide_BCN: Tensor | None = None) -> Tensor:
        x_BCN = x_BCN.to(_BF16)
        q_BCN, v_BCN = self.q(x_BCN if guide_BCN is None else guide_BCN), self.v(x_BCN)
        y_BCN = torch.empty_like(v_BCN)
        # one image after the other: the C x C weights of several would not fit the cache
        for q_CN, k_CN, v_CN, y_CN in zip(q_BCN, x_BCN, v_BCN, y_BCN, strict=True):
            torch.mm(_linear(q_CN, _laid_out(k_CN)).softmax(-1), v_CN, out=y_CN)
        if self.maniqa_compat:
            y_BCN = y_BCN.transpose(1, 2).reshape(x_BCN.shape)
        return y_BCN.add_(x_BCN)


class PackedAttention(nn.Module):
    """timm's attention, one head after the other: its N x N weights then never leave the cache, and plain products
    beat the fused kernel of CPUs in bf16 (at 785 tokens 16 against 26 ms a block).
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        weight_OI, bias_O = attention.qkv.weight.detach().clone(), None
        weight_OI[: attention.attn_dim] *= attention.scale
        if attention.qkv.bias is not None:
            bias_O = attention.qkv.bias.detach().clone()
            bias_O[: attention.attn_dim] *= attention.scale
        self.qkv = PackedLinear(weight_OI, bias_O)
        self.proj = _packed(attention.proj)

    def forward(self, x_BNC: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        qkv_BN3KD = self.qkv(x_BNC).unflatten(2, (3, self.heads, -1))
        y_BNKD = torch.empty_like(qkv_BN3KD[:, :, 0])
        for qkv_N3KD, y_NKD in zip(qkv_BN3KD, y_BNKD, strict=True):
            q_KND, k_KND, v_KND = qkv_N3KD.permute(1, 2, 0, 3)
            for head in range(self.heads):
                weight_NN = torch.mm(q_KND[head], k_KND[head].T).softmax(-1)
                y_NKD[:, head] = torch.mm(weight_NN, v_KND[head])
        return self.proj(y_BNKD.flatten(2))


def _attention(layer: Attention) -> nn.Module:
    plain = all(isinstance(part, nn.Identity) for part in (layer.q_norm, layer.k_norm, layer.norm))
    return PackedAttention(layer) if plain and layer.gate is None else _twin(layer)


def _mlp(layer: Mlp) -> nn.Module:
    first, second = layer.fc1, layer.fc2
    if not isinstance(layer.norm, nn.Identity) or not _is_gelu(layer.act):
        return _twin(layer)
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        return _twin(layer)
    return PackedMlp(first, second)


def _sequence(layers: nn.Sequential) -> nn.Module:
    if [type(layer) for layer in layers] == [nn.Linear, nn.GELU, nn.Linear] and _is_gelu(layers[1]):
        return PackedMlp(cast(nn.Linear, layers[0]), cast(nn.Linear, layers[2]))
    return _twin(layers)


def _is_gelu(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GELU) and layer.approximate == "none"


class PackedBackbone(nn.Module):
    """The backbone's maps, rounded before they are brought together."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.twin = cast(Backbone, _twin(backbone))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.on_grid(self.maps(image_BCHW))

    def maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """See `Backbone.maps`."""
        return self.twin.maps(image_BCHW)

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """See `Backbone.on_grid`; in bf16."""
        return torch.cat([to_grid(map_BCHW, self.twin.grid).to(_BF16) for map_BCHW in maps], dim=1)


class PackedExtractor(nn.Module):
    """The extractor's layers up to the last one that the predictor reads.

    Args:
        encoder: whole.
        levels: 1-based layers that are read.
    """

    def __init__(self, encoder: DREEncoder, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        layers = [cast(ResidualLayer, layer) for layer in encoder.layers][: max(levels)]
        self.layers = nn.ModuleList(
            PackedResidualLayer(layer, last=layer is layers[-1])
            if isinstance(layer.norm1, nn.BatchNorm2d)
            else _packed(layer)
            for layer in layers
        )

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Lower halves of the layers that are read, in the order of `levels`."""
        x_BCHW = (image_BCHW * 2 - 1).to(_BF16, memory_format=torch.channels_last)
        half: dict[int, Tensor] = {}
        for level, layer in enumerate(self.layers, 1):
            x_BCHW = layer(x_BCHW)
            halved = isinstance(layer, PackedResidualLayer) and layer.last
            half[level] = x_BCHW if halved else lower(x_BCHW)
        return tuple(half[level] for level in self.levels)


class PackedResidualLayer(nn.Module):
    """A residual layer without its batch normalisations.

    Args:
        layer: with BatchNorm.
        last: compute the lower half of its channels only.
    """

    def __init__(self, layer: ResidualLayer, *, last: bool) -> None:
        super().__init__()
        self.last, self.stride = last, layer.stride
        self.conv1 = _conv(layer.conv1, *_fused(layer.conv1, layer.norm1))
        kept = slice(layer.conv2.out_channels // 2 if last else 0, None)
        weight, bias = _fused(layer.conv2, layer.norm2)
        self.conv2 = _conv(layer.conv2, weight[kept], bias[kept])
        weight, bias = _fused(layer.shortcut, layer.norm3)
        self.shortcut = PackedLinear(weight[kept].flatten(1), bias[kept])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        s = self.stride
        y_BCHW = self.conv2(F.leaky_relu(self.conv1(x_BCHW), SLOPE, inplace=True))
        y_BCHW += self.shortcut(x_BCHW[:, :, ::s, ::s].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.leaky_relu(y_BCHW, SLOPE, inplace=True)


def _fused(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (O, I, h, w) and bias (O,) of a convolution with the batch normalisation after it."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = (norm.running_mean, norm.running_var, norm.eps)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    return weight.detach(), bias.detach()


def _conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The same convolution with other parameters, rounded."""
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and min(weight.shape[:2]) >= FEWEST:
        return WinogradConv(weight, bias)
    twin = copy.copy(conv)
    # positions are the last axis of the guide, which the depthwise one makes
    last = torch.contiguous_format if conv.groups > 1 else torch.channels_last
    weight = weight.detach().to(_BF16, memory_format=last)
    twin._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": None
        if bias is None
        else nn.Parameter(bias.detach().to(_BF16), requires_grad=False),
    }
    return twin


_FORMS = {
    nn.Linear: lambda layer: PackedLinear(layer.weight, layer.bias),
    nn.Conv2d: lambda layer: _conv(layer, layer.weight, layer.bias),
    FoldingConv: lambda layer: _conv(layer.plain(), *layer.folded()),
    Pointwise: lambda layer: _conv(layer, layer.weight, layer.bias),
    TransposedAttention: PackedTransposedAttention,
    Attention: _attention,
    Mlp: _mlp,
    nn.Sequential: _sequence,
    Backbone: PackedBackbone,
}
