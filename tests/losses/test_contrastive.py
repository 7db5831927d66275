from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dri_iqa.config import MoCoConfig
from dri_iqa.losses.contrastive import (
    KeyQueue,
    Meta,
    degradation_sets,
    info_nce,
    quality_negatives,
)

TAU = 0.07


def unit(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)


def meta(rows: list[tuple[int, int, int]]) -> Meta:
    image, types, recipe = torch.tensor(rows).unbind(1)
    return Meta(image, types, recipe)


# (image, types, recipe) of every slot; the anchor is image 1 under types 5, recipe 50
ANCHOR = (1, 5, 50)
SLOTS = [
    ((1, 5, 50), False, False, "its own view"),
    ((1, 6, 60), False, True, "its own second view, just enqueued"),
    ((1, 9, 99), False, True, "a view of the same image from an earlier epoch"),
    ((1, 5, 51), False, True, "same image and types at another level, from an earlier epoch"),
    ((2, 5, 50), False, True, "another image under the very same recipe"),
    ((2, 5, 52), False, True, "another image with the same types"),
    ((3, 6, 60), True, True, "another image, other types"),
    ((4, 0, 0), True, True, "a pristine image"),
]


def filled(size: int | None = None, random_init: bool = False) -> KeyQueue:
    queue = KeyQueue(size or len(SLOTS), 4, ("up", "low"), random_init)
    rows = [slot for slot, *_ in SLOTS]
    keys = {"up": unit(len(rows), 4, seed=1), "low": unit(len(rows), 4, seed=2)}
    queue.enqueue(keys, meta(rows), torch.ones(len(rows), dtype=torch.bool))
    return queue


@pytest.mark.parametrize("slot", range(len(SLOTS)), ids=[why for *_, why in SLOTS])
def test_hand_built_queue_gives_the_sets_of_the_paper(slot: int):
    _, in_degradation, in_quality, _ = SLOTS[slot]
    queue, config = filled(), MoCoConfig()
    negative, positive = degradation_sets(meta([ANCHOR]), queue, config)
    assert bool(negative[0, slot]) == in_degradation
    assert not positive.any()
    assert bool(quality_negatives(meta([ANCHOR]), queue, config)[0, slot]) == in_quality


def test_same_types_become_negatives_where_the_switch_says_so():
    config = MoCoConfig(deg_exclude_same_types=False)
    negative, _ = degradation_sets(meta([ANCHOR]), filled(), config)
    assert negative[0].tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("exclude", [False, True])
def test_cross_content_makes_the_same_recipe_on_another_image_positive(exclude: bool):
    config = MoCoConfig(deg_positive="cross_content", deg_exclude_same_types=exclude)
    negative, positive = degradation_sets(meta([ANCHOR]), filled(), config)
    assert positive[0].nonzero().flatten().tolist() == [4]
    assert not (negative & positive).any()
    assert negative[0, 5] != exclude


def test_keys_of_this_step_are_left_out_without_in_batch_negatives():
    queue = filled(size=16)
    rows = [(7, 8, 80), (8, 9, 90)]
    queue.enqueue({"up": unit(2, 4), "low": unit(2, 4)}, meta(rows), torch.ones(2).bool())
    without, with_batch = MoCoConfig(in_batch_negatives=False), MoCoConfig()
    for config, expected in ((without, False), (with_batch, True)):
        negative, _ = degradation_sets(meta([ANCHOR]), queue, config)
        assert negative[0, 8:10].tolist() == [expected] * 2
        assert negative[0, 6]
        assert quality_negatives(meta([ANCHOR]), queue, config)[0, 8] == expected


def test_empty_slots_are_nobodys_negatives_and_random_ones_are_everybodys():
    negative, _ = degradation_sets(meta([ANCHOR]), filled(size=12), MoCoConfig())
    assert not negative[0, 8:].any()
    queue = filled(size=12, random_init=True)
    negative, _ = degradation_sets(meta([ANCHOR]), queue, MoCoConfig())
    assert negative[0, 8:].all()
    assert quality_negatives(meta([ANCHOR]), queue, MoCoConfig())[0, 8:].all()
    assert torch.allclose(queue.keys("up")[8:].norm(dim=1), torch.ones(4), atol=1e-6)


def test_views_that_do_not_exist_leave_their_slots_empty():
    queue = KeyQueue(4, 4, ("low",), False)
    rows, valid = [(1, 1, 1), (2, 2, 2)], torch.tensor([True, False])
    queue.enqueue({"low": unit(2, 4)}, meta(rows), valid)
    assert queue.valid_K.tolist() == [True, False, False, False]
    assert quality_negatives(meta([(9, 9, 9)]), queue, MoCoConfig()).sum() == 1


