from __future__ import annotations

import itertools
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dri_iqa.config import ConfigError, DREConfig, RAMConfig
from dri_iqa.models.dre import DREEncoder
from dri_iqa.models.guidance import SFT, DegradationAware
from dri_iqa.models.nafnet import ChannelLayerNorm, NAFBlock, NAFNet

WIDTHS = (8, 16, 32, 64, 128)


def features_of(image: torch.Tensor, **dre: object) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    with torch.no_grad():
        return DREEncoder(DREConfig(width=8, norm="gn", **dre))(image)  # type: ignore[arg-type]


def nafnet(**changes: object) -> NAFNet:
    torch.manual_seed(0)
    net = NAFNet(RAMConfig(width=4, size="tiny", **changes), WIDTHS)  # type: ignore[arg-type]
    # blocks start as the identity (beta = gamma = 0); give them something to do
    with torch.no_grad():
        for block in net.modules():
            if isinstance(block, NAFBlock):
                block.beta.fill_(0.3)
                block.gamma.fill_(0.3)
    return net


@pytest.mark.parametrize(
    ("size", "parameters", "macs"), [("sidd", 29.16e6, 12.29e9), ("gopro", 17.11e6, 12.22e9)]
)
def test_unguided_network_is_nafnet_of_the_published_size(size, parameters: float, macs: float):
    with torch.device("meta"), torch.no_grad():
        net = NAFNet(RAMConfig(width=32, size=size, guidance="none"))
        with FlopCounterMode(display=False) as counter:
            restored = net(torch.empty(1, 3, 224, 224))
    assert restored.shape == (1, 3, 224, 224)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=0.001)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


def test_guidance_adds_the_stated_parameters():
    with torch.device("meta"):
        plain = NAFNet(RAMConfig(guidance="none"))
        guided = NAFNet(RAMConfig(), [64 * 2**level for level in range(5)])
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, guided)]
    assert count[1] - count[0] == pytest.approx(1.75e6, rel=0.01)
    assert len(guided.guides) == 9


@pytest.mark.parametrize("guidance", ["sft", "concat", "da"])
@pytest.mark.parametrize("guide_channels", ["upper", "full"])
def test_learned_guidance_starts_as_plain_nafnet_and_then_matters(guidance, guide_channels):
    image = torch.rand(2, 3, 32, 32)
    features = features_of(image)
    plain = nafnet(guidance="none")
    guided = nafnet(guidance=guidance, guide_channels=guide_channels)
    missing, unknown = guided.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown
    assert all(name.startswith("guides.") for name in missing)
    assert torch.equal(guided(image, features), plain(image))
    # the first step moves the zeros, the second sends a gradient to the guiding maps
    optimiser = torch.optim.SGD(guided.parameters(), lr=0.1)
    guided(image, features).square().mean().backward()
    optimiser.step()
    maps = [m.clone().requires_grad_() for m in features]
    guided(image, maps).square().mean().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)
    half = maps[0].grad.shape[1] // 2
    assert (maps[0].grad[:, half:].abs().sum() > 0) == (guide_channels == "full")


def test_add_sums_the_upper_halves_without_parameters():
    image = torch.rand(1, 3, 32, 32)
    features = features_of(image)
    net = nafnet(guidance="add")
    assert not list(net.guides.parameters())
    zeros = [torch.zeros_like(m) for m in features]
    assert torch.equal(net(image, zeros), nafnet(guidance="none")(image))
    assert not torch.equal(net(image, features), net(image, zeros))
    with pytest.raises(ConfigError, match=r"8 channels for 4.*upper"):
        nafnet(guidance="add", guide_channels="full")


def test_sft_follows_its_formula():
    torch.manual_seed(0)
    sft = SFT(3, 5)
    torch.nn.init.normal_(sft.out.weight)
    h, guide = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    hidden = torch.nn.functional.leaky_relu(sft.hidden(guide), 0.1)
    weight = sft.out.weight[:, :, 0, 0]
    gamma = torch.einsum("bchw,oc->bohw", hidden[:, :5], weight[:3])
    beta = torch.einsum("bchw,oc->bohw", hidden[:, 5:], weight[3:])
    assert torch.allclose(sft(h, guide), h * (1 + gamma) + beta, atol=1e-5)


def test_depthwise_kernels_of_da_belong_to_their_own_image():
    torch.manual_seed(0)
    block = DegradationAware(4, 6)
    with torch.no_grad():
        block.scale_C.fill_(1)
    h, guide = torch.randn(3, 4, 8, 8), torch.randn(3, 6, 8, 8)
    alone = torch.cat([block(h[i : i + 1], guide[i : i + 1]) for i in range(3)])
    assert torch.allclose(block(h, guide), alone, atol=1e-5)


def test_half_resolution_extractor_is_resampled():
    image = torch.rand(1, 3, 32, 32)
    features = features_of(image, strides=(2, 2, 2, 2, 2))
    assert features[0].shape[2] == 16
    assert nafnet()(image, features).shape == image.shape


@pytest.mark.parametrize("channels", [4, 32])
def test_channel_norm_equals_torchs_at_every_width(channels: int):
    torch.manual_seed(0)
    norm = ChannelLayerNorm(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, 3, 5)
    expected = torch.empty_like(x)
    for b, y, z in itertools.product(range(2), range(3), range(5)):
        pixel = x[b, :, y, z]
        deviation = (pixel.var(correction=0) + 1e-6).sqrt()
        expected[b, :, y, z] = (pixel - pixel.mean()) / deviation * norm.weight + norm.bias
    assert torch.allclose(norm(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", ["sidd", "gopro", "light", "tiny"])
def test_every_size_halves_and_restores_the_resolution(size):
    net = NAFNet(RAMConfig(width=4, size=size), WIDTHS)
    image = torch.rand(1, 3, 16, 32)
    with torch.no_grad():
        assert net(image, features_of(image)).shape == image.shape
    widths = [down.in_channels for down in net.downs]
    assert all(b == 2 * a for a, b in pairwise(widths))


def test_checkpointing_changes_memory_not_gradients():
    image = torch.rand(1, 3, 32, 32)
    features = features_of(image)
    net = nafnet()
    gradients = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        net(image, features).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))
