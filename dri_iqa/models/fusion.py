"""Where quality meets image features: Convolutional Fusion Block, Transposed Guidance Block.

Paper 3.1 and Figure 4's caption: image features are K and V, the fused quality representation is Q.
The attention runs between channels ("transposed"): its tokens are channels, its feature axis the N
positions (MANIQA models/maniqa.py, `TABlock`, whose Q is replaced).

Shapes: B images, C channels, N = S x S positions of the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dri_iqa.models.backbone import to_grid
from dri_iqa.models.pointwise import Pointwise

WIDE = 256
"""Positions from which plain products beat the fused attention of CPUs in bf16, which is made for narrow heads: 0.53
against 1.17 s for five crops at the paper's sizes (784 positions, 3,072 channels); in fp32 both take 1.26 s."""


class ConvolutionalFusion(nn.Module):
    """CFB: each quality map through a 1x1 convolution, brought to the grid, concatenated, depthwise
    3x3.

    Args:
        widths: channels of the quality maps.
        channels: channels of the image features that Q must match, shared out over the maps.
        grid: side of the token grid.
    """

    def __init__(self, widths: Sequence[int], channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        n = len(widths)
        shares = [channels // n + (i < channels % n) for i in range(n)]
        self.inputs = nn.ModuleList(Pointwise(w, s) for w, s in zip(widths, shares, strict=True))
        self.mix = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, quality_maps: Sequence[Tensor]) -> Tensor:
        """Q of shape (B, C, N) from the lower halves of the chosen layers."""
        maps = [
            to_grid(conv(map_BCHW), self.grid)
            for conv, map_BCHW in zip(self.inputs, quality_maps, strict=True)
        ]
        return self.mix(torch.cat(maps, dim=1)).flatten(2)


def attend(q_BCN: Tensor, k_BCN: Tensor, v_BCN: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(N)) V, of shape (B, C, N)."""
    width = q_BCN.shape[-1]
    if width >= WIDE and q_BCN.dtype is torch.bfloat16 and q_BCN.device.type == "cpu":
        # one image after the other: C x C weights of a whole batch would not fit the cache
        return torch.stack(
            [
                torch.mm(torch.mm(q_CN, k_CN.T).softmax(-1).to(v_CN.dtype), v_CN)
                for q_CN, k_CN, v_CN in zip(q_BCN * width**-0.5, k_BCN, v_BCN, strict=True)
            ]
        )
    return F.scaled_dot_product_attention(
        q_BCN.unsqueeze(1), k_BCN.unsqueeze(1), v_BCN.unsqueeze(1)
    ).squeeze(1)


class TransposedAttention(nn.Module):
    """TGB, or MANIQA's TAB when it is given no guide.

    Args:
        positions: N, the width of the three linear maps.
        dropout: on the attention's output.
        maniqa_compat: permute the output as MANIQA does, `(attn v).transpose(1, 2).reshape(B, C,
            N)`; needed to run its official weights.
    """

    def __init__(self, positions: int, dropout: float, maniqa_compat: bool = False) -> None:
        super().__init__()
        self.q = nn.Linear(positions, positions)
        self.kv = nn.Linear(positions, 2 * positions)
        self.dropout = nn.Dropout(dropout)
        self.maniqa_compat = maniqa_compat

    def forward(self, x_BCN: Tensor, guide_BCN: Tensor | None = None) -> Tensor:
        """x + dropout(softmax(Q K^T / sqrt(N)) V), with Q from the guide, or from x without one."""
        q_BCN = self.q(x_BCN if guide_BCN is None else guide_BCN)
        k_BCN, v_BCN = self.kv(x_BCN).chunk(2, dim=-1)
        y_BCN = attend(q_BCN, k_BCN, v_BCN)
        if self.maniqa_compat:
            y_BCN = y_BCN.transpose(1, 2).reshape(x_BCN.shape)
        return x_BCN + self.dropout(y_BCN)
