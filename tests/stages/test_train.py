from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from dri_iqa.config import (
    BackboneConfig,
    ConfigError,
    DREConfig,
    PerceptualConfig,
    Stage2Config,
)
from dri_iqa.stages import Streams, TrainStage, stage2_plan, stage2_streams
from dri_iqa.stages.base import to_float
from tests.stages.builder import build, optimiser, stage1_state, step
from tests.tiny import stage2_batch, tiny_model, tiny_stage1, tiny_stage2

VARIANTS = ("v1", "v2", "v3", "proposed", "maniqa")


TERMS = {
    "v1": {"mos", "qual"},
    "v2": {"mos", "deg", "qual"},
    "v3": {"mos", "pixel", "perceptual", "deg", "qual"},
    "proposed": {"mos", "pixel", "perceptual", "representation", "deg", "qual"},
    "maniqa": {"mos"},
}
PARTS = {
    "v1": {"backbone", "dre", "predictor"},
    "v2": {"backbone", "dre", "predictor"},
    "v3": {"backbone", "dre", "predictor", "ram"},
    "proposed": {"backbone", "dre", "predictor", "ram"},
    "maniqa": {"backbone", "predictor"},
}


@pytest.mark.parametrize("has_references", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_exactly_its_terms_parts_and_streams(variant, has_references: bool):
    stage = build(has_references, variant=variant)
    batch = stage2_batch()
    needs = stage.needs
    wanted = {"image_BCHW", "score_B"}
    if needs.reference:
        wanted |= {"reference_BCHW"}
    if needs.views:
        wanted |= {k for k in batch if k.endswith(("_B4CHW", "_B2", "id_B", "sibling_B"))}
    if needs.aux:
        wanted |= {k for k in batch if k.startswith("aux_")}
    loss, metrics = stage({name: batch[name] for name in wanted})  # nothing else is read
    assert {k.removeprefix("loss_") for k in metrics if k.startswith("loss_")} == TERMS[variant]
    assert {group["name"] for group in stage.parameter_groups()} == PARTS[variant]
    loss.backward()
    assert not [n for n, p in stage.named_parameters() if p.requires_grad and p.grad is None]
    grouped = {id(p) for group in stage.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in stage.parameters() if p.requires_grad}
    weights = stage.term_weights()
    total = sum(weights[name] * float(metrics[f"loss_{name}"]) for name in TERMS[variant])
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    assert {n.split(".")[0] for n, _ in stage.inference_model().named_parameters()} == {
        "backbone",
        "predictor",
        *({"dre"} if variant != "maniqa" else ()),
    }


@pytest.mark.parametrize(
    ("changes", "has_references", "streams"),
    [
        ({}, True, Streams(reference=True, views=True, aux=False)),
        ({}, False, Streams(reference=False, views=False, aux=True)),
        ({"variant": "v2"}, True, Streams(reference=False, views=True, aux=False)),
        ({"variant": "v2"}, False, Streams(reference=False, views=False, aux=True)),
        ({"variant": "maniqa"}, False, Streams(reference=False, views=False, aux=False)),
        ({"ref_source": "aux"}, True, Streams(reference=False, views=True, aux=True)),
        ({"nce_source": "aux"}, True, Streams(reference=True, views=False, aux=True)),
        ({"nce_source": "iqa_pair"}, False, Streams(reference=False, views=True, aux=True)),
        ({"ref_source": "none"}, True, Streams(reference=False, views=True, aux=False)),
        ({"w_nce": 0.0}, True, Streams(reference=True, views=False, aux=False)),
        ({"w_res": 0.0, "w_rs": 0.0}, False, Streams(reference=False, views=False, aux=True)),
        (
            {"ref_source": "self"},
            False,
            Streams(reference=False, views=False, aux=True, aux_images="labelled"),
        ),
    ],
)
def test_streams_follow_sources_and_weights(changes: dict, has_references: bool, streams: Streams):
    assert stage2_streams(tiny_stage2(**changes), has_references) == streams
    stage = build(has_references, **changes)
    loss, _ = stage(stage2_batch())
    loss.backward()
    assert not [n for n, p in stage.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("changes", "has_references", "message"),
    [
        ({"ref_source": "dataset"}, False, "ref_source=dataset"),
        ({"nce_source": "iqa"}, False, "nce_source=iqa"),
        ({"w_mos": 0.0}, True, r"w_mos=0\.0"),
    ],
)
def test_sources_the_data_cannot_give_are_refused(changes, has_references: bool, message: str):
    with pytest.raises(ConfigError, match=message):
        stage2_plan(tiny_stage2(**changes), has_references)


def test_frozen_copy_stays_and_gradients_pass_through_it():
    stage = build(has_references=False, w_mos=1e-12, w_res=0.0, w_nce=0.0)
    assert stage.frozen is not None
    assert stage.ram is not None
    before = {n: t.clone() for n, t in stage.frozen.state_dict().items()}
    source = stage1_state()
    assert all(torch.equal(t, source[f"query.encoder.{n}"]) for n, t in before.items())
    optim = optimiser(stage)
    batch = stage2_batch()
    for number in range(3):  # guidance starts at zero: its gradient needs steps to reach the maps
        step(stage, optim, batch, number)
    loss, _ = stage(batch)
    stage.zero_grad()
    loss.backward()
    assert all(torch.equal(t, before[n]) for n, t in stage.frozen.state_dict().items())
    assert all(p.grad is None for p in stage.frozen.parameters())
    assert not stage.frozen.training
    for part in (stage.ram, stage.encoder):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert not torch.equal(
        stage.encoder.layers[0].conv1.weight, source["query.encoder.layers.0.conv1.weight"]
    )


def test_stage1_carries_over_heads_keys_and_queue():
    source = stage1_state()
    stage = build(has_references=False)
    assert stage.heads is not None
    assert stage.contrast is not None
    state = stage.state_dict()
    assert torch.equal(state["heads.low.0.weight"], source["query.heads.low.0.weight"])
    for name in ("key.encoder.layers.0.conv1.weight", "queue.up_KD", "queue.pointer"):
        assert torch.equal(state[f"contrast.{name}"], source[f"contrast.{name}"])
    # with siblings the numbers mean references, so clean images' keys would be mistaken for them
    assert not build(has_references=True).contrast.queue.valid_K.any()
    assert not build(
        has_references=False, model=None, ref_source="self"
    ).contrast.queue.valid_K.any()


def test_the_extractor_alone_is_enough_and_other_stage1_runs_are_refused():
    encoder = {n: t for n, t in stage1_state().items() if n.startswith("query.")}
    arguments = {"seed": 0, "has_references": False, "global_batch": 8}
    stage = TrainStage(tiny_model(), tiny_stage1(), tiny_stage2(), pretrained=encoder, **arguments)
    assert torch.equal(
        stage.contrast.key.encoder.layers[0].conv1.weight, stage.encoder.layers[0].conv1.weight
    )
    wide = tiny_model(
        dre=DREConfig(width=16, norm="gn", proj_dim=32), ram=replace(tiny_model().ram, width=8)
    )
    with pytest.raises(ConfigError, match=r"layers\.0\.conv1\.weight has shape \(8, 3, 3, 3\)"):
        TrainStage(wide, tiny_stage1(), tiny_stage2(), pretrained=encoder, **arguments)
    for variant, halves in (("v1", "dual"), ("v2", "quality")):
        with pytest.raises(ConfigError, match=f"stage1.halves={halves}, this variant"):
            TrainStage(
                tiny_model(),
                tiny_stage1(),
                tiny_stage2(variant=variant),
                pretrained=stage1_state(halves),
                **arguments,
            )


def test_the_baseline_turns_the_model_into_maniqa_and_says_so_in_its_config():
    stage = build(variant="maniqa")
    assert stage.model_config.predictor.baseline == "maniqa"
    assert stage.inference_model().config == stage.model_config
    with pytest.raises(ConfigError, match="variant=maniqa, got variant=v2"):
        build(variant="v2", model=stage.model_config)


def test_rates_belong_to_their_parts():
    rates = {g["name"]: g["lr"] for g in build().parameter_groups()}
    config = Stage2Config()
    assert rates == {
        "backbone": config.lr_backbone,
        "dre": config.lr_dre,
        "predictor": config.lr_predictor,
        "ram": config.lr_ram,
    }
    frozen = build(freeze_backbone=True)
    assert {g["name"] for g in frozen.parameter_groups()} == {"dre", "predictor", "ram"}
    assert not frozen.model.backbone.training


def test_running_statistics_are_frozen_unless_told_otherwise():
    model = tiny_model(
        dre=DREConfig(width=8, norm="bn", proj_dim=32),
        backbone=BackboneConfig(name="mobilenetv2_035", weights="none", blocks=(1, 2)),
    )
    arguments = {"seed": 0, "has_references": False, "global_batch": 8, "pretrained": None}
    for freeze in (True, False):
        stage2 = tiny_stage2(variant="v2", freeze_bn_stats=freeze)
        stage = TrainStage(model, tiny_stage1(), stage2, **arguments)
        optim = optimiser(stage)
        before = {n: b.clone() for n, b in stage.named_buffers() if n.endswith("running_mean")}
        weight = stage.encoder.layers[0].norm1.weight.detach().clone()
        step(stage, optim, stage2_batch())
        moved = {n for n, b in stage.named_buffers() if n in before and not b.equal(before[n])}
        extractor = {n for n in before if n.startswith(("model.dre.", "contrast.key."))}
        assert moved & extractor == (set() if freeze else extractor)
        assert not torch.equal(stage.encoder.layers[0].norm1.weight, weight)
        # a backbone without loaded weights has no statistics worth keeping
        assert any(n.startswith("model.backbone.") for n in moved)


@pytest.mark.parametrize("has_references", [True, False])
def test_resumed_equals_uninterrupted_bit_by_bit(has_references: bool):
    whole = build(has_references)
    optim = optimiser(whole)
    for number in range(2):
        step(whole, optim, stage2_batch(seed=number), number)
    resumed = build(has_references, seed=9)
    resumed.load_state_dict({n: t.clone() for n, t in whole.state_dict().items()})
    second = optimiser(resumed)
    second.load_state_dict(deepcopy(optim.state_dict()))
    for number in range(2, 4):
        batch = stage2_batch(seed=number)
        assert step(whole, optim, batch, number)[0] == step(resumed, second, batch, number)[0]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_images_without_a_sibling_have_no_second_view():
    batch = stage2_batch()
    batch["has_sibling_B"][:] = False
    stage = build(variant="v2")
    _, metrics = stage(batch)
    assert float(metrics["queue_fill"]) == 8 / 256
    assert float(metrics["negatives_qual"]) == 7
    changed = {**batch, "views_B4CHW": batch["views_B4CHW"].clone()}
    changed["views_B4CHW"][:, 2:] = 0
    torch.manual_seed(0)
    first = build(variant="v2")(batch)[1]["loss_qual"]
    assert torch.allclose(first, build(variant="v2")(changed)[1]["loss_qual"])


def test_symmetric_anchors_run_in_both_kinds_of_stream():
    for has_references in (True, False):
        stage1 = tiny_stage1(moco=replace(tiny_stage1().moco, anchors="symmetric"))
        stage = TrainStage(
            tiny_model(),
            stage1,
            tiny_stage2(),
            seed=0,
            has_references=has_references,
            global_batch=8,
            pretrained=stage1_state(),
        )
        loss, metrics = stage(stage2_batch())
        loss.backward()
        assert float(metrics["alignment_qual"]) > 0


def test_gradient_norms_are_those_of_single_terms_and_leave_no_trace():
    stage = build(has_references=False)
    optim = optimiser(stage)
    batch = stage2_batch()
    step(stage, optim, batch)
    before = {n: t.clone() for n, t in stage.state_dict().items()}
    rng = torch.random.get_rng_state()
    stage.zero_grad(set_to_none=True)
    norms = stage.gradient_norms(batch)
    assert set(norms) == {f"grad_dre_{term}" for term in TERMS["proposed"]}
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(t, before[n]) for n, t in stage.state_dict().items())
    assert all(p.grad is None for p in stage.parameters())
    terms, _ = stage.terms(batch)
    terms["pixel"].backward()
    grads = [p.grad.norm() for p in stage.encoder.parameters() if p.grad is not None]
    assert float(norms["grad_dre_pixel"]) == pytest.approx(
        float(torch.stack(grads).norm()), rel=1e-4
    )


