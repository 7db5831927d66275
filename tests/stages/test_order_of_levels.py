"""Scores that are asked to fall along the levels of a degradation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dri_iqa.models.dri_iqa import evaluating
from dri_iqa.stages.base import to_float
from tests.stages.builder import build, optimiser, step
from tests.tiny import stage2_batch


@pytest.mark.parametrize("variant", ["proposed", "maniqa"])
def test_order_of_levels_is_a_further_term(variant):
    batch, plain = stage2_batch(), build(variant=variant)
    stage = build(variant=variant, order_batch=8, w_order=0.3, order_margin=0.05)
    assert stage.needs == replace(plain.needs, order=True)
    torch.manual_seed(0)
    with evaluating(stage), evaluating(plain), torch.no_grad():
        terms, metrics = stage.terms(batch)
        others, _ = plain.terms(batch)
        pairs = to_float(batch["order_crops_P2CHW"])
        better, worse = stage.model(pairs[:, 0]), stage.model(pairs[:, 1])
    assert terms.keys() - others.keys() == {"order"}
    for name, term in others.items():
        assert float(terms[name]) == pytest.approx(float(term), rel=1e-4), name
    short = [max(0.0, 0.05 - (b - w)) for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
    assert float(terms["order"]) == pytest.approx(sum(short) / 8, rel=1e-4)
    assert float(metrics["order_share"]) == float((better > worse).float().mean())
    assert stage.term_weights()["order"] == 0.3
    assert build(variant=variant, order_batch=8, w_order=0.0).needs == plain.needs


def test_order_of_levels_is_learnt():
    stage = build(variant="maniqa", order_batch=8, w_mos=1e-3, w_order=1.0, order_margin=0.1)
    optim, batch = optimiser(stage, scale=3), stage2_batch()
    worse = batch["order_crops_P2CHW"][:, 0].float().mul(0.5).byte()  # darker ones
    batch["order_crops_P2CHW"] = torch.stack((batch["order_crops_P2CHW"][:, 0], worse), 1)
    losses = [float(step(stage, optim, batch, seed)[1]["loss_order"]) for seed in range(40)]
    assert losses[-1] < 0.1 * losses[0]
