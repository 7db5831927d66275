"""Score predictor: guided attention, convolution and Swin, twice, then a weighted head (Fig. 4).

Layout and head follow MANIQA (models/maniqa.py); the paper replaces Q of its transposed attention
by the fused quality representation. Without quality maps (`baseline = maniqa`) this is MANIQA
itself.

Shapes: B images, C channels, S x S token grid, N = S x S positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dri_iqa.config import PredictorConfig
from dri_iqa.models.fusion import ConvolutionalFusion, TransposedAttention
from dri_iqa.models.pointwise import Pointwise
from dri_iqa.models.swin import Swin


class PredictorStage(nn.Module):
    """Transposed attention blocks, 1x1 convolution, Swin.

    Args:
        channels_in: C of the features that come in.
        channels: C of what goes out.
        grid: S.
        config: sizes of the blocks.
        quality_widths: channels of the quality maps; empty for MANIQA.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        grid: int,
        config: PredictorConfig,
        quality_widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.guide_all = config.tgb_layout == "all"
        self.fusion = (
            ConvolutionalFusion(quality_widths, channels_in, grid) if quality_widths else None
        )
        self.attention = nn.ModuleList(
            TransposedAttention(grid * grid, config.dropout, config.maniqa_compat)
            for _ in range(config.num_tgb)
        )
        self.reduce = Pointwise(channels_in, channels)
        self.swin = Swin(
            channels,
            grid,
            depths=config.swin_depths,
            heads=config.swin_heads,
            window=config.window,
            mlp=config.swin_mlp,
            scale=config.swin_scale,
            dropout=config.dropout,
            drop_path=config.drop_path,
        )

    def forward(self, x_BCSS: Tensor, quality_maps: Sequence[Tensor]) -> Tensor:
        guide_BCN = self.fusion(quality_maps) if self.fusion is not None else None
        x_BCN = x_BCSS.flatten(2)
        for number, block in enumerate(self.attention):
            guided = self.guide_all or number == 0
            x_BCN = block(x_BCN, guide_BCN if guided else None)
        return self.swin(self.reduce(x_BCN.view(x_BCSS.shape)))


class WeightedHead(nn.Module):
    """Score and weight of every position; the image's score is their weighted mean (MANIQA's dual
    branch).

    Args:
        channels: C.
        dropout: inside both branches.
        score_act: `relu` keeps MANIQA's last activation, which can die; `none` drops it.
    """

    def __init__(self, channels: int, dropout: float, score_act: str) -> None:
        super().__init__()
        self.score = _branch(channels, dropout)
        self.weight = _branch(channels, dropout)
        self.rectify = score_act == "relu"

    def start_at_zero(self) -> None:
        """Every score is 0 until a step has changed that."""
        last = self.score[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B,) scores."""
        score_BN = self.score(x_BNC).squeeze(-1).float()
        weight_BN = self.weight(x_BNC).squeeze(-1).float().sigmoid()
        if self.rectify:
            score_BN = score_BN.relu()
        return (score_BN * weight_BN).sum(1) / (weight_BN.sum(1) + 1e-8)


def _branch(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Dropout(dropout), nn.Linear(channels, 1)
    )


class Predictor(nn.Module):
    """Image features and quality maps to one score an image.

    Args:
        config: sizes.
        feature_channels: C of the image features.
        grid: S.
        dre_widths: channels of the extractor's five layers; unused by the MANIQA baseline.
    """

    def __init__(
        self, config: PredictorConfig, feature_channels: int, grid: int, dre_widths: Sequence[int]
    ) -> None:
        super().__init__()
        plain = config.baseline == "maniqa"
        widths = [] if plain else [dre_widths[level - 1] // 2 for level in config.cfb_levels]
        self.grid = grid
        self.stage1 = PredictorStage(feature_channels, config.embed_dim, grid, config, widths)
        self.stage2 = PredictorStage(config.embed_dim, config.embed_dim // 2, grid, config, widths)
        self.head = WeightedHead(config.embed_dim // 2, config.dropout, config.score_act)

    def forward(self, features_BCSS: Tensor, quality_maps: Sequence[Tensor] = ()) -> Tensor:
        """Normalised scores, (B,).

        Args:
            features_BCSS: image features on the token grid.
            quality_maps: lower halves of the layers in `cfb_levels`, in that order; empty for
                MANIQA.
        """
        x_BCSS = self.stage1(features_BCSS, quality_maps)
        x_BCSS = self.stage2(x_BCSS.contiguous(), quality_maps)
        return self.head(x_BCSS.flatten(2).transpose(1, 2))