def test_restore_takes_any_size_and_equals_the_training_path():
    stage = build(has_references=False)
    stage.train()
    batch = stage2_batch()
    image = to_float(batch["aux_crops_A4CHW"][:2, 0])
    restored = stage.restore(image)
    with torch.no_grad():
        expected = stage.ram(image, stage.encoder(image)).clamp(0, 1)
    assert torch.allclose(restored, expected, atol=1e-6)
    assert stage.restore(torch.rand(1, 3, 37, 50)).shape == (1, 3, 37, 50)
    whole = torch.rand(1, 3, image.shape[2], 3 * image.shape[3])
    first = stage.restore(whole[:, :, :, : image.shape[3]])
    torch.testing.assert_close(
        stage.restore(whole)[..., 0], first[..., 0]
    )  # a training crop's sight
    assert stage.training
    with pytest.raises(ValueError, match="variant v2 has no restoration"):
        build(variant="v2").restore(image)


def test_gradient_checkpointing_changes_memory_not_the_loss():
    losses = []
    for checkpointing in (False, True):
        stage = build(has_references=False, grad_checkpoint=checkpointing)
        optim = optimiser(stage)
        losses.append([step(stage, optim, stage2_batch(seed=s), s)[0] for s in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_options_of_the_losses_train():
    for changes in (
        {"score_loss": "mse+plcc", "l2_kind": "norm"},
        {"score_loss": "mse+rank", "l2_kind": "rmse"},
        {"perceptual": PerceptualConfig(backbone="none")},
        {"lambda_perceptual": 0.0},
    ):
        stage = build(has_references=False, **changes)
        loss, metrics = stage(stage2_batch())
        loss.backward()
        assert torch.isfinite(loss)
        assert ("loss_perceptual" in metrics) == ("score_loss" in changes)


def test_mixed_precision_stays_close():
    stage = build(has_references=False).eval()
    batch = stage2_batch()
    saved = {n: t.clone() for n, t in stage.state_dict().items()}
    exact = stage(batch)[1]
    stage.load_state_dict(saved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, rounded = stage(batch)
    assert loss.dtype == torch.float32
    for name in ("loss_mos", "loss_pixel", "loss_representation"):
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=0.1, abs=0.02)
