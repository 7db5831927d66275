from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dri_iqa.config import PredictorConfig
from dri_iqa.models import fusion
from dri_iqa.models.fusion import WIDE, ConvolutionalFusion, TransposedAttention
from dri_iqa.models.predictor import Predictor, WeightedHead
from dri_iqa.models.swin import Swin, WindowAttention

TINY = PredictorConfig(embed_dim=16, swin_mlp=16, swin_heads=(4, 2))
WIDTHS = (8, 16, 32, 64, 128)


def quality_maps() -> list[torch.Tensor]:
    return [torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)]


def attention_by_formula(block: TransposedAttention, x, guide, permuted: bool) -> torch.Tensor:
    B, C, N = x.shape
    weight_k, weight_v = block.kv.weight.chunk(2)
    bias_k, bias_v = block.kv.bias.chunk(2)
    out = torch.empty_like(x)
    for b in range(B):
        q = guide[b] @ block.q.weight.T + block.q.bias
        k, v = x[b] @ weight_k.T + bias_k, x[b] @ weight_v.T + bias_v
        y = torch.softmax(q @ k.T / N**0.5, dim=-1) @ v
        out[b] = x[b] + (y.T.reshape(C, N) if permuted else y)
    return out


@pytest.mark.parametrize("maniqa_compat", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_transposed_attention_follows_its_formula(maniqa_compat: bool, guided: bool):
    torch.manual_seed(0)
    block = TransposedAttention(16, dropout=0.5, maniqa_compat=maniqa_compat).eval()
    x, guide = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    expected = attention_by_formula(block, x, guide if guided else x, maniqa_compat)
    assert torch.allclose(block(x, guide if guided else None), expected, atol=1e-5)


def test_wide_attention_in_bf16_is_as_exact_as_the_fused_one(monkeypatch: pytest.MonkeyPatch):
    """Which takes other products, written for narrow heads."""
    torch.manual_seed(0)
    block = TransposedAttention(WIDE, dropout=0.0).eval()
    x, guide = torch.randn(2, 6, WIDE), torch.randn(2, 6, WIDE)
    with torch.no_grad():
        expected = attention_by_formula(block, x, guide, permuted=False)
        errors = []
        for limit in (WIDE, WIDE + 1):
            monkeypatch.setattr(fusion, "WIDE", limit)
            with torch.autocast("cpu", torch.bfloat16):
                errors.append((block(x, guide) - expected).square().mean().sqrt().item())
    assert errors[0] != errors[1], "two ways"
    assert errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]


def test_fusion_matches_its_parts_and_the_paper_widths():
    torch.manual_seed(0)
    block = ConvolutionalFusion((32, 64), 15, grid=8)
    fine, coarse = quality_maps()
    up = torch.nn.functional.interpolate(
        block.inputs[1](coarse), scale_factor=2, mode="bilinear", align_corners=False
    )
    expected = block.mix(torch.cat((block.inputs[0](fine), up), dim=1)).flatten(2)
    assert torch.allclose(block([fine, coarse]), expected, atol=1e-6)
    with torch.device("meta"):
        sizes = [ConvolutionalFusion((256, 512), c, 28) for c in (3072, 768)]
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in sizes]
    assert counts == pytest.approx([1.21, 0.30], abs=0.01)


