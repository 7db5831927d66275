from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1, vgg19

from dri_iqa.config import ConfigError, PerceptualConfig
from dri_iqa.models import perceptual
from dri_iqa.models.perceptual import PerceptualDistance


def squeezenet(**changes) -> PerceptualConfig:
    return PerceptualConfig(**({"backbone": "squeezenet1_1", "weights": "random"} | changes))


def test_distance_is_weighted_l1_of_torchvisions_features(tmp_path: Path):
    torch.manual_seed(0)
    net = squeezenet1_1(weights=None).eval()
    path = tmp_path / "squeezenet.safetensors"
    save_file(net.state_dict(), path)
    distance = PerceptualDistance(squeezenet(weights=str(path)))
    image, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    a, b, total = (image - mean) / std, (target - mean) / std, 0.0
    with torch.no_grad():
        for number, layer in enumerate(net.features):
            a, b = layer(a), layer(b)
            if number in (1, 4, 7, 9, 10, 11, 12):
                total += float(F.l1_loss(a, b)) / 7
        assert float(distance(image, target)) == pytest.approx(total, rel=1e-5)
        raw = PerceptualDistance(squeezenet(weights=str(path), imagenet_norm=False))
        assert float(raw(image, target)) != pytest.approx(total, rel=1e-3)


def test_vgg_is_read_at_five_relus_and_cut_after_the_last(tmp_path: Path):
    with torch.device("meta"):
        names = {n: t.shape for n, t in vgg19(weights=None).state_dict().items()}
        distance = PerceptualDistance(PerceptualConfig(weights="random"))
        maps = distance.features(torch.empty(1, 3, 224, 224))
    assert [tuple(m.shape[1:3]) for m in maps] == [
        (64, 224),
        (128, 112),
        (256, 56),
        (512, 28),
        (512, 14),
    ]
    assert distance.weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    assert sum(p.numel() for p in distance.parameters()) / 1e6 == pytest.approx(12.9, rel=0.01)
    # torchvision's own names load, classifier and last layers left aside
    state = {n: torch.zeros(s) for n, s in names.items() if n.startswith("features.")}
    state["classifier.6.bias"] = torch.zeros(names["classifier.6.bias"])
    save_file(state, tmp_path / "vgg.safetensors")
    loaded = PerceptualDistance(PerceptualConfig(weights=str(tmp_path / "vgg.safetensors")))
    assert all(not p.any() for p in loaded.parameters())


def test_gradient_reaches_the_image_only():
    distance = PerceptualDistance(squeezenet())
    image = torch.rand(1, 3, 48, 48, requires_grad=True)
    target = torch.rand(1, 3, 48, 48, requires_grad=True)
    distance(image, target).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(p.requires_grad for p in distance.parameters())


def test_random_weights_follow_the_seed():
    first, again, other = (PerceptualDistance(squeezenet(), seed=s) for s in (1, 1, 2))
    image = torch.rand(1, 3, 48, 48)
    assert torch.equal(first.features(image)[-1], again.features(image)[-1])
    assert not torch.equal(first.features(image)[-1], other.features(image)[-1])


def test_absent_weights_are_an_error_that_names_the_choices(tmp_path: Path, monkeypatch):
    save_file({"features.0.bias": torch.zeros(64)}, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match=r"squeezenet1_1 has no tensor 0\.weight"):
        PerceptualDistance(squeezenet(weights=str(tmp_path / "part.safetensors")))

    class Unreachable:
        @staticmethod
        def get_state_dict(**options):
            assert options["weights_only"]
            raise OSError("no route to download.pytorch.org")

    monkeypatch.setitem(perceptual._HUB, "squeezenet1_1", Unreachable)
    with pytest.raises(ConfigError, match=r"no route.*`pretrained`.*s3://.*`random`"):
        PerceptualDistance(squeezenet(weights="pretrained"))
