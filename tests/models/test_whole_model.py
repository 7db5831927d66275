from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from dri_iqa.config import (
    ConfigError,
    DREConfig,
    ModelConfig,
    PerceptualConfig,
    PredictorConfig,
    RAMConfig,
    Stage2Config,
)
from dri_iqa.models import build_model, format_table, model_table
from dri_iqa.models.checks import check_model, check_restoration
from tests.tiny import tiny_model, tiny_stage2


def test_initial_weights_are_a_function_of_the_seed_alone():
    before = torch.random.get_rng_state()
    first = build_model(tiny_model(), seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again = build_model(tiny_model(), seed=3).state_dict()
    other = build_model(tiny_model(), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["dre.layers.0.conv1.weight"], other["dre.layers.0.conv1.weight"])


def test_parts_do_not_depend_on_which_others_exist():
    whole = build_model(tiny_model(), seed=3).state_dict()
    baseline = tiny_model(predictor=replace(tiny_model().predictor, baseline="maniqa"))
    plain = build_model(baseline, seed=3).state_dict()
    assert not any(name.startswith("dre.") for name in plain)
    assert all(torch.equal(whole[n], plain[n]) for n in plain if n.startswith("backbone."))


def test_without_backbone_weights_neither_hub_nor_files_are_touched(monkeypatch):
    create = timm.create_model

    def watched(name: str, **options):
        assert not options.get("pretrained")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", watched)
    for weights in ("pretrained", "/nowhere/weights.safetensors"):
        backbone = replace(tiny_model().backbone, weights=weights)
        build_model(tiny_model(backbone=backbone), backbone_weights=False)


def test_predict_is_deterministic_in_training_mode_and_restores_it():
    model = build_model(tiny_model()).train()
    model.backbone.eval()
    modes = [part.training for part in model.modules()]
    image = torch.rand(2, 3, 64, 64)
    first = model.predict(image)
    assert torch.equal(first, model.predict(image))
    assert not first.requires_grad
    assert [part.training for part in model.modules()] == modes
    assert not torch.equal(model(image), model(image))  # dropout is on again


def test_scores_do_not_depend_on_the_rest_of_the_batch():
    model = build_model(tiny_model()).eval()
    image = torch.rand(4, 3, 64, 64)
    alone = torch.cat([model.predict(image[i : i + 1]) for i in range(4)])
    assert torch.allclose(model.predict(image), alone, atol=1e-5)


def test_maps_are_mean_magnitudes_of_the_halves_at_any_size():
    model = build_model(tiny_model()).train()
    image = torch.rand(1, 3, 80, 112)
    degradation, quality = model.maps(image)
    assert degradation.shape == quality.shape == (1, 5, 7)
    last = model.dre(image)[-1]
    assert torch.allclose(degradation, last[:, :64].abs().mean(1), atol=1e-6)
    assert torch.allclose(quality, last[:, 64:].abs().mean(1), atol=1e-6)
    plain = tiny_model(predictor=replace(tiny_model().predictor, baseline="maniqa"))
    with pytest.raises(ValueError, match="no extractor"):
        build_model(plain).maps(image)


def test_crops_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\), got \(1, 3, 64, 80\)"):
        build_model(tiny_model())(torch.rand(1, 3, 64, 80))


def predictor(**changes) -> PredictorConfig:
    return replace(tiny_model().predictor, **changes)


