"""The packed network against the formulas it rearranges: bf16's rounding is the only difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from dri_iqa.config import BackboneConfig, CompanionConfig, DREConfig, PredictorConfig
from dri_iqa.models import PackedModel, build_model, can_pack
from dri_iqa.models.backbone import Backbone
from dri_iqa.models.dre import DREEncoder, lower
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.models.fusion import TransposedAttention
from dri_iqa.models.packed import (
    PackedAttention,
    PackedBackbone,
    PackedExtractor,
    PackedLinear,
    PackedMlp,
    PackedTransposedAttention,
)
from dri_iqa.models.winograd import FEWEST, WinogradConv
from tests.tiny import CROP, tiny_model

pytestmark = pytest.mark.skipif(not can_pack(), reason="this processor has no bf16 products")


def error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values' spread."""
    return ((found.float() - expected).square().mean().sqrt() / expected.std()).item()


def rounded(value: Tensor) -> Tensor:
    return value.bfloat16().float()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2)])
@pytest.mark.parametrize("biased", [False, True])
def test_winograd_equals_a_direct_convolution(size: tuple[int, int], biased: bool) -> None:
    weight, bias = torch.randn(12, 16, 3, 3), torch.randn(12) if biased else None
    x = rounded(torch.randn(2, 16, *size))
    with torch.no_grad():
        found = WinogradConv(weight, bias)(x)
    assert error(found, F.conv2d(x, weight, bias, padding=1)) < 0.012
    assert found.shape == (2, 12, *size)


@pytest.mark.parametrize("maniqa_compat", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_merged_projections_change_nothing(guided: bool, maniqa_compat: bool) -> None:
    block = TransposedAttention(24, dropout=0.5, maniqa_compat=maniqa_compat).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(4)  # biases and logits that matter
        x, guide = rounded(torch.randn(2, 40, 24)), rounded(torch.randn(2, 40, 24))
        expected = block(x, guide if guided else None)
        found = PackedTransposedAttention(block)(x, guide if guided else None)
        assert error(found - x, expected - x) < 0.03


def test_heads_one_by_one_equal_the_fused_attention() -> None:
    attention = Attention(48, num_heads=4, qkv_bias=True).eval()
    with torch.no_grad():
        attention.qkv.weight.mul_(4)
        x = rounded(torch.randn(3, 17, 48))
        assert error(PackedAttention(attention)(x), attention(x)) < 0.03


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("levels", [(4, 5), (3,), (5, 2)])
def test_extractor_gives_the_halves_that_are_read(norm: Any, levels: tuple[int, ...]) -> None:
    encoder = DREEncoder(DREConfig(width=8, norm=norm)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var, module.weight, module.bias):
                assert statistic is not None
                nn.init.uniform_(statistic, 0.5, 1.5)
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        packed = PackedExtractor(encoder, levels)
        found = packed(image)
    with torch.no_grad():
        features = encoder(image)
    assert len(packed.layers) == max(levels)
    for half, level in zip(found, levels, strict=True):
        expected = lower(features[level - 1])
        assert half.shape == expected.shape
        assert error(half, expected) < 0.03


MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"dre": DREConfig(width=8, norm="bn")},
    "maniqa": {"predictor": PredictorConfig(embed_dim=48, swin_mlp=48, baseline="maniqa")},
    "readout": {"predictor": PredictorConfig(embed_dim=48, swin_mlp=48, readout="linear")},
    "companion": {"companion": CompanionConfig(images=9, weight=0.4)},
    "convolutional": {
        "backbone": BackboneConfig(name="mobilenetv2_050", weights="none", blocks=(1, 2)),
        "predictor": PredictorConfig(embed_dim=48, swin_mlp=48, token=16),
    },
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> DRIIQA:
    model = build_model(tiny_model(**MODELS[request.param]), backbone_weights=False).eval()
    if model.readout is not None:
        torch.nn.init.normal_(model.readout.linear.weight, std=0.01)
    if model.companion is not None:
        statistics_NF = model.companion.statistics(torch.rand(9, 3, CROP, CROP))
        model.companion.fit(statistics_NF, torch.linspace(0, 1, 9))
    return model


def test_whole_network_is_as_exact_as_by_autocast(model: DRIIQA) -> None:
    image = torch.rand(16, 3, CROP, CROP) * torch.rand(16, 1, 1, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = PackedModel(model)
    found, expected = packed.predict(image), model.predict(image)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.predict(image)
    assert error(found, expected) < 2 * error(cast, expected) + 0.02
    assert torch.equal(packed.predict(image), found)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(model.predict(image), expected), "the model itself stays fp32"


def test_every_large_layer_is_packed() -> None:
    """At the paper's sizes, where it pays."""
    sizes = tiny_model(
        dre=DREConfig(width=32, norm="bn"), predictor=PredictorConfig(embed_dim=512, swin_mlp=48)
    )
    packed = PackedModel(build_model(sizes, backbone_weights=False).eval())
    kinds = [type(module) for module in packed.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(PackedAttention) == 4
    assert kinds.count(PackedTransposedAttention) == 4
    assert kinds.count(PackedMlp) == 4 + 2 * 4
    assert PackedLinear in kinds
    # the second convolutions of the extractor's last two layers, and both of each Swin
    wide = [m for m in packed.modules() if isinstance(m, WinogradConv)]
    assert all(min(m.weight.shape[1:]) >= FEWEST for m in wide)
    assert len(wide) == 2 + 4


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        PackedModel(build_model(tiny_model(), backbone_weights=False).train())


def test_a_backbone_without_its_norms() -> None:
    config = BackboneConfig(name="mobilenetv2_050", weights="random", blocks=(0, 1))
    backbone = Backbone(config, crop=64, grid=8, load_weights=False)
    image = rounded(torch.rand(4, 3, 64, 64))
    with torch.no_grad():
        for _ in range(20):
            backbone(image)  # statistics of its own
        backbone.eval()
        packed = PackedBackbone(backbone)
        assert [type(layer) for layer in packed.modules()].count(nn.Conv2d) == 9
        with torch.autocast("cpu", torch.bfloat16):
            assert error(packed(image), backbone(image)) < 0.03
