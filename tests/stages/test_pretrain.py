from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dri_iqa.config import ConfigError, DREConfig, Stage1Config
from dri_iqa.losses.contrastive import Meta, degradation_sets, quality_negatives
from dri_iqa.stages import PretrainStage
from dri_iqa.stages.base import to_float
from dri_iqa.stages.momentum import uniformity
from tests.tiny import stage1_batch, tiny_model, tiny_stage1


def build(stage1: Stage1Config | None = None, norm: str = "gn", seed: int = 0) -> PretrainStage:
    model = tiny_model(dre=DREConfig(width=8, norm=norm, proj_dim=32))  # type: ignore[arg-type]
    return PretrainStage(model, stage1 or tiny_stage1(), seed=seed, global_batch=8)


def moco(**changes) -> Stage1Config:
    return tiny_stage1(moco=replace(tiny_stage1().moco, **changes))


def optimiser(stage: PretrainStage) -> torch.optim.Optimizer:
    groups = [{"params": g["params"], "lr": g["lr"]} for g in stage.parameter_groups()]
    return torch.optim.Adam(groups)


def run(stage: PretrainStage, steps: int, start: int = 0, optim=None) -> list[float]:
    optim = optim or optimiser(stage)
    losses = []
    for step in range(start, start + steps):
        loss, _ = stage(stage1_batch(seed=step))
        optim.zero_grad()
        loss.backward()
        assert not [n for n, p in stage.named_parameters() if p.requires_grad and p.grad is None]
        optim.step()
        stage.after_step()
        losses.append(float(loss.detach()))
    return losses