@pytest.mark.parametrize("token", [8, 16, 32])
@pytest.mark.parametrize("strides", [(1, 2, 2, 2, 2), (2, 2, 2, 2, 2)])
def test_a_token_may_have_more_pixels(token: int, strides: tuple[int, ...]):
    config = tiny_model(predictor=predictor(token=token), dre=DREConfig(width=8, strides=strides))
    model = build_model(config).eval()
    side = 64 // token
    assert model.backbone(torch.rand(1, 3, 64, 64)).shape[2:] == (side, side)
    assert model.predictor.stage1.attention[0].q.weight.shape == (side**2, side**2)
    scores = model.predict(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2,)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_model(crop=72), r"crop=72"),
        (tiny_model(predictor=predictor(window=3)), r"window=3 .*grid 8 .*crop=64"),
        (tiny_model(predictor=predictor(token=12)), r"token=12 .*crop=64"),
        (tiny_model(crop=80, predictor=predictor(token=32)), r"token=32 .*crop=80"),
        (tiny_model(predictor=predictor(embed_dim=44)), r"embed_dim=44.*swin_heads=4"),
        (tiny_model(predictor=predictor(swin_heads=(4,))), r"swin_depths.*swin_heads"),
        (tiny_model(predictor=predictor(num_tgb=0)), r"num_tgb=0"),
        (tiny_model(predictor=predictor(cfb_levels=(0, 5))), r"cfb_levels=\(0, 5\)"),
        (tiny_model(dre=DREConfig(width=9)), r"dre\.width=9"),
        (tiny_model(dre=DREConfig(strides=(1, 1, 2, 2, 2))), r"dre\.strides"),
    ],
)
def test_clashing_sizes_are_named_before_anything_is_built(config: ModelConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        check_model(config)


def test_restoration_must_fit_the_extractor():
    with pytest.raises(ConfigError, match=r"ram\.width=8 .*dre\.width=8"):
        check_restoration(tiny_model(ram=RAMConfig(width=8)))
    check_restoration(tiny_model(ram=RAMConfig(width=8, guidance="none")))
    full = RAMConfig(width=4, guidance="add", guide_channels="full")
    with pytest.raises(ConfigError, match="guide_channels=upper"):
        check_restoration(tiny_model(ram=full))


def test_the_table_has_the_published_sizes_at_paper_scale():
    rows = {row.part: row for row in model_table(ModelConfig(), Stage2Config())}
    millions = {name: row.parameters / 1e6 for name, row in rows.items()}
    billions = {name: row.macs / 1e9 for name, row in rows.items()}
    assert millions["extractor"] == pytest.approx(19.55, rel=0.01)
    assert millions["projection heads"] == pytest.approx(0.79, rel=0.01)
    assert millions["key encoder"] == pytest.approx(20.34, rel=0.01)
    assert millions["backbone"] == pytest.approx(71.63, rel=0.01)
    assert millions["predictor"] == pytest.approx(44.05, rel=0.01)
    assert millions["restoration"] == pytest.approx(30.91, rel=0.01)
    assert millions["perceptual network"] == pytest.approx(12.9, rel=0.01)
    assert billions["extractor"] == pytest.approx(13.46, rel=0.01)
    assert billions["backbone"] == pytest.approx(65.1, rel=0.01)
    assert billions["predictor"] == pytest.approx(74.4, rel=0.01)
    assert billions["restoration"] == pytest.approx(14.1, rel=0.01)
    trained = sum(row.parameters for row in rows.values() if row.state == "trained")
    assert trained / 1e6 == pytest.approx(167, rel=0.01)


STATES = {
    "v1": "trained trained average absent trained trained absent absent",
    "v2": "trained trained average absent trained trained absent absent",
    "v3": "trained trained average absent trained trained trained frozen",
    "proposed": "trained trained average frozen trained trained trained frozen",
    "maniqa": "absent absent absent absent trained trained absent absent",
}


@pytest.mark.parametrize("variant", list(STATES))
def test_the_table_says_what_trains_in_every_variant(variant):
    rows = model_table(tiny_model(), tiny_stage2(variant=variant))
    assert [row.state.split()[-1] for row in rows] == STATES[variant].split()
    assert all((row.parameters == 0) == (row.state == "absent") for row in rows)
    text = format_table(rows)
    assert all(row.part in text for row in rows)
    frozen = model_table(tiny_model(), tiny_stage2(variant=variant, freeze_backbone=True))
    assert [row.part for row in frozen if row.state == "frozen"][0:1] != []


def test_the_table_reads_no_weights():
    config = tiny_model(backbone=replace(tiny_model().backbone, weights="/nowhere.safetensors"))
    stage2 = tiny_stage2(perceptual=PerceptualConfig(backbone="vgg19", weights="/nowhere"))
    assert len(model_table(config, stage2)) == 8
