from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dri_iqa.config import BackboneConfig, ConfigError
from dri_iqa.models.backbone import Backbone

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


def vit(**changes) -> BackboneConfig:
    settings = {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "blocks": (1, 2),
        "kwargs": VIT,
    }
    return BackboneConfig(**(settings | changes))


def build(config: BackboneConfig, crop: int = 32, load: bool = True) -> Backbone:
    torch.manual_seed(0)
    return Backbone(config, crop=crop, grid=crop // 8, load_weights=load).eval()


def test_vit_taps_are_the_raw_block_outputs_without_class_token():
    backbone = build(vit())
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    image = torch.rand(2, 3, 32, 32)
    tokens = net._pos_embed(net.patch_embed((image - 0.5) / 0.5))
    maps = []
    for number, block in enumerate(net.blocks[:3]):
        tokens = block(tokens)
        if number in (1, 2):
            maps.append(tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
    assert backbone.channels == 48
    assert torch.allclose(backbone(image), torch.cat(maps, 1), atol=1e-5)
    assert len(backbone.net.blocks) == 3  # the fourth is never read


def test_every_parameter_is_read():
    for config in (vit(), BackboneConfig(name="mobilenetv2_035", weights="none", blocks=(1, 3))):
        backbone = build(config).train()
        backbone(torch.rand(2, 3, 32, 32)).square().sum().backward()
        assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_convolutional_maps_are_brought_to_the_token_grid():
    backbone = build(BackboneConfig(name="mobilenetv2_035", weights="none", blocks=(0, 2, 4)), 64)
    widths = [backbone.net.feature_info[i]["num_chs"] for i in (0, 2, 4)]
    features = backbone(torch.rand(1, 3, 64, 64))
    assert features.shape == (1, sum(widths), 8, 8)
    raw = backbone.net.forward_intermediates(
        (torch.rand(1, 3, 64, 64)), indices=[0, 2, 4], intermediates_only=True
    )
    assert [m.shape[2] for m in raw] == [32, 8, 2]


@pytest.mark.parametrize("name", ["mobilenetv2_035", "vit_tiny_patch16_224"])
def test_weights_come_from_a_safetensors_file(tmp_path: Path, name: str):
    kwargs = VIT if name.startswith("vit") else {}
    torch.manual_seed(7)
    source = timm.create_model(name, **kwargs)
    path = tmp_path / "weights.safetensors"
    # files of features only, without a classifier, are common
    state = source.state_dict()
    headless = {n: t for n, t in state.items() if not n.startswith(("classifier.", "head."))}
    assert len(headless) == len(state) - 2
    save_file(headless, path)
    config = BackboneConfig(name=name, weights=str(path), blocks=(0, 1), kwargs=kwargs)
    loaded = build(config).net.state_dict()
    assert loaded
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in loaded.items())
    random = build(config, load=False).net.state_dict()
    assert any(not torch.equal(random[key], loaded[key]) for key in loaded)


def test_a_file_of_another_architecture_is_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv2_035").state_dict(), path)
    with pytest.raises(ConfigError, match=r"does not fit vit_tiny_patch16_224.*Missing key"):
        build(vit(weights=str(path)))


def test_no_file_no_hub_is_an_error_that_names_the_choices(tmp_path: Path, monkeypatch):
    with pytest.raises(ConfigError, match=r"absent\.safetensors.*pretrained.*s3://.*none"):
        build(vit(weights=str(tmp_path / "absent.safetensors")))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not tensors")
    with pytest.raises(ConfigError, match=r"broken\.safetensors is no safetensors file"):
        build(vit(weights=str(broken)))

    def unreachable(name: str, **options):
        assert options["pretrained"]
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match=r"couldn't connect.*`pretrained`.*s3://.*`none`"):
        build(vit(weights="pretrained"))


@pytest.mark.parametrize(
    ("config", "crop", "message"),
    [
        (vit(), 64, r"takes 32x32 images but crop=64.*img_size=64"),
        (vit(blocks=(2, 5)), 32, r"blocks=\(2, 5\).*0\.\.3"),
        (vit(blocks=(2, 1)), 32, r"increase.*\(2, 1\)"),
        (vit(name="vit_tiny_patch17_224"), 32, r"no model of timm"),
        (vit(kwargs={**VIT, "heads": 3}), 32, r"heads.*do not fit"),
    ],
)
def test_clashes_name_their_numbers(config: BackboneConfig, crop: int, message: str):
    with pytest.raises(ConfigError, match=message):
        build(config, crop)
