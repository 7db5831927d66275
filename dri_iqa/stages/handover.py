"""What stage 2 takes over from stage 1: extractor, heads, key encoder and queue."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dri_iqa.config import ConfigError
from dri_iqa.models.weights import load_strictly
from dri_iqa.stages.momentum import MomentumContrast


def load_stage1(
    encoder: nn.Module,
    heads: nn.Module | None,
    contrast: MomentumContrast | None,
    state: Mapping[str, Tensor],
) -> None:
    """Query, key encoder and queue from a stage-1 state; without key or queue they start anew from the query.

    Args:
        encoder, heads, contrast: filled in place; variants without a contrast have neither heads nor contrast.
        state: of a `PretrainStage`.

    Raises:
        ConfigError: stage 1 trained other halves, or weights that do not fit.
    """
    load_strictly(encoder, _under(state, "query.encoder."), "the stage-1 extractor")
    if heads is None or contrast is None:
        return
    queue = _under(state, "contrast.queue.")
    if queue and ("up_KD" in queue) != ("up" in contrast.halves):
        got, want = ("dual", "quality") if "up_KD" in queue else ("quality", "dual")
        raise ConfigError(
            f"stage 1 was trained with stage1.halves={got}, this variant needs stage1.halves={want}"
        )
    load_strictly(heads, _under(state, "query.heads."), "the stage-1 heads")
    key = _under(state, "contrast.key.")
    if key:
        load_strictly(contrast.key, key, "the stage-1 key encoder")
    else:
        contrast.copy_query(encoder, heads)
    if queue:
        load_strictly(contrast.queue, queue, "the stage-1 queue")


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
