"""The whole inference model: extractor, backbone, predictor (paper 3.1).

Shapes: B images, C channels, H x W pixels, h x w positions of the extractor's last map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dri_iqa.config import ModelConfig
from dri_iqa.models.backbone import Backbone
from dri_iqa.models.checks import check_model, token_grid
from dri_iqa.models.companion import KernelCompanion
from dri_iqa.models.dre import DREEncoder, lower, upper
from dri_iqa.models.predictor import Predictor
from dri_iqa.models.readout import PooledReadout
from dri_iqa.models.weights import seeded

EXTRACTOR, BACKBONE, PREDICTOR, RESTORATION, PERCEPTUAL = range(5)
"""Numbers of the parts for their initial weights; never renumber."""


class DRIIQA(nn.Module):
    """No-reference image quality, one normalised score a crop.

    Args:
        config: the sizes; stored in every bundle.
        load_backbone_weights: False never touches hub or files.
        seed: of the initial weights.

    Raises:
        ConfigError: sizes that clash, or backbone weights that cannot be had.
    """

    def __init__(self, config: ModelConfig, *, load_backbone_weights: bool, seed: int = 0) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        grid = token_grid(config)
        self.dre: DREEncoder | None = None
        if config.predictor.baseline == "none":
            with seeded(seed, EXTRACTOR):
                self.dre = DREEncoder(config.dre)
        with seeded(seed, BACKBONE):
            self.backbone = Backbone(
                config.backbone, crop=config.crop, grid=grid, load_weights=load_backbone_weights
            )
        with seeded(seed, PREDICTOR):
            self.predictor = Predictor(
                config.predictor,
                self.backbone.channels,
                grid,
                self.dre.widths if self.dre is not None else (),
            )
        self.readout: PooledReadout | None = None
        if config.predictor.readout == "linear":
            halves = (
                [self.dre.widths[level - 1] // 2 for level in self._levels()] if self.dre else []
            )
            self.readout = PooledReadout([*self.backbone.widths, *halves])
            self.predictor.head.start_at_zero()  # the first scores are the readout's
        self.companion: KernelCompanion | None = None
        if config.companion.images:
            with seeded(seed, BACKBONE):
                self.companion = KernelCompanion(config, load_weights=load_backbone_weights)

    def _levels(self) -> Sequence[int]:
        """1-based layers of the extractor whose quality halves the score reads."""
        return self.config.predictor.cfb_levels if self.dre is not None else ()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised scores, (B,), for RGB crops in [0, 1].

        Raises:
            ValueError: crops of another size than the model's.
        """
        side = self.config.crop
        if image_BCHW.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected crops of shape (B, 3, {side}, {side}), got {tuple(image_BCHW.shape)}"
            )
        features = self.dre(image_BCHW) if self.dre is not None else ()
        return self.score(image_BCHW, features)

    def score(self, image_BCHW: Tensor, features: Sequence[Tensor]) -> Tensor:
        """As `forward`, with the extractor's five maps at hand (none for the MANIQA baseline)."""
        maps, quality = self.read(image_BCHW, features)
        score_B = self.predictor(self.backbone.on_grid(maps), quality)
        if self.readout is not None:
            score_B = score_B + self.readout([*maps, *quality])
        return self.accompanied(score_B, image_BCHW)

    def accompanied(self, score_B: Tensor, image_BCHW: Tensor) -> Tensor:
        """The network's scores of these crops and the companion's, where there is one, in their shares."""
        if self.companion is None:
            return score_B
        with torch.autocast(image_BCHW.device.type, enabled=False):  # as it was fitted
            own_B = self.companion(image_BCHW.float())
        return torch.lerp(score_B.float(), own_B, self.config.companion.weight)

    def read(
        self, image_BCHW: Tensor, features: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What the readout pools: the backbone's maps and the quality halves of the extractor's."""
        return self.backbone.maps(image_BCHW), self._quality(features)

    def _quality(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return tuple(lower(features[level - 1]) for level in self._levels())

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """`forward` without gradient, dropout or changing statistics, in any mode."""
        with evaluating(self), torch.no_grad():
            return self(image_BCHW)

    def maps(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Degradation map and quality map, each (B, h, w): mean magnitude of the halves of the last
        layer.

        Runs on images of any size, as the paper's Figure 6 shows them.

        Raises:
            ValueError: the MANIQA baseline, which has no extractor.
        """
        if self.dre is None:
            raise ValueError(
                "predictor.baseline=maniqa has no extractor, so no degradation and quality maps"
            )
        with evaluating(self), torch.no_grad():
            last_BChw = self.dre(image_BCHW)[-1]
            return upper(last_BChw).abs().mean(1), lower(last_BChw).abs().mean(1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode is restored after."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def build_model(config: ModelConfig, *, backbone_weights: bool = True, seed: int = 0) -> DRIIQA:
    """The inference model of a configuration.

    Args:
        config: sizes and backbone.
        backbone_weights: False when a bundle is loaded over it: then neither hub nor files are
            touched.
        seed: of the initial weights.

    Raises:
        ConfigError: sizes that clash, or backbone weights that cannot be had.
    """
    return DRIIQA(config, load_backbone_weights=backbone_weights, seed=seed)
