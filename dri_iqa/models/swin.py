"""Swin layers of the predictor (MANIQA models/swin.py without its unused `downsample`).

Each layer is a few window-attention blocks, every second one shifted, then conv3x3 and ReLU; the
network adds a scaled layer to its input. Windows of all positions ride on the head axis of one
fused attention call.

Shapes: B images, S x S tokens, C channels, W windows, T tokens of a window, K heads, D channels of
a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

_BLOCKED = -100.0


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned relative position bias.

    Args:
        channels: C.
        heads: K.
        window: side of a window in tokens.
        grid: S.
        shift: cyclic shift in tokens; windows that then hold tokens from opposite edges are masked.
    """

    index_TT: Tensor
    mask_WTT: Tensor

    def __init__(self, channels: int, heads: int, window: int, grid: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("index_TT", _relative_index(window), persistent=False)
        self.register_buffer("mask_WTT", _shift_mask(grid, window, shift), persistent=False)

    def forward(self, x_BSSC: Tensor) -> Tensor:
        B, S, _, C = x_BSSC.shape
        w, n, D = self.window, S // self.window, C // self.heads
        if self.shift:
            x_BSSC = torch.roll(x_BSSC, (-self.shift, -self.shift), (1, 2))
        windows = x_BSSC.view(B, n, w, n, w, C).transpose(2, 3).reshape(B, n * n, w * w, C)
        qkv = self.qkv(windows).view(B, n * n, w * w, 3, self.heads, D).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.flatten(2, 3).unbind(0)  # each (B, W*K, T, D)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(n * n).to(q.dtype))
        y = y.view(B, n * n, self.heads, w * w, D).transpose(2, 3).reshape(B, n, n, w, w, C)
        y_BSSC = self.proj(y).transpose(2, 3).reshape(B, S, S, C)
        return torch.roll(y_BSSC, (self.shift, self.shift), (1, 2)) if self.shift else y_BSSC

    def _bias(self, windows: int) -> Tensor:
        T = self.index_TT.shape[0]
        bias_KTT = self.bias_table[self.index_TT.flatten()].view(T, T, self.heads).permute(2, 0, 1)
        bias_WKTT = bias_KTT.expand(windows, -1, -1, -1)
        if self.shift:
            bias_WKTT = bias_WKTT + self.mask_WTT[:, None]
        return bias_WKTT.reshape(1, windows * self.heads, T, T)


def _relative_index(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window."""
    line = torch.arange(window)
    y_T, x_T = (part.flatten() for part in torch.meshgrid(line, line, indexing="ij"))
    dy_TT = y_T[:, None] - y_T[None] + window - 1
    dx_TT = x_T[:, None] - x_T[None] + window - 1
    return dy_TT * (2 * window - 1) + dx_TT


def _shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """0 where two tokens of a shifted window were neighbours before the roll, -100 where they were
    not.
    """
    band_S = torch.zeros(grid, dtype=torch.long)
    if shift:
        band_S[-window:-shift] = 1
        band_S[-shift:] = 2
    region_SS = band_S[:, None] * 3 + band_S[None]
    n = grid // window
    region_WT = region_SS.view(n, window, n, window).transpose(1, 2).reshape(n * n, window * window)
    return (region_WT[:, None] != region_WT[:, :, None]).float() * _BLOCKED


class SwinBlock(nn.Module):
    """LayerNorm, window attention, LayerNorm, MLP; both residual with stochastic depth."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        grid: int,
        shift: int,
        mlp: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, grid, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, mlp), nn.GELU(), nn.Linear(mlp, channels))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BSSC: Tensor) -> Tensor:
        x_BSSC = x_BSSC + self.drop_path(self.attention(self.norm1(x_BSSC)))
        return x_BSSC + self.drop_path(self.mlp(self.norm2(x_BSSC)))


class SwinLayer(nn.Module):
    """Blocks, then conv3x3 and ReLU."""

    def __init__(self, blocks: Sequence[SwinBlock], channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x_BSSC: Tensor) -> Tensor:
        x_BCSS = self.blocks(x_BSSC).permute(0, 3, 1, 2)
        return F.relu(self.conv(x_BCSS)).permute(0, 2, 3, 1)


class Swin(nn.Module):
    """x <- x + scale * layer(x) for each layer, after a dropout on the input.

    Args:
        channels: C.
        grid: S, a multiple of the window or not larger than it.
        depths: blocks of each layer.
        heads: heads of each layer.
        window: side of a window in tokens.
        mlp: hidden width of the MLP.
        scale: of each layer's contribution.
        dropout: on the input.
        drop_path: largest stochastic-depth rate, from 0 linearly over the blocks.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        *,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        mlp: int,
        scale: float,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        window, half = (grid, 0) if grid <= window else (window, window // 2)
        total = sum(depths)
        rates = iter([drop_path * i / max(1, total - 1) for i in range(total)])
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            SwinLayer(
                [
                    SwinBlock(channels, k, window, grid, half if i % 2 else 0, mlp, next(rates))
                    for i in range(depth)
                ],
                channels,
            )
            for depth, k in zip(depths, heads, strict=True)
        )

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """(B, C, S, S) to the same shape."""
        x_BSSC = self.dropout(x_BCSS).permute(0, 2, 3, 1).contiguous()
        for layer in self.layers:
            x_BSSC = x_BSSC + self.scale * layer(x_BSSC)
        return x_BSSC.permute(0, 3, 1, 2)