def expected_losses(stage: PretrainStage, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Both losses of the last batch by loops over anchors and over every key ever made."""
    dre, tau = stage.query, stage.config.moco.temperature
    past = []
    for number, batch in enumerate(batches):
        keys = [dre(to_float(batch["crops_B4CHW"][:, crop])) for crop in range(4)]
        for b in range(8):
            for view, crop in ((0, 1), (1, 3)):
                past.append(
                    {
                        "image": int(batch["image_id_B"][b]),
                        "types": int(batch["type_mask_B2"][b, view]),
                        "recipe": int(batch["recipe_hash_B2"][b, view]),
                        "up": keys[crop].z_up[b],
                        "low": keys[crop].z_low[b],
                        "own": (number, b, view),
                    }
                )
    anchors, totals = keys[0], {"deg": 0.0, "qual": 0.0}
    for b in range(8):
        image, types = int(batch["image_id_B"][b]), int(batch["type_mask_B2"][b, 0])
        recipe, other = (int(r) for r in batch["recipe_hash_B2"][b])
        up = [k["up"] for k in past if k["image"] != image and k["types"] != types]
        low = [k["low"] for k in past if (k["image"], k["recipe"]) != (image, recipe)]
        if other != recipe:
            low.append(keys[2].z_low[b])
        halves = (("deg", "z_up", up), ("qual", "z_low", low))
        for name, half, negatives in halves:
            anchor, positive = getattr(anchors, half)[b], getattr(keys[1], half)[b]
            top = math.exp(float(anchor @ positive) / tau)
            rest = sum(math.exp(float(anchor @ n) / tau) for n in negatives)
            totals[name] -= math.log(top / (top + rest)) / 8
    return totals


def test_losses_equal_loops_over_anchors_and_keys():
    stage = build()
    batches = [stage1_batch(seed=s) for s in range(3)]
    # an image of the first batch comes back, and a view repeats its neighbour's set of types
    batches[2]["image_id_B"][0] = batches[0]["image_id_B"][3]
    batches[2]["recipe_hash_B2"][0, 0] = batches[0]["recipe_hash_B2"][3, 1]
    batches[2]["recipe_hash_B2"][1, 1] = batches[2]["recipe_hash_B2"][1, 0]
    with torch.no_grad():
        for batch in batches:
            loss, metrics = stage(batch)  # no step: key encoder and query stay equal
        expected = expected_losses(stage, batches)
    assert float(metrics["loss_deg"]) == pytest.approx(expected["deg"], rel=1e-5)
    assert float(metrics["loss_qual"]) == pytest.approx(expected["qual"], rel=1e-5)
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-5)


def test_metrics_describe_queue_and_negatives():
    stage = build()
    loss, metrics = stage(stage1_batch())
    assert float(metrics["queue_fill"]) == 16 / 256
    assert float(metrics["queue_age"]) == 0
    # its own second view twice, and both views of the seven others
    assert float(metrics["negatives_qual"]) == pytest.approx(2 + 14)
    assert 0 < float(metrics["negatives_deg"]) <= 14
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert loss.requires_grad


def test_gradient_reaches_the_query_and_never_keys():
    stage = build()
    loss, _ = stage(stage1_batch())
    loss.backward()
    assert all(p.grad is not None for p in stage.query.parameters())
    assert all(p.grad is None and not p.requires_grad for p in stage.contrast.key.parameters())


def test_key_encoder_is_the_moving_average_of_the_query():
    stage = build()
    name = "encoder.layers.2.conv1.weight"
    average = stage.query.get_parameter(name).detach().clone()
    optim = optimiser(stage)
    for step in range(3):
        run(stage, 1, step, optim)
        average = 0.999 * average + 0.001 * stage.query.get_parameter(name).detach()
    assert torch.allclose(stage.contrast.key.get_parameter(name), average, atol=1e-7)
    assert not torch.equal(average, stage.query.get_parameter(name))


def test_same_seed_same_run_and_another_seed_another():
    assert run(build(seed=5), 2) == run(build(seed=5), 2)
    assert run(build(seed=5), 1) != run(build(seed=6), 1)


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_resumed_equals_uninterrupted_bit_by_bit(norm: str):
    whole = build(norm=norm)
    optim = optimiser(whole)
    curve = run(whole, 2, 0, optim)
    saved = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    saved_optim = deepcopy(optim.state_dict())
    resumed = build(norm=norm, seed=0)
    resumed.load_state_dict(saved)
    second = optimiser(resumed)
    second.load_state_dict(saved_optim)
    curve += run(whole, 2, 2, optim)
    assert run(resumed, 2, 2, second) == curve[2:]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_quality_half_alone_leaves_the_degradation_half_out():
    stage = build(tiny_stage1(halves="quality"))
    frozen = {n for n, p in stage.query.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in stage.query.named_parameters() if n.startswith("heads.up.")}
    run(stage, 1)
    _, metrics = stage(stage1_batch())
    assert "loss_qual" in metrics
    assert "loss_deg" not in metrics
    assert "contrast.queue.up_KD" not in stage.state_dict()


def test_symmetric_anchors_average_both_views():
    batch = stage1_batch()
    swapped = {
        "crops_B4CHW": batch["crops_B4CHW"][:, [2, 3, 0, 1]],
        "type_mask_B2": batch["type_mask_B2"].flip(1),
        "recipe_hash_B2": batch["recipe_hash_B2"].flip(1),
        "image_id_B": batch["image_id_B"],
    }
    one_way = [float(build()(each)[0].detach()) for each in (batch, swapped)]
    both = float(build(moco(anchors="symmetric"))(batch)[0].detach())
    assert both == pytest.approx(sum(one_way) / 2, rel=1e-5)


def test_weights_and_temperature_per_half():
    _, plain = build()(stage1_batch())
    stage = build(moco(w_deg=0.5, w_qual=2.0, temperature_deg=0.2))
    loss, metrics = stage(stage1_batch())
    assert float(metrics["loss_deg"]) != pytest.approx(float(plain["loss_deg"]), rel=1e-3)
    assert float(metrics["loss_qual"]) == pytest.approx(float(plain["loss_qual"]), rel=1e-6)
    expected = 0.5 * metrics["loss_deg"] + 2 * metrics["loss_qual"]
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "switches",
    [
        {"in_batch_negatives": False},
        {"deg_positive": "cross_content"},
        {"deg_exclude_same_types": False},
        {"queue_init": "random"},
    ],
)
def test_switches_change_the_loss_and_train(switches: dict):
    plain = run(build(), 2)
    changed = run(build(moco(**switches)), 2)
    assert all(math.isfinite(loss) for loss in changed)
    # whether there are further positives is for the batches to decide: independent recipes differ
    assert (changed != plain) == (switches != {"deg_positive": "cross_content"})


def test_cross_content_pulls_images_under_one_recipe_together():
    batch = stage1_batch()
    batch["recipe_hash_B2"][1, 0] = batch["recipe_hash_B2"][0, 0]
    batch["type_mask_B2"][1, 0] = batch["type_mask_B2"][0, 0]
    _, alone = build()(batch)
    _, crossed = build(moco(deg_positive="cross_content"))(batch)
    assert float(alone["loss_deg"]) != float(crossed["loss_deg"])
    assert float(alone["negatives_deg"]) == float(crossed["negatives_deg"])


def test_an_own_second_view_is_never_a_degradation_negative_and_always_a_quality_negative():
    """Over several epochs, so that the queue holds stale views of every image, and wraps."""
    stage = build(moco(queue_size=48))
    queue, config = stage.contrast.queue, stage.config.moco
    for step in range(5):
        batch = stage1_batch(seed=step)
        batch["image_id_B"] = torch.arange(8)
        with torch.no_grad():
            stage(batch)
        anchor = Meta(
            batch["image_id_B"], batch["type_mask_B2"][:, 0], batch["recipe_hash_B2"][:, 0]
        )
        negative, _ = degradation_sets(anchor, queue, config)
        own = anchor.image[:, None] == queue.image_K
        assert own.sum() == 8 * 2 * min(step + 1, 3)
        assert not (negative & own).any()
        other_recipe = own & (anchor.recipe[:, None] != queue.recipe_K)
        assert quality_negatives(anchor, queue, config)[other_recipe].all()
        # the second key of this step's second view is one of them
        newest = own & (queue.step_K == queue.step)
        assert ((newest & other_recipe).sum(1) == 1).all()


def test_keys_that_are_not_finite_stay_out_of_the_queue():
    stage = build()
    with torch.no_grad():
        stage.contrast.key.get_parameter("heads.up.2.bias")[0] = float("inf")
        stage(stage1_batch())
    queue = stage.contrast.queue
    assert not queue.valid_K.any()
    assert queue.keys("up").isfinite().all()
    assert int(queue.pointer) == 16


def test_running_statistics_start_anew_after_a_skipped_step_that_spoilt_them():
    stage = build(norm="bn")
    spoilt, sound = (stage.query.encoder.layers[i].get_submodule("norm1") for i in (1, 2))
    run(stage, 1)
    kept = sound.running_mean.clone()
    spoilt.running_mean[0] = float("nan")
    stage.after_skip()
    assert spoilt.running_mean.isfinite().all()
    assert torch.equal(sound.running_mean, kept)


def test_shuffled_keys_come_back_to_their_images():
    torch.manual_seed(0)
    stage = build(norm="bn")
    crops = stage1_batch()["crops_B4CHW"]
    stage.contrast.key.eval()  # running statistics: the result no longer depends on the chunks
    shuffled = stage.contrast._keys(crops)
    for half in ("up", "low"):
        project = getattr(stage.contrast.key.heads, f"project_{half}")
        for crop, vectors in shuffled[half].items():
            straight = project(stage.contrast.key.encoder(to_float(crops[:, crop]))[-1])
            assert torch.allclose(vectors, straight, atol=1e-5)


def test_batchnorm_statistics_depend_on_the_shuffle_and_the_shuffle_on_the_step():
    crops = stage1_batch()["crops_B4CHW"]
    stage, plain = build(norm="bn"), build(moco(shuffle_bn=False), norm="bn")
    plain.load_state_dict(stage.state_dict())
    first = stage.contrast._keys(crops)["up"][1]
    assert torch.equal(first, stage.contrast._keys(crops)["up"][1])
    assert not torch.allclose(first, plain.contrast._keys(crops)["up"][1], atol=1e-4)
    stage.contrast.queue.step += 1
    assert not torch.allclose(first, stage.contrast._keys(crops)["up"][1], atol=1e-4)


def test_uniformity_of_opposite_and_equal_vectors():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(opposite)) == pytest.approx(-8)
    assert float(uniformity(torch.ones(3, 1))) == pytest.approx(0)
    assert float(uniformity(torch.ones(1, 4))) == 0


def test_training_brings_both_losses_far_below_chance():
    stage = build()
    optim = optimiser(stage)
    # coloured blocks say which image, a tint which of two recipes
    rng = torch.Generator().manual_seed(0)
    blocks = torch.rand(8, 3, 4, 4, generator=rng) * 150 + 20
    base = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, None]
    tint = torch.tensor([[0, 0, 60], [0, 0, 60], [60, 0, 0], [60, 0, 0]]).view(1, 4, 3, 1, 1)
    batch = stage1_batch()
    batch["image_id_B"] = torch.arange(8)
    batch["type_mask_B2"] = batch["recipe_hash_B2"] = torch.tensor([[1, 2]]).repeat(8, 1)
    for step in range(25):
        noise = stage1_batch(seed=step)["crops_B4CHW"] * 0.05
        batch["crops_B4CHW"] = (base + tint + noise).clamp(0, 255).to(torch.uint8)
        loss, metrics = stage(batch)
        optim.zero_grad()
        loss.backward()
        optim.step()
        stage.after_step()
    for name in ("deg", "qual"):
        chance = math.log(1 + float(metrics[f"negatives_{name}"]))
        assert float(metrics[f"loss_{name}"]) < 0.65 * chance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue_size": 250}, r"queue_size=250 .*16"),
        ({"queue_size": 8}, r"queue_size=8 .*16"),
        ({"w_deg": 0.0}, r"w_deg=0\.0.*halves=quality"),
    ],
)
def test_clashes_name_their_numbers(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build(moco(**changes))
