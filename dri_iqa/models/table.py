"""What trains, is frozen or absent, with sizes and costs: the table at the start of stage 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dri_iqa.config import ModelConfig, Stage2Config
from dri_iqa.models.backbone import Backbone
from dri_iqa.models.checks import check_model, token_grid
from dri_iqa.models.dre import DREEncoder, ProjectionHeads, lower
from dri_iqa.models.nafnet import NAFNet
from dri_iqa.models.perceptual import PerceptualDistance
from dri_iqa.models.predictor import Predictor
from dri_iqa.models.readout import PooledReadout
from dri_iqa.plan import stage2_plan


class Row(NamedTuple):
    """One part of the model."""

    part: str
    state: Literal["trained", "frozen", "moving average", "absent"]
    parameters: int
    """All its parameters; 0 when absent."""
    macs: int
    """Multiply-accumulates of one forward pass of one crop; 0 when absent."""


def model_table(
    config: ModelConfig, stage2: Stage2Config, has_references: bool = True
) -> list[Row]:
    """The parts of a stage-2 configuration, measured on the meta device: no memory, no weights.

    Args:
        config: the model's sizes.
        stage2: decides what trains.
        has_references: whether the data set has references.

    Raises:
        ConfigError: sizes that clash.
    """
    plan = stage2_plan(stage2, has_references)
    check_model(config)
    grid, side = token_grid(config), config.crop
    sizes = config.predictor if plan.extractor else replace(config.predictor, baseline="maniqa")
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, 3, side, side)
        encoder, heads = DREEncoder(config.dre), ProjectionHeads(config.dre)
        features = encoder(image)
        backbone = Backbone(config.backbone, crop=side, grid=grid, load_weights=False)
        tokens = torch.empty(1, backbone.channels, grid, grid)
        predictor = Predictor(sizes, backbone.channels, grid, encoder.widths)
        levels = sizes.cfb_levels if sizes.baseline == "none" else ()
        quality = [lower(features[level - 1]) for level in levels]
        readout = []
        if sizes.readout == "linear":
            maps = [*backbone.maps(image), *quality]
            linear = PooledReadout([map_BCHW.shape[1] for map_BCHW in maps])
            readout.append(_row("readout", "trained", linear, lambda: linear(maps)))
        restoration = NAFNet(config.ram, encoder.widths)
        rows = [
            _row(
                "extractor",
                "trained" if plan.extractor else "absent",
                encoder,
                lambda: encoder(image),
            ),
            _row(
                "projection heads",
                "trained" if plan.halves else "absent",
                heads,
                lambda: heads(features[-1]),
            ),
            _row(
                "key encoder",
                "moving average" if plan.halves else "absent",
                nn.ModuleList((encoder, heads)),
                lambda: heads(encoder(image)[-1]),
            ),
            _row(
                "stage-1 extractor",
                "frozen" if plan.representation else "absent",
                encoder,
                lambda: encoder(image),
            ),
            _row(
                "backbone",
                "frozen" if stage2.freeze_backbone else "trained",
                backbone,
                lambda: backbone(image),
            ),
            _row("predictor", "trained", predictor, lambda: predictor(tokens, quality)),
            *readout,
            _row(
                "restoration",
                "trained" if plan.restoration else "absent",
                restoration,
                lambda: restoration(image, features),
            ),
        ]
        if plan.perceptual:
            # only its shape is measured: its weights are neither read nor drawn
            distance = PerceptualDistance(replace(stage2.perceptual, weights="random"))
            rows.append(
                _row(
                    "perceptual network",
                    "frozen",
                    distance,
                    lambda: torch.stack([m.sum() for m in distance.features(image)]),
                )
            )
        else:
            rows.append(Row("perceptual network", "absent", 0, 0))
    return rows


def _row(
    part: str,
    state: Literal["trained", "frozen", "moving average", "absent"],
    module: nn.Module,
    run: Callable[[], Tensor | tuple[Tensor, ...]],
) -> Row:
    if state == "absent":
        return Row(part, state, 0, 0)
    # It imports triton, which scoring never needs.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Row(part, state, parameters, counter.get_total_flops() // 2)


def format_table(rows: list[Row]) -> str:
    """The rows as aligned text, with a line of totals of what trains."""
    lines = [f"{'part':<20}{'state':<16}{'parameters':>14}{'MAC per crop':>18}"]
    lines += [f"{row.part:<20}{row.state:<16}{row.parameters:>14,}{row.macs:>18,}" for row in rows]
    trained = [row for row in rows if row.state == "trained"]
    parameters, macs = sum(row.parameters for row in trained), sum(row.macs for row in trained)
    return "\n".join([*lines, f"{'trained':<36}{parameters:>14,}{macs:>18,}"])
