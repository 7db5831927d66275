"""A small state dict under MANIQA's own names against a model written out from its formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dri_iqa.config import BackboneConfig, ConfigError, ModelConfig, PredictorConfig
from dri_iqa.models import build_model
from dri_iqa.models.maniqa_weights import load_maniqa

VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_heads": 2}
N, WINDOW, HEADS, SCALE = 64, 4, 2, 0.13

CONFIG = ModelConfig(
    crop=64,
    backbone=BackboneConfig(
        name="vit_tiny_patch16_224", weights="none", blocks=(0, 1, 2, 3), kwargs=VIT
    ),
    predictor=PredictorConfig(
        embed_dim=16,
        swin_mlp=12,
        swin_heads=(HEADS, HEADS),
        swin_scale=SCALE,
        maniqa_compat=True,
        baseline="maniqa",
    ),
)


def official_state() -> dict[str, Tensor]:
    """Random tensors with every name and shape of MANIQA's checkpoint at this scale."""
    torch.manual_seed(3)
    vit = timm.create_model("vit_tiny_patch16_224", **VIT)
    state = {f"vit.{name}": tensor.clone() for name, tensor in vit.state_dict().items()}

    def linear(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape) * 0.2
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.2

    for stage, (width_in, width) in ((1, (64, 16)), (2, (16, 8))):
        for block in range(2):
            for letter in "qkv":
                linear(f"tablock{stage}.{block}.c_{letter}", N, N)
        linear(f"conv{stage}", width, width_in, 1, 1)
        swin = f"swintransformer{stage}"
        linear(f"{swin}.downsample", width, width, 3, 3)
        for layer in range(2):
            linear(f"{swin}.layers.{layer}.conv", width, width, 3, 3)
            for number in range(2):
                block = f"{swin}.layers.{layer}.blocks.{number}"
                for norm in ("norm1", "norm2"):
                    linear(f"{block}.{norm}", width)
                linear(f"{block}.attn.qkv", 3 * width, width)
                linear(f"{block}.attn.proj", width, width)
                linear(f"{block}.mlp.fc1", 12, width)
                linear(f"{block}.mlp.fc2", width, 12)
                table = (2 * WINDOW - 1) ** 2
                state[f"{block}.attn.relative_position_bias_table"] = torch.randn(table, HEADS)
                state[f"{block}.attn.relative_position_index"] = torch.zeros(16, 16)
                if number:
                    state[f"{block}.attn_mask"] = torch.zeros(4, 16, 16)
    for branch in ("fc_score", "fc_weight"):
        linear(f"{branch}.0", 8, 8)
        linear(f"{branch}.3", 1, 8)
    state["fc_score.3.bias"] += 1.0  # above zero, where the last ReLU lets it through
    return state


def maniqa_by_formula(state: dict[str, Tensor], image: Tensor) -> Tensor:
    vit = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    vit.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("vit.")})
    maps = vit.forward_intermediates((image - 0.5) / 0.5, intermediates_only=True)
    x = torch.cat(maps[:4], dim=1)
    for stage in (1, 2):
        x = x.flatten(2)
        B, C, _ = x.shape
        for block in range(2):
            q, k, v = (F.linear(x, *_wb(state, f"tablock{stage}.{block}.c_{c}")) for c in "qkv")
            y = torch.softmax(q @ k.transpose(1, 2) * N**-0.5, dim=-1) @ v
            x = x + y.transpose(1, 2).reshape(B, C, N)
        x = F.conv2d(x.view(B, C, 8, 8), *_wb(state, f"conv{stage}"))
        for layer in range(2):
            x = x + SCALE * _swin_layer(state, f"swintransformer{stage}.layers.{layer}", x)
    scores = []
    for tokens in x.flatten(2).transpose(1, 2):
        f, w = (
            F.linear(F.relu(F.linear(tokens, *_wb(state, f"{b}.0"))), *_wb(state, f"{b}.3"))
            for b in ("fc_score", "fc_weight")
        )
        scores.append((F.relu(f) * torch.sigmoid(w)).sum() / torch.sigmoid(w).sum())
    return torch.stack(scores)


def _swin_layer(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    B, C, S, _ = x.shape
    x = x.permute(0, 2, 3, 1)
    for number in range(2):
        block, shift = f"{name}.blocks.{number}", number * WINDOW // 2
        y = F.layer_norm(x, (C,), *_wb(state, f"{block}.norm1")).roll((-shift, -shift), (1, 2))
        out = torch.empty_like(y)
        table = state[f"{block}.attn.relative_position_bias_table"]
        for top in range(0, S, WINDOW):
            for left in range(0, S, WINDOW):
                cells = [(top + i, left + j) for i in range(WINDOW) for j in range(WINDOW)]
                tokens = torch.stack([y[:, i, j] for i, j in cells], dim=1)
                qkv = F.linear(tokens, *_wb(state, f"{block}.attn.qkv"))
                q, k, v = qkv.view(B, 16, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
                bias = torch.empty(HEADS, 16, 16)
                for a, (ai, aj) in enumerate(cells):
                    for b, (bi, bj) in enumerate(cells):
                        row = (ai - bi + WINDOW - 1) * (2 * WINDOW - 1) + aj - bj + WINDOW - 1
                        edge = S - shift
                        apart = shift and ((ai < edge) != (bi < edge) or (aj < edge) != (bj < edge))
                        bias[:, a, b] = table[row] - (100.0 if apart else 0.0)
                attn = torch.softmax(q @ k.transpose(2, 3) * (C // HEADS) ** -0.5 + bias, dim=-1)
                joined = (attn @ v).transpose(1, 2).reshape(B, 16, C)
                joined = F.linear(joined, *_wb(state, f"{block}.attn.proj"))
                for t, (i, j) in enumerate(cells):
                    out[:, i, j] = joined[:, t]
        x = x + out.roll((shift, shift), (1, 2))
        y = F.layer_norm(x, (C,), *_wb(state, f"{block}.norm2"))
        y = F.gelu(F.linear(y, *_wb(state, f"{block}.mlp.fc1")))
        x = x + F.linear(y, *_wb(state, f"{block}.mlp.fc2"))
    return F.relu(F.conv2d(x.permute(0, 3, 1, 2), *_wb(state, f"{name}.conv"), padding=1))


def _wb(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def test_official_names_load_and_give_the_formulas_scores():
    state = official_state()
    model = build_model(CONFIG)
    load_maniqa(model, state)
    image = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = maniqa_by_formula(state, image)
    assert expected.std() > 1e-3
    assert torch.allclose(model.predict(image), expected, atol=1e-5)


def test_without_the_permutation_scores_differ_so_it_is_required():
    plain = replace(CONFIG, predictor=replace(CONFIG.predictor, maniqa_compat=False))
    with pytest.raises(ConfigError, match=r"maniqa_compat=true, got maniqa and false"):
        load_maniqa(build_model(plain), official_state())
    compatible, other = build_model(CONFIG), build_model(plain)
    load_maniqa(compatible, official_state())
    other.load_state_dict(compatible.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(compatible.predict(image), other.predict(image), atol=1e-4)


def test_a_missing_tensor_is_named():
    state = official_state()
    del state["conv2.bias"]
    with pytest.raises(ConfigError, match=r"predictor\.stage2\.reduce\.bias"):
        load_maniqa(build_model(CONFIG), state)
