from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dri_iqa.config import ConfigError, DREConfig
from dri_iqa.models.checks import check_extractor
from dri_iqa.models.dre import DRE, DREEncoder, lower, upper
from dri_iqa.models.norm import make_norm


def test_paper_size_has_the_published_shapes_parameters_and_cost():
    with torch.device("meta"), torch.no_grad():
        dre = DRE(DREConfig())
        image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            features = dre.encode(image)
        output = dre(image)
    assert [tuple(m.shape[1:]) for m in features] == [
        (64, 224, 224),
        (128, 112, 112),
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
    ]
    sizes = [sum(p.numel() for p in layer.parameters()) / 1e6 for layer in dre.encoder.layers]
    assert sizes == pytest.approx([0.039, 0.230, 0.919, 3.673, 14.686], rel=0.01)
    assert sum(sizes) == pytest.approx(19.55, rel=0.001)
    assert sum(p.numel() for p in dre.heads.parameters()) / 1e6 == pytest.approx(0.788, rel=0.001)
    assert counter.get_total_flops() / 2e9 == pytest.approx(13.46, rel=0.001)
    assert output.up_map.shape == output.low_map.shape == (1, 512, 14, 14)
    assert output.z_up.shape == output.z_low.shape == (1, 256)


def test_halves_heads_and_cheap_call_agree_with_the_whole():
    torch.manual_seed(0)
    dre = DRE(DREConfig(width=8, norm="gn", proj_dim=12)).eval()
    image = torch.rand(3, 3, 32, 48)
    output = dre(image)
    assert all(torch.equal(a, b) for a, b in zip(output.features, dre.encode(image), strict=True))
    assert torch.equal(torch.cat((output.up_map, output.low_map), 1), output.features[-1])
    assert torch.equal(upper(output.features[-1]), output.up_map)
    assert torch.equal(lower(output.features[-1]), output.low_map)
    by_hand = dre.heads.low(output.low_map.mean((2, 3)))
    expected = by_hand / by_hand.square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(output.z_low, expected, atol=1e-6)
    assert torch.allclose(output.z_up.norm(dim=1), torch.ones(3), atol=1e-6)


def test_without_heads_the_pooled_half_is_contrasted():
    dre = DRE(DREConfig(width=8, norm="gn", proj="none"))
    assert dre.heads.dim == 64
    assert not list(dre.heads.parameters())
    output = dre(torch.rand(2, 3, 32, 32))
    expected = nn.functional.normalize(output.up_map.mean((2, 3)), dim=1)
    assert torch.allclose(output.z_up, expected, atol=1e-6)


def test_residual_layer_follows_its_formula():
    layer = DREEncoder(DREConfig(width=8, norm="gn")).layers[1]
    x = torch.randn(2, 8, 16, 16)
    act = nn.LeakyReLU(0.1)
    main = layer.norm2(layer.conv2(act(layer.norm1(layer.conv1(x)))))
    shortcut = nn.functional.conv2d(x, layer.shortcut.weight, stride=2)
    expected = act(main + layer.norm3(shortcut))
    assert layer.conv1.stride == (2, 2)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (16, 8), (64, 32), (1024, 32), (6, 3)])
def test_groups_are_never_single_channels(channels: int, groups: int):
    norm = make_norm("gn", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_checkpointing_changes_memory_not_gradients():
    torch.manual_seed(0)
    encoder = DREEncoder(DREConfig(width=8, norm="gn"))
    image = torch.rand(2, 3, 32, 32)
    gradients = []
    for encoder.checkpointing in (False, True):
        encoder.zero_grad()
        encoder(image)[-1].square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("config", "crop", "numbers"),
    [
        (DREConfig(width=7), 64, ["dre.width=7", "even"]),
        (DREConfig(strides=(1, 2, 2, 2, 1)), 64, ["(1, 2, 2, 2, 1)", "(1, 2, 2, 2, 2)"]),
        (DREConfig(), 72, ["crop=72", "16"]),
        (DREConfig(strides=(2, 2, 2, 2, 2)), 48, ["crop=48", "32"]),
        (DREConfig(proj_dim=0), 64, ["dre.proj_dim=0"]),
    ],
)
def test_clashes_name_their_numbers(config: DREConfig, crop: int, numbers: list[str]):
    with pytest.raises(ConfigError) as error:
        check_extractor(config, crop)
    assert all(number in str(error.value) for number in numbers)