def test_the_oldest_keys_go_first_and_positions_survive_in_the_state():
    queue = KeyQueue(5, 1, ("low",), False)
    for step in range(1, 5):
        rows = [(10 * step + i, step, step) for i in range(2)]
        keys = torch.tensor([[float(step)], [float(step)]])
        queue.enqueue({"low": keys}, meta(rows), torch.ones(2).bool())
    assert queue.image_K.tolist() == [31, 40, 41, 21, 30]
    assert queue.keys("low").flatten().tolist() == [3, 4, 4, 2, 3]
    assert queue.step_K.tolist() == [3, 4, 4, 2, 3]
    health = queue.health()
    assert float(health["queue_fill"]) == 1
    assert float(health["queue_age"]) == pytest.approx((1 + 0 + 0 + 2 + 1) / 5)
    restored = KeyQueue(5, 1, ("low",), False)
    restored.load_state_dict(queue.state_dict())
    for each in (queue, restored):
        each.enqueue({"low": unit(2, 1)}, meta([(50, 5, 5), (51, 5, 5)]), torch.ones(2).bool())
    states = queue.state_dict(), restored.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert queue.image_K.tolist() == [31, 40, 41, 50, 51]


def test_clearing_empties_it():
    queue = filled()
    queue.clear()
    assert not quality_negatives(meta([ANCHOR]), queue, MoCoConfig()).any()
    assert int(queue.pointer) == 0


def brute_force(anchor, positives, keys, negative, own=(), own_negative=()) -> float:
    """-log softmax of every positive against the negatives, one exponential at a time."""
    total = 0.0
    pool = 0.0
    for key, is_negative in zip([*keys, *own], [*negative, *own_negative], strict=True):
        if is_negative:
            pool += math.exp(float(anchor @ key) / TAU)
    for positive in positives:
        top = math.exp(float(anchor @ positive) / TAU)
        total -= math.log(top / (top + pool))
    return total / len(positives)


def test_loss_equals_a_double_loop():
    rng = torch.Generator().manual_seed(0)
    anchors, positives, keys = unit(6, 8, seed=1), unit(6, 8, seed=2), unit(20, 8, seed=3)
    own = unit(6, 2, 8, seed=4)
    negative = torch.rand(6, 20, generator=rng) > 0.4
    own_negative = torch.rand(6, 2, generator=rng) > 0.5
    also = (torch.rand(6, 20, generator=rng) > 0.8) & ~negative
    also[0] = False
    result = info_nce(
        anchors,
        positives,
        keys,
        negative,
        TAU,
        own_BPD=own,
        own_negative_BP=own_negative,
        also_positive_BK=also,
    )
    for b in range(6):
        mates = [positives[b], *(keys[k] for k in range(20) if also[b, k])]
        expected = brute_force(anchors[b], mates, keys, negative[b], own[b], own_negative[b])
        assert float(result.loss_B[b]) == pytest.approx(expected, abs=1e-6, rel=1e-6)
        best = max(float(anchors[b] @ keys[k]) for k in range(20) if negative[b, k])
        others = [float(anchors[b] @ own[b, p]) for p in range(2) if own_negative[b, p]]
        assert bool(result.hit_B[b]) == (float(anchors[b] @ positives[b]) > max([best, *others]))
        assert int(result.negatives_B[b]) == int(negative[b].sum() + own_negative[b].sum())


def test_a_row_without_negatives_costs_nothing_and_has_no_gradient():
    anchors = unit(2, 4, seed=1).requires_grad_()
    negative = torch.tensor([[False] * 3, [True] * 3])
    result = info_nce(anchors, unit(2, 4, seed=2), unit(3, 4, seed=3), negative, TAU)
    result.loss_B.sum().backward()
    assert float(result.loss_B[0].detach()) == 0
    assert anchors.grad is not None
    assert not anchors.grad[0].any()
    assert anchors.grad[1].abs().sum() > 0


def test_reduced_precision_around_it_does_not_round_the_logits():
    anchors, positives, keys = (unit(4, 32, seed=s).float() for s in (1, 2, 3))
    negative = torch.ones(4, 4, dtype=torch.bool)
    exact = info_nce(anchors, positives, keys, negative, TAU).loss_B
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(anchors, positives, keys, negative, TAU).loss_B, exact)
