"""Official MANIQA weights under this project's names (MANIQA models/maniqa.py, models/swin.py).

They need `predictor.baseline = maniqa` and `predictor.maniqa_compat = true`, and the `swin_scale`
they were trained with (0.8, or 0.13 for the PIPAL checkpoint).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dri_iqa.config import ConfigError
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.models.weights import load_strictly

_RENAMES = (
    (r"^tablock([12])\.(\d+)\.c_q\.", r"predictor.stage\1.attention.\2.q."),
    (r"^conv([12])\.", r"predictor.stage\1.reduce."),
    (r"^swintransformer([12])\.layers\.(\d+)\.conv\.", r"predictor.stage\1.swin.layers.\2.conv."),
    (
        r"^swintransformer([12])\.layers\.(\d+)\.blocks\.(\d+)\.",
        r"predictor.stage\1.swin.layers.\2.blocks.\3.",
    ),
    (r"\.attn\.relative_position_bias_table$", ".attention.bias_table"),
    (r"(\.blocks\.\d+)\.attn\.(qkv|proj)\.", r"\1.attention.\2."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
    (r"^fc_score\.", "predictor.head.score."),
    (r"^fc_weight\.", "predictor.head.weight."),
)
_UNUSED = re.compile(
    r"^swintransformer[12]\.downsample\.|relative_position_index$|attn_mask$|^vit\.(norm|head|fc_norm)\."
)


def load_maniqa(model: DRIIQA, state: Mapping[str, Tensor]) -> None:
    """Load a MANIQA state dict into a model of the baseline.

    Args:
        model: built with `baseline = maniqa` and `maniqa_compat = true`.
        state: MANIQA's own names; blocks of its ViT after the last tapped one are left out.

    Raises:
        ConfigError: another kind of model, or a tensor that is missing or does not fit.
    """
    predictor = model.config.predictor
    if predictor.baseline != "maniqa" or not predictor.maniqa_compat:
        raise ConfigError(
            "MANIQA weights need predictor.baseline=maniqa and predictor.maniqa_compat=true, got "
            f"{predictor.baseline} and {str(predictor.maniqa_compat).lower()}"
        )
    own = model.state_dict()
    renamed = {name: own[name] for name in ("backbone.mean_C", "backbone.std_C")}
    for name, tensor in state.items():
        block = re.match(r"^vit\.blocks\.(\d+)\.", name)
        if _UNUSED.search(name) or (block and int(block[1]) > model.backbone.blocks[-1]):
            continue
        pair = re.match(r"^tablock([12])\.(\d+)\.c_(k|v)\.(weight|bias)$", name)
        if pair is None:
            renamed[_rename(name)] = tensor
        elif pair[3] == "k":
            value = state[name.replace(".c_k.", ".c_v.")]
            target = f"predictor.stage{pair[1]}.attention.{pair[2]}.kv.{pair[4]}"
            renamed[target] = torch.cat((tensor, value))
    load_strictly(model, renamed, "the MANIQA weights")


def _rename(name: str) -> str:
    if name.startswith("vit."):
        return name.replace("vit.", "backbone.net.", 1)
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