def window_attention_by_formula(block: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every pair of tokens on its own: same window after the shift, and neighbours before it."""
    B, S, _, C = x.shape
    w, shift, heads = block.window, block.shift, block.heads
    D = C // heads
    out = torch.empty_like(x)
    line = [(y, z) for y in range(S) for z in range(S)]
    for b in range(B):
        qkv = {(y, z): (x[b, y, z] @ block.qkv.weight.T + block.qkv.bias) for y, z in line}
        for y, z in line:
            sy, sz = (y - shift) % S, (z - shift) % S
            pooled = []
            for head in range(heads):
                part = slice(head * D, head * D + D)
                logits, values = [], []
                for ky, kz in line:
                    ty, tz = (ky - shift) % S, (kz - shift) % S
                    if (sy // w, sz // w) != (ty // w, tz // w):
                        continue
                    dy, dz = sy % w - ty % w, sz % w - tz % w
                    row = (dy + w - 1) * (2 * w - 1) + dz + w - 1
                    logit = qkv[y, z][:C][part] @ qkv[ky, kz][C : 2 * C][part] / D**0.5
                    # after the roll the last window holds tokens from opposite edges
                    wrapped = (y < shift) != (ky < shift) or (z < shift) != (kz < shift)
                    blocked = -100.0 if shift and wrapped else 0.0
                    logits.append(logit + block.bias_table[row, head] + blocked)
                    values.append(qkv[ky, kz][2 * C :][part])
                pooled.append(torch.softmax(torch.stack(logits), 0) @ torch.stack(values))
            out[b, y, z] = torch.cat(pooled) @ block.proj.weight.T + block.proj.bias
    return out


@pytest.mark.parametrize("shift", [0, 1])
def test_window_attention_equals_token_pairs(shift: int):
    torch.manual_seed(0)
    block = WindowAttention(8, heads=2, window=2, grid=4, shift=shift)
    torch.nn.init.normal_(block.bias_table)
    x = torch.randn(2, 4, 4, 8)
    with torch.no_grad():
        assert torch.allclose(block(x), window_attention_by_formula(block, x), atol=1e-5)


def test_a_grid_of_one_window_is_not_shifted():
    swin = Swin(
        8, 3, depths=(2,), heads=(2,), window=4, mlp=8, scale=0.5, dropout=0.0, drop_path=0.0
    )
    blocks = [m for m in swin.modules() if isinstance(m, WindowAttention)]
    assert [(m.window, m.shift) for m in blocks] == [(3, 0), (3, 0)]
    assert swin(torch.randn(1, 8, 3, 3)).shape == (1, 8, 3, 3)


def test_swin_at_scale_zero_is_the_identity_and_drop_path_grows():
    options = {"depths": (2, 2), "heads": (2, 2), "window": 4, "mlp": 8, "dropout": 0.0}
    swin = Swin(8, 8, scale=0.0, drop_path=0.3, **options).eval()
    x = torch.randn(1, 8, 8, 8)
    assert torch.equal(swin(x), x)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for layer in swin.layers for b in layer.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("score_act", ["relu", "none"])
def test_head_is_the_weighted_mean_over_positions(score_act: str):
    torch.manual_seed(0)
    head = WeightedHead(6, 0.1, score_act).eval()
    x = torch.randn(3, 5, 6)
    for b in range(3):
        scores = [head.score(x[b, n]) for n in range(5)]
        if score_act == "relu":
            scores = [s.clamp(min=0) for s in scores]
        weights = [torch.sigmoid(head.weight(x[b, n])) for n in range(5)]
        total = sum(s * w for s, w in zip(scores, weights, strict=True))
        assert torch.allclose(head(x)[b], total / sum(weights), atol=1e-6)
    assert (head(x) < 0).any() == (score_act == "none")


def test_paper_size_has_the_published_parameters_and_cost():
    with torch.device("meta"), torch.no_grad():
        predictor = Predictor(PredictorConfig(), 3072, 28, [64 * 2**level for level in range(5)])
        plain = Predictor(PredictorConfig(baseline="maniqa"), 3072, 28, ())
        quality = [torch.empty(1, 256, 28, 28), torch.empty(1, 512, 14, 14)]
        with FlopCounterMode(display=False) as counter:
            score = predictor(torch.empty(1, 3072, 28, 28), quality)
    count = sum(p.numel() for p in predictor.parameters()) / 1e6
    assert score.shape == (1,)
    assert count == pytest.approx(44.05, rel=0.001)
    assert counter.get_total_flops() / 2e9 == pytest.approx(74.4, rel=0.01)
    assert sum(p.numel() for p in plain.parameters()) / 1e6 == pytest.approx(
        129.11 - 86.58, rel=0.001
    )
    swin = [
        sum(p.numel() for p in s.swin.parameters()) for s in (predictor.stage1, predictor.stage2)
    ]
    assert [n / 1e6 for n in swin] == pytest.approx([24.81, 7.39], rel=0.001)


@pytest.mark.parametrize("layout", ["all", "first"])
def test_layout_decides_which_blocks_see_the_quality_maps(layout):
    torch.manual_seed(0)
    config = PredictorConfig(
        embed_dim=16, swin_mlp=16, swin_heads=(4, 2), tgb_layout=layout, dropout=0.0
    )
    stage = Predictor(config, 24, 8, WIDTHS).eval().stage1
    seen: list[bool] = []
    for block in stage.attention:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1] is not None))
    stage(torch.randn(2, 24, 8, 8), quality_maps())
    assert seen == [True, layout == "all"]


def test_predictor_compiles_without_graph_breaks():
    torch.manual_seed(0)
    predictor = Predictor(TINY, 24, 8, WIDTHS).eval()
    inputs = (torch.randn(2, 24, 8, 8), quality_maps())
    compiled = torch.compile(predictor, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(*inputs), predictor(*inputs), atol=1e-5)
